"""Remove files that the store has lost or truncated from a landing table, and read their records from Kafka again.

A lifecycle rule or a person may delete objects, or a store may acknowledge an upload that it does not keep. Every
attempt to read such a file fails, and with it the lane. Its records are usually still in Kafka.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from include.streams.kafka.offsets import OffsetRange
from include.streams.landing import gaps, intervals
from include.streams.landing.gaps import RUNBOOK, Gap
from include.streams.landing.index import bounds_of
from include.streams.landing.intervals import Ranges
from include.streams.landing.repair import repair
from include.streams.landing.sources import landed_index
from include.streams.landing.stored import BrokenFiles, DataFileRange
from include.streams.landing.tables import LandedTopic, load_landing_table, raw_table, topic_id
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm, close_alarm
from include.streams.operations.database import begin

if TYPE_CHECKING:
    from pyiceberg.table import Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
# The age of the files' offsets when they are recorded as missing. They had landed, so a check need not wait for a grace
# period, and must not close the alarm in the meantime.
WITHOUT_GRACE = timedelta(days=1)
# A commit fails if the sink commits at the same time, and is then repeated. The limit keeps the repeated work small.
FILES_IN_A_COMMIT = 500
# Files that one message of the alarm names; the log names all.
FILES_A_MESSAGE = 10


def read_with_repair(topic: LandedTopic, read: Callable[[], T], *, conn_id: str, repairs: bool = True) -> T:
    """Call `read`. If it finds broken files, remove them from the table, repair their offsets, and call it again.

    If the process is killed in between, the files' offsets are recorded as missing, and the alarm stays open until a
    check or a repair finds them. If two processes do this at once, the second finds nothing left to remove.

    Args:
        topic: The landed topic.
        read: Reads files of the landing table. It can be repeated.
        conn_id: The Airflow connection of Kafka.
        repairs: Whether the offsets are repaired here. False if `read` itself checks and repairs the whole table.

    Returns:
        The result of `read`.

    Raises:
        BrokenFiles: Offsets that this call has just repaired are in broken files again: the store loses every upload.
        Exception: `read`, the repair, the store, the catalog or the database has failed.
    """
    repaired: dict[int, Ranges] = {}
    removed: dict[int, Ranges] = {}
    while True:
        try:
            if removed and repairs:
                _repair(topic, removed, conn_id)
            repaired = _union(repaired, removed)
            removed = {}
            return read()
        except BrokenFiles as broken:
            if not any(intervals.subtract([(f.start, f.end)], repaired.get(f.partition, [])) for f in broken.files):
                raise
            removed = _union(removed, _remove(topic, broken.files))


def _union(first: Mapping[int, Ranges], second: Mapping[int, Ranges]) -> dict[int, Ranges]:
    return {n: intervals.union([*first.get(n, []), *second.get(n, [])]) for n in sorted({*first, *second})}


def _remove(topic: LandedTopic, broken: Mapping[DataFileRange, str]) -> dict[int, Ranges]:
    """Remove the files from the table and open the alarm; returns {partition: the offsets between their bounds}."""
    from include.streams.lake import writing

    table = load_landing_table(topic)
    landing_id = topic_id(table)
    by_partition: dict[int, list[DataFileRange]] = {}
    for file, wrong in sorted(broken.items(), key=lambda pair: pair[0].path):
        by_partition.setdefault(file.partition, []).append(file)
        log.error("broken file, removed: table=%s %s %s", raw_table(topic), file.path, wrong)
    spans = {
        number: intervals.union((file.start, file.end) for file in files) for number, files in by_partition.items()
    }
    with begin() as connection:
        for number, files in by_partition.items():
            # Before the commit: if the process is killed after it, only this record shows that offsets are missing,
            # because lanes and checks may already be past them.
            for start, end in spans[number]:
                scope = {number: [(start, end)]}, {number: (start, end)}
                gaps.record_missing(connection, topic.name, landing_id, *scope, age=WITHOUT_GRACE)
            text = _text(topic, number, files, broken, spans[number])
            add_to_alarm(connection, raw_table(topic), AlarmKind.landing_gap, text)
    # Sorted, so that one commit removes adjacent files and PyIceberg reads few other files.
    ordered = sorted(broken, key=lambda file: (file.partition, file.start))
    for first in range(0, len(ordered), FILES_IN_A_COMMIT):
        batch = ordered[first : first + FILES_IN_A_COMMIT]

        def change(transaction: "Transaction", batch: list[DataFileRange] = batch) -> None:
            paths = {file.path for file in batch}
            planned = (task.file for task in table.scan(row_filter=_around(batch)).plan_files())
            writing.replace_files(transaction, [file for file in planned if file.file_path in paths], [])

        writing.commit(table, change)
    return spans


def _around(files: list[DataFileRange]) -> str:
    """A filter that matches the files, and possibly some files between them."""
    return " or ".join(
        f"(partition = {number} and offset >= {start} and offset < {end})"
        for number, (start, end) in bounds_of(files).items()
    )


def _text(
    topic: LandedTopic, partition: int, files: list[DataFileRange], broken: Mapping[DataFileRange, str], spans: Ranges
) -> str:
    named = "; ".join(f"{file.path} {broken[file]}" for file in files[:FILES_A_MESSAGE])
    more = f"; and {len(files) - FILES_A_MESSAGE} more" if len(files) > FILES_A_MESSAGE else ""
    return (
        f"{topic.name}-{partition}: {named}{more}. Such files are removed from the table, and their "
        f"{sum(file.records for file in files)} records, between the offsets {intervals.text(spans)}, are read from "
        f"Kafka and appended ({RUNBOOK})"
    )


def _repair(topic: LandedTopic, taken: Mapping[int, Ranges], conn_id: str) -> None:
    """Read the missing offsets from Kafka, record those that are still missing, and close the alarm if none is."""
    landing_id = topic_id(load_landing_table(topic))
    spans = [(number, *span) for number, ranges in sorted(taken.items()) for span in ranges]
    due = [Gap(OffsetRange(topic.name, landing_id, *span), timedelta()) for span in spans]
    repair(topic, due, conn_id=conn_id)
    landed = landed_index(topic, load_landing_table(topic))
    covered = {span: landed.covered(*span) for span in spans}
    with begin() as connection:
        for (number, start, end), landed_offsets in covered.items():
            settled = gaps.settled(connection, landing_id, {number: start}, {number: end}).get(number, [])
            missing = intervals.subtract([(start, end)], intervals.union([*landed_offsets, *settled]))
            scope = {number: missing}, {number: (start, end)}
            gaps.record_missing(connection, topic.name, landing_id, *scope, age=WITHOUT_GRACE)
        close_if_whole(connection, topic, landing_id)


def close_if_whole(connection: Any, topic: LandedTopic, landing_id: str) -> None:
    """Close the alarm about gaps if no offset of the table is recorded as missing."""
    if not gaps.has_missing_outside(connection, landing_id, {}, {}):
        close_alarm(connection, raw_table(topic), AlarmKind.landing_gap)
