"""Upkeep of the lane: landing tables with the care that their sink and their gaps need, all others, and results."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from include.contracts import Topic
from include.kafka.connection import CONN_ID
from include.landing.consumers import LandingConsumer

if TYPE_CHECKING:
    from pyiceberg.table.snapshots import Snapshot

    from include.lake.buckets import Entry

log = logging.getLogger(__name__)

# The sink finds how far it has come in the summary of its last commit.
SINK_SUMMARY = "kafka.connect."


def keep_table(name: str, snapshots_kept: timedelta) -> dict[str, int] | None:
    """Expire snapshots of a table, bundle its small files, remove what no snapshot knows; None when there is none."""
    from pyiceberg.exceptions import NoSuchTableError

    from include.lake import maintenance
    from include.lake.catalog import load_catalog

    try:
        table = load_catalog().load_table(name)
    except NoSuchTableError:
        return None
    found = {
        "bundled": maintenance.bundle_small_files(table),
        "expired": maintenance.expire_snapshots(table, snapshots_kept),
        "removed": maintenance.remove_unreferenced(table),
    }
    log.info("table %s: %s", name, found)
    return found


def keep_landing_table(topic: Topic, snapshots_kept: timedelta, conn_id: str = CONN_ID) -> dict[str, Any] | None:
    """The same for a topic's landing table; None when there is none.

    Its files stay as the sink wrote them. While offsets are missing nothing is removed: files that no snapshot knows
    may be the missing rows.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.lake import maintenance
    from include.landing.tables import load_landing_table, raw_table
    from include.landing.verification import verify

    try:
        table = load_landing_table(topic)
    except NoSuchTableError:
        return None
    found: dict[str, Any] = {"expired": maintenance.expire_snapshots(table, snapshots_kept, _is_of_sink)}
    if missing := verify(topic, conn_id=conn_id).missing:
        log.warning("table %s: offsets are missing, nothing is removed: %d gaps", raw_table(topic), len(missing))
        return {**found, "removed": None}
    return {**found, "removed": maintenance.remove_unreferenced(table)}


def remove_results(consumers: Iterable[LandingConsumer], older_than: timedelta, *, seconds: float) -> int:
    """Remove what checks of runs have left, when it is old and the run's claim is not on record any more.

    Returns of how many runs; for about this long, the rest is the next time's. A run whose claim is there may be
    cleared, and what people accepted of it must be known then, however old it is. Killed in between: what is left of a
    run is found the next time; what people accepted goes last.
    """
    from include.lake.buckets import bucket
    from include.validators.results import ACCEPTANCE, FOLDER

    until = time.monotonic() + seconds
    before = datetime.now(UTC) - older_than
    objects, removed = bucket(), 0
    for consumer in consumers:
        runs: dict[int, list[Entry]] = {}
        for entry in objects.list(f"{FOLDER}/{consumer.name}/"):
            # Beside the runs' folders lie the statistics of the last ones.
            if (key := entry.path.split("/")[2]).isdigit():
                runs.setdefault(int(key), []).append(entry)
        # After the listing: of a claim that is made in between, nothing is listed.
        on_record = _claims_of(consumer)
        for claim_id, entries in sorted(runs.items()):
            if time.monotonic() > until:
                break
            if claim_id not in on_record and max(entry.updated for entry in entries) < before:
                for entry in sorted(entries, key=lambda entry: entry.path.endswith(ACCEPTANCE)):
                    objects.delete(entry.path)
                removed += 1
    log.info("removed results: runs=%d older_than_days=%d", removed, older_than.days)
    return removed


def _claims_of(consumer: LandingConsumer) -> set[int]:
    from sqlalchemy import select

    from include.operations.database import begin
    from include.operations.tables import claims

    with begin() as connection:
        return set(connection.execute(select(claims.c.id).where(claims.c.consumer == consumer.name)).scalars())


def _is_of_sink(snapshot: Snapshot) -> bool:
    summary = snapshot.summary
    return summary is not None and any(name.startswith(SINK_SUMMARY) for name in summary.additional_properties)
