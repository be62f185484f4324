"""The Dag's part: when a report may be made, and making it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from include.water import turns

# Flows are computed every minute or so; nobody reads reports so fast, and each is kept for two days.
MIN_INTERVAL = timedelta(minutes=10)


def next_turn(asked_at: datetime, now: datetime | None = None) -> datetime | None:
    """When the report that was asked for may be made; None when one that was made since then is shown."""
    from include.lake.buckets import bucket
    from include.water.dashboards.report.publish import latest

    try:
        shown = latest(bucket())
    except (ValueError, KeyError, TypeError):
        # What is shown cannot be read: a new report replaces it.
        shown = None
    return turns.next_turn(shown and shown.computed_at, asked_at, MIN_INTERVAL, now or datetime.now(UTC))


def publish_report(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect, render, publish; returns where it is and what it holds, for the run's XCom."""
    from include.lake.buckets import bucket
    from include.water.dashboards.report.collect import collect
    from include.water.dashboards.report.publish import publish
    from include.water.dashboards.report.render import render
    from include.water.flows.definition import TIME_ZONE

    data = collect(batches)
    html = render(data)
    path = publish(bucket(), html, data.computed_at, TIME_ZONE)
    return {
        "path": path,
        "characters": len(html),
        "data_up_to": data.data_up_to.isoformat() if data.data_up_to else None,
        "districts": len(data.districts),
        "leaks": len(data.leaks or ()),
    }
