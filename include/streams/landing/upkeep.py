"""Maintenance of the standard lane: landing tables with their gaps, other tables, and check results."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from include.streams.compat.connections import lacks_connection
from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID
from include.streams.lake.catalog import CONN_ID as CATALOG_CONN_ID
from include.streams.landing.consumers import LANDING_GRACE, LandingConsumer
from include.streams.operations.each import do_each, shuffled

if TYPE_CHECKING:
    from pyiceberg.table.snapshots import Snapshot

    from include.streams.lake.buckets import Entry
    from include.streams.landing.snapshot import LandingSnapshot

log = logging.getLogger(__name__)

# The most offsets that a step of the check reads and repairs before its progress is recorded.
CHECKED_AT_ONCE = 1_000_000
# Prefix in a snapshot's summary: the sink reads its progress from the summary of its last commit.
SINK_SUMMARY = "kafka.connect."
# For landing tables. Long enough for a writer whose commit is in progress, and for a person who investigates; readers
# do not need old snapshots.
SNAPSHOTS_KEPT = timedelta(minutes=30)
# For other tables: one snapshot of each hour stays longer, for a person who investigates.
SNAPSHOT_EVERY = timedelta(hours=1)


def maintain_table(name: str, snapshots_kept: timedelta) -> dict[str, int] | None:
    """Expire snapshots of a table, bundle its small files, and delete unreferenced files.

    If a step fails, the other steps are still done. Without them, commits would become slower from night to night, and
    a step that conflicts with commits would fail more often.

    Args:
        name: The table's identifier, `namespace.name`.
        snapshots_kept: Younger snapshots stay.

    Returns:
        {"expired": number of snapshots, "bundled": number of replaced files, "removed": number of deleted files}; None
        when the table does not exist.

    Raises:
        UpkeepFailed: A step failed; the next run tries again.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake import maintenance
    from include.streams.lake.catalog import load_catalog

    if lacks_connection(CATALOG_CONN_ID):
        return None
    try:
        table = load_catalog().load_table(name)
    except NoSuchTableError:
        return None
    steps = {
        "expired": partial(maintenance.expire_snapshots, table, snapshots_kept),
        "bundled": partial(maintenance.bundle_small_files, table),
        "removed": partial(maintenance.remove_unreferenced, table),
    }
    outcomes = do_each({f"table {name} not {step}": work for step, work in steps.items()}, UpkeepFailed)
    results = dict(zip(steps, outcomes.values(), strict=True))
    log.info("table %s: %s", name, results)
    return results


class UpkeepFailed(Exception):
    """A step of the maintenance failed; the other steps are done, and the next run tries again."""


def expire_landing_snapshots(topics: Iterable[Topic], kept: timedelta = SNAPSHOTS_KEPT) -> dict[str, int]:
    """Expire the snapshots of landing tables that are older than `kept`.

    A sink commits every few seconds, and every reader and every commit loads the list of all snapshots. No reader needs
    an old snapshot: a run looks up its files by offsets, and an unreferenced file is deleted only after a day. Recorded
    bounds of manifests that the table no longer has are deleted too.

    Args:
        topics: Topics that are not landed, or have no table yet, are ignored.
        kept: Younger snapshots stay. The newest snapshot stays too, and the sink's last snapshot with all later ones.

    Returns:
        {table: how many snapshots were expired}.

    Raises:
        UpkeepFailed: Expiry failed for some tables; the others are done.
    """
    from include.streams.landing.tables import raw_table

    return _of_each({raw_table(t): partial(_expire_landing_snapshots, t, kept) for t in topics if t.landed})


def thin_snapshots(
    names: Iterable[str], kept: timedelta = SNAPSHOTS_KEPT, every: timedelta = SNAPSHOT_EVERY
) -> dict[str, int]:
    """Expire the snapshots of other tables that are older than `kept`, except the newest one of each period `every`.

    Every commit and every reader loads the list of all snapshots, and each run of a lane adds some. `maintain_table`
    expires the rest.

    Args:
        names: Identifiers of tables, `namespace.name`; a table that does not exist yet is ignored.
        kept: Younger snapshots stay.
        every: The period.

    Returns:
        {table: how many snapshots were expired}.

    Raises:
        UpkeepFailed: Expiry failed for some tables; the others are done.
    """
    return _of_each({name: partial(_thin_snapshots, name, kept, every) for name in names})


def _of_each(work: Mapping[str, Callable[[], int]]) -> dict[str, int]:
    from pyiceberg.exceptions import NoSuchTableError

    if lacks_connection(CATALOG_CONN_ID):
        return {}
    expired: dict[str, int] = {}

    def expire(name: str) -> None:
        with suppress(NoSuchTableError):
            expired[name] = work[name]()

    try:
        do_each(shuffled({f"table {name}": partial(expire, name) for name in work}), UpkeepFailed)
    finally:
        log.info("expired snapshots: %s", expired)
    return expired


def _thin_snapshots(name: str, kept: timedelta, every: timedelta) -> int:
    from include.streams.lake import maintenance
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.writing import TABLE_PROPERTIES

    table = load_catalog().load_table(name)
    expired = maintenance.thin_snapshots(table, kept, every)
    # For tables that were created before the property was introduced.
    maintenance.set_properties(table.refresh(), TABLE_PROPERTIES)
    return expired


def _expire_landing_snapshots(topic: Topic, kept: timedelta) -> int:
    from include.streams.lake import maintenance
    from include.streams.landing import manifests
    from include.streams.landing.tables import PROPERTIES, load_landing_table

    table = load_landing_table(topic)
    expired = maintenance.expire_snapshots(table, kept, _is_of_sink)
    # After the expiry, because the commit then writes less metadata.
    maintenance.set_properties(table.refresh(), PROPERTIES)
    snapshot = table.current_snapshot()
    paths = [manifest.manifest_path for manifest in snapshot.manifests(table.io)] if snapshot else []
    manifests.delete_others(str(table.metadata.table_uuid), paths)
    return expired


def maintain_landing_table(
    topic: Topic,
    lanes: Iterable[LandingConsumer] = (),
    *,
    grace: timedelta = LANDING_GRACE,
    seconds: float = math.inf,
    conn_id: str = CONN_ID,
) -> dict[str, Any] | None:
    """Bundle the small files of a topic's landing table, repair its gaps, and delete unreferenced files.

    Only files are bundled whose offsets every lane of the topic has claimed in claims that are closed. Gaps are
    repaired whether or not the topic has a lane. While offsets are missing, no file is deleted, because unreferenced
    files may hold the missing rows. Files that the control topic names after the last commit of the sink's coordinator
    are not committed yet, so they stay, however old they are.

    Args:
        topic: The landed topic.
        lanes: All consumers of landing tables; those of other topics are ignored.
        grace: As for `check_gaps`.
        seconds: After about half of this time, bundling leaves the rest for the next call; the check for gaps too.
        conn_id: The Airflow connection of Kafka.

    Returns:
        {"bundled": number of replaced files, "removed": number of deleted files, or None when none may be deleted};
        None when there is no table.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake import maintenance
    from include.streams.landing import bundling
    from include.streams.landing.broken_files import read_with_repair
    from include.streams.landing.control import named_files
    from include.streams.landing.late import report_late
    from include.streams.landing.tables import load_landing_table, raw_table

    if lacks_connection(CATALOG_CONN_ID):
        return None
    try:
        table = load_landing_table(topic)
    except NoSuchTableError:
        return None
    lanes = list(lanes)
    bundle = partial(bundling.bundle, table, topic, lanes, seconds=seconds / 2)
    results: dict[str, Any] = {"bundled": read_with_repair(topic, bundle, conn_id=conn_id)}
    read_with_repair(topic, lambda: report_late(topic, lanes), conn_id=conn_id)
    check = partial(check_gaps, topic, grace=grace, seconds=seconds / 2, conn_id=conn_id)
    if not read_with_repair(topic, check, conn_id=conn_id):
        log.warning("table %s: offsets are missing or not checked yet, so no file is deleted", raw_table(topic))
        return {**results, "removed": None}
    # Before the snapshots are read, so that a file that the coordinator commits in between is in one of the two.
    spared = named_files(topic, conn_id)
    if spared is None:
        log.warning("table %s: the coordinator's last commit is not known, so no file is deleted", raw_table(topic))
        return {**results, "removed": None}
    return {**results, "removed": maintenance.remove_unreferenced(table, spared=spared)}


def check_gaps(
    topic: Topic, *, grace: timedelta = LANDING_GRACE, seconds: float = math.inf, conn_id: str = CONN_ID
) -> bool:
    """Check a landing table from where the last check ended, and repair the gaps that are due.

    A partition whose log has lost landed records is not checked, and an alarm names it. A lane opens such an alarm too,
    but a topic may have no lane.

    The position of the check is recorded after each step, in `positions` under the table's name. Below this position, a
    gap can appear only if files are removed, which the bounds of the files show.

    Args:
        topic: The landed topic; it has a table.
        grace: How long offsets at the end of a partition may be missing before they are a gap that is due.
        seconds: After about this time, the rest is left for the next call.
        conn_id: The Airflow connection of Kafka.

    Returns:
        Whether the table is known to be complete.
    """
    from include.streams.landing.repair import repair
    from include.streams.landing.verification import verify

    until = time.monotonic() + seconds
    check = partial(verify, topic, conn_id=conn_id, grace=grace, max_offsets=CHECKED_AT_ONCE, repairs=True)
    while True:
        of_topic, checked = _checked(topic)
        verified = check(checked)
        if verified.due:
            repair(topic, verified.due, conn_id=conn_id)
            verified = check(checked)
        snapshot = verified.snapshot
        if snapshot.topic_id != of_topic:
            # The table was created again in between, so the recorded position belongs to another table.
            continue
        _report_lost_logs(topic, snapshot)
        reached = {partition: snapshot.end(partition, start) for partition, (start, _) in snapshot.checked.items()}
        _record_checked(topic, of_topic, reached)
        if all(reached[partition] >= end for partition, end in snapshot.ends.items()):
            break
        if time.monotonic() > until or all(reached[p] <= start for p, (start, _) in snapshot.checked.items()):
            return False
    if snapshot.lost:
        return False
    # A person must decide about removed files, so the check of the whole table opens the alarm and repairs nothing.
    # After the person's repair, it closes the alarm.
    if _files_were_removed(topic, snapshot, reached) or _is_missing_below(snapshot, reached):
        return not verify(topic, conn_id=conn_id, grace=grace).missing and not _is_missing_below(snapshot, reached)
    return True


def _report_lost_logs(topic: Topic, snapshot: LandingSnapshot) -> None:
    from include.streams.landing.gaps import RUNBOOK
    from include.streams.landing.tables import raw_table
    from include.streams.operations.alarm_kinds import AlarmKind
    from include.streams.operations.alarms import add_lasting, close_others
    from include.streams.operations.database import begin

    with begin() as connection:
        if snapshot.lost:
            texts = [f"{why}; {RUNBOOK} says how to continue" for _, why in sorted(snapshot.lost.items())]
            add_lasting(connection, raw_table(topic), AlarmKind.consumer_stopped, texts, key=topic.name)
        elif all(partition in {p.number for p in snapshot.kafka} for partition in snapshot.checked):
            # Only if all partitions were compared: one that does not answer may still have lost records.
            # Whatever the key: alarms that the release before opened have none.
            close_others(connection, raw_table(topic), AlarmKind.consumer_stopped)


def _checked(topic: Topic) -> tuple[str, dict[int, int]]:
    """The id of the topic's landing table, and {partition: the offset up to which it was found complete}."""
    from include.streams.kafka.claims import positions_of
    from include.streams.landing.tables import load_landing_table, raw_table, start_offsets, topic_id
    from include.streams.operations.database import begin

    table = load_landing_table(topic)
    with begin() as connection:
        known = positions_of(connection, raw_table(topic))
    checked = start_offsets(table)
    for partition, (identity, offset) in known.items():
        if identity == topic_id(table):
            checked[partition.number] = max(offset, checked.get(partition.number, 0))
    return topic_id(table), checked


def _record_checked(topic: Topic, of_topic: str, reached: Mapping[int, int]) -> None:
    from include.streams.kafka.claims import lock_consumer, positions_of, write_positions
    from include.streams.kafka.offsets import Partition
    from include.streams.landing.tables import raw_table
    from include.streams.operations.database import begin

    rows = []
    with begin() as connection:
        lock_consumer(connection, raw_table(topic))
        known = positions_of(connection, raw_table(topic))
        for number, offset in sorted(reached.items()):
            before = known.get(Partition(topic.name, number))
            # The position never moves back, if another check was faster.
            if before is None or before[0] != of_topic or before[1] < offset:
                rows.append((topic.name, number, of_topic, offset, None))
        write_positions(connection, raw_table(topic), rows)


def _files_were_removed(topic: Topic, snapshot: LandingSnapshot, reached: Mapping[int, int]) -> bool:
    """Whether offsets that an earlier check has found landed are now outside of the bounds of all files."""
    from include.streams.landing import gaps, intervals
    from include.streams.landing.sources import landed_index
    from include.streams.landing.tables import load_landing_table
    from include.streams.operations.database import begin

    landed = landed_index(topic, load_landing_table(topic))
    outside: list[tuple[int, int, int]] = []
    for partition, end in reached.items():
        start = snapshot.begins.get(partition, 0)
        files = intervals.union((file.start, file.end) for file in landed.files(partition, start, end))
        outside += [(partition, *part) for part in intervals.subtract([(start, end)], files)]
    with begin() as connection:
        for partition, start, end in outside:
            known = gaps.settled(connection, snapshot.topic_id, {partition: start}, {partition: end})
            if intervals.subtract([(start, end)], known.get(partition, [])):
                return True
    return False


def _is_missing_below(snapshot: LandingSnapshot, reached: Mapping[int, int]) -> bool:
    """Whether offsets that an earlier check has passed are recorded as missing."""
    from include.streams.landing import gaps, intervals
    from include.streams.operations.database import begin

    above = {partition: (offset, intervals.MAX_OFFSET) for partition, offset in reached.items()}
    with begin() as connection:
        return gaps.has_missing_outside(connection, snapshot.topic_id, above, snapshot.begins)


def remove_results(consumers: Iterable[LandingConsumer], older_than: timedelta, *, seconds: float) -> int:
    """Delete the check results of runs that are old and whose claim is no longer recorded.

    A run whose claim still exists may be cleared, and then needs its acceptances, however old they are. If the process
    is killed in between, the next call deletes the rest of the run; the acceptances are deleted last.

    Args:
        consumers: The landing consumers.
        older_than: The least age of a run's newest object.
        seconds: After about this time, the rest is left for the next call.

    Returns:
        The number of runs whose results were deleted.
    """
    from include.streams.lake.buckets import bucket
    from include.streams.lake.stores import store_in_use
    from include.streams.validators.results import ACCEPTANCE, FOLDER

    if lacks_connection(store_in_use().conn_id):
        return 0
    until = time.monotonic() + seconds
    before = datetime.now(UTC) - older_than
    objects, removed = bucket(), 0
    for consumer in consumers:
        runs: dict[int, list[Entry]] = {}
        for entry in objects.list(f"{FOLDER}/{consumer.name}/"):
            # The folder also holds the statistics of the last runs, which are not in a run's folder.
            if (key := entry.path.split("/")[2]).isdigit():
                runs.setdefault(int(key), []).append(entry)
        # After the listing, so that a claim that is made in between has no objects in the list.
        recorded = _claims_of(consumer)
        for claim_id, entries in sorted(runs.items()):
            if time.monotonic() > until:
                break
            if claim_id not in recorded and max(entry.updated for entry in entries) < before:
                for entry in sorted(entries, key=lambda entry: entry.path.endswith(ACCEPTANCE)):
                    objects.delete(entry.path)
                removed += 1
    log.info("removed results: runs=%d older_than_days=%d", removed, older_than.days)
    return removed


def _claims_of(consumer: LandingConsumer) -> set[int]:
    from sqlalchemy import select

    from include.streams.operations.database import begin
    from include.streams.operations.tables import claims

    with begin() as connection:
        return set(connection.execute(select(claims.c.id).where(claims.c.consumer == consumer.name)).scalars())


def _is_of_sink(snapshot: Snapshot) -> bool:
    summary = snapshot.summary
    return summary is not None and any(name.startswith(SINK_SUMMARY) for name in summary.additional_properties)


# Dag files of the release before import these names.
keep_table = maintain_table
keep_landing_table = maintain_landing_table
