"""Upkeep of the lane's tables: landing tables with the care that their sink and their gaps need, and all others."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from include.contracts import Topic
from include.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from pyiceberg.table.snapshots import Snapshot

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


def _is_of_sink(snapshot: Snapshot) -> bool:
    summary = snapshot.summary
    return summary is not None and any(name.startswith(SINK_SUMMARY) for name in summary.additional_properties)
