"""Retention of the example's own tables and files; the tables of the library have rules of their own."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from include.streams import RetentionRule
from include.water.alarm_kinds import WaterAlarmKind
from include.water.tables import decisions, earthquakes, published_seismic_events, work_orders

log = logging.getLogger(__name__)

# Longer than the period of the longest feed, a month: an event must stay recorded as long as a feed shows it.
PUBLISHED_KEPT = timedelta(days=60)
# About 250 rows a day.
EARTHQUAKES_KEPT = timedelta(days=5 * 365)
# Decisions hold personal data, so they are deleted at some time. They are kept at least as long as the rows of the
# inbox: without both, a request that is read again would be decided twice.
RECORDS_KEPT = timedelta(days=540)
REGISTER_KEPT = timedelta(days=365)
# A decision is kept while it waits for a person, and while its work order is kept.
SETTLED = (
    "state <> 'awaiting_approval' and not exists "
    "(select from work_orders where work_orders.decision_id = decisions.decision_id)"
)


def rules(inbox_kept: timedelta | None) -> list[RetentionRule]:
    """The rules for pruning the example's own tables.

    Args:
        inbox_kept: How long inbox rows are kept; None to keep them forever.
    """
    kept = max(RECORDS_KEPT, inbox_kept or timedelta(0))
    return [
        RetentionRule(published_seismic_events, "published_at", PUBLISHED_KEPT),
        RetentionRule(earthquakes, "updated_at", EARTHQUAKES_KEPT),
        RetentionRule(work_orders, "created_at", kept),
        RetentionRule(decisions, "decided_at", kept, SETTLED),
    ]


def remove_register_files(older_than: timedelta = REGISTER_KEPT, *, seconds: float) -> int:
    """Delete old register files and their rows, if no row of the register comes from them.

    A rejected file is kept while its alarm is open. A file that was never moved is kept. If the process is killed after
    it deleted a file and before it deleted the file's row, the next call deletes the row.

    Args:
        older_than: The least time since a file was recorded.
        seconds: Stop after about this time; the next call deletes the rest.

    Returns:
        How many files were deleted.
    """
    from sqlalchemy import delete

    from include.streams import begin
    from include.streams.compat.connections import lacks_connection
    from include.streams.lake.buckets import bucket
    from include.streams.lake.stores import store_in_use
    from include.water.register.layout import ARCHIVE, INCOMING, REJECTED, identity
    from include.water.tables import register_files as files

    if lacks_connection(store_in_use().conn_id):
        return 0
    until, objects, removed = time.monotonic() + seconds, bucket(), 0
    # Without its row, a file that still waits to be moved would be imported again.
    waiting = {(entry.path, entry.generation) for entry in objects.list(INCOMING)}
    for name, generation in _old_register_files(older_than):
        if time.monotonic() > until:
            break
        if (name, generation) in waiting:
            continue
        for folder in (ARCHIVE, REJECTED):
            for entry in objects.list(f"{folder}{identity(name, generation)}/"):
                objects.delete(entry.path)
        with begin() as connection:
            connection.execute(delete(files).where(files.c.object_name == name, files.c.generation == generation))
        removed += 1
    log.info("removed register files: files=%d older_than_days=%d", removed, older_than.days)
    return removed


def _old_register_files(older_than: timedelta) -> list[tuple[str, int]]:
    from sqlalchemy import func, select, union

    from include.streams import begin
    from include.streams.operations.alarms import open_keys
    from include.water.register.importing import SOURCE
    from include.water.register.layout import identity
    from include.water.tables import register_customers, register_files, register_sites

    in_use = union(*(select(of.c.object_name, of.c.generation) for of in (register_sites, register_customers)))
    old = select(register_files.c.object_name, register_files.c.generation)
    old = old.where(register_files.c.recorded_at < func.now() - older_than).order_by(register_files.c.recorded_at)
    with begin() as connection:
        kept = {(name, generation) for name, generation in connection.execute(in_use)}
        alarmed = open_keys(connection, SOURCE, WaterAlarmKind.file_rejected)
        files = [(row.object_name, row.generation) for row in connection.execute(old)]
    return [key for key in files if key not in kept and identity(*key) not in alarmed]
