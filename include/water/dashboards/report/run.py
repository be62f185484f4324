"""The functions that the Dag calls: when a report may be published, and the publication."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from include.water import throttle

# Flows are computed every minute or so. Nobody reads reports that fast, and each report is kept for two days.
MIN_INTERVAL = timedelta(minutes=10)


def next_turn(asked_at: datetime, now: datetime | None = None) -> datetime | None:
    """When this run may publish.

    Args:
        asked_at: When the run was requested.
        now: The clock; by default the current time.

    Returns:
        The time; None when the report that is shown was computed after the request.
    """
    from include.streams.lake.buckets import bucket
    from include.water.dashboards.report.publish import latest

    try:
        shown = latest(bucket())
    except (ValueError, KeyError, TypeError):
        # The pointer cannot be read: a new report replaces it.
        shown = None
    return throttle.next_publish_time(shown and shown.computed_at, asked_at, MIN_INTERVAL, now or datetime.now(UTC))


def publish_report(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect, render and publish the report.

    Args:
        batches: The extras of the HOURLY_FLOWS events, as for `collect`.

    Returns:
        The report's path and a summary of its content, for the run's XCom.
    """
    from include.streams.lake.buckets import bucket
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
