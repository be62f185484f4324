"""Take files that the store has lost or cut out of a landing table, and get their records from Kafka again.

A lifecycle rule or a person deletes objects; a store acknowledges an upload that it does not keep. Each try to read
such a file fails, and with it the lane. Its records are usually still in Kafka.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from include.streams.kafka.offsets import OffsetRange
from include.streams.landing import gaps, intervals
from include.streams.landing.gaps import RUNBOOK, Gap
from include.streams.landing.index import LandingIndex, bounds_of
from include.streams.landing.intervals import Ranges
from include.streams.landing.repair import repair
from include.streams.landing.stored import BrokenFiles, DataFileRange
from include.streams.landing.tables import LandedTopic, load_landing_table, raw_table, topic_id
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm, close_alarm
from include.streams.operations.database import begin

if TYPE_CHECKING:
    from pyiceberg.table import Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
# Their files had landed: a check need not wait for them, and must not close the alarm meanwhile.
WITHOUT_GRACE = timedelta(days=1)
# A commit reads the manifests of the table, and the sink commits meanwhile: a limit for what is lost with a failed try.
FILES_IN_A_COMMIT = 500
# Files that a message of the alarm names; the log names all.
FILES_A_MESSAGE = 10


def read_with_repair(topic: LandedTopic, read: Callable[[], T], *, conn_id: str, repairs: bool = True) -> T:
    """Call `read`; when it meets broken files, take them out of the table, repair their offsets, and call it again.

    If the process is killed in between, the files' offsets are on record as missing, and the alarm stays open until a
    check or a repair finds them. Two processes at once: the second one finds nothing left to take out.

    Args:
        topic: The landed topic.
        read: Reads files of the landing table. It can be repeated.
        conn_id: The Airflow connection of Kafka.
        repairs: False if `read` checks the whole table and repairs it.

    Raises:
        BrokenFiles: Files are broken of offsets that this call has just repaired: the store keeps nothing.
        Exception: What `read`, the store, the catalog, the database or the repair raises.
    """
    done: dict[int, Ranges] = {}
    taken: dict[int, Ranges] = {}
    while True:
        try:
            if taken and repairs:
                _repair(topic, taken, conn_id)
            done = _union(done, taken)
            taken = {}
            return read()
        except BrokenFiles as broken:
            if not any(intervals.subtract([(f.start, f.end)], done.get(f.partition, [])) for f in broken.files):
                raise
            taken = _union(taken, _take_out(topic, broken.files))


def _union(one: Mapping[int, Ranges], other: Mapping[int, Ranges]) -> dict[int, Ranges]:
    return {n: intervals.union([*one.get(n, []), *other.get(n, [])]) for n in sorted({*one, *other})}


def _take_out(topic: LandedTopic, broken: Mapping[DataFileRange, str]) -> dict[int, Ranges]:
    """Take the files out of the table, with an alarm; returns {partition: the offsets between their bounds}."""
    from include.streams.lake import writing

    table = load_landing_table(topic)
    landing_id = topic_id(table)
    by_partition: dict[int, list[DataFileRange]] = {}
    for file, wrong in sorted(broken.items(), key=lambda pair: pair[0].path):
        by_partition.setdefault(file.partition, []).append(file)
        log.error("broken file, taken out: table=%s %s %s", raw_table(topic), file.path, wrong)
    spans = {
        number: intervals.union((file.start, file.end) for file in files) for number, files in by_partition.items()
    }
    with begin() as connection:
        for number, files in by_partition.items():
            # Before the commit: if the process is killed after it, only this record shows that offsets are missing
            # that lanes and checks have passed.
            for start, end in spans[number]:
                both = {number: [(start, end)]}, {number: (start, end)}
                gaps.record_missing(connection, topic.name, landing_id, *both, age=WITHOUT_GRACE)
            text = _text(topic, number, files, broken, spans[number])
            add_to_alarm(connection, raw_table(topic), AlarmKind.landing_gap, text)
    # Neighbours in one commit, so that PyIceberg looks at few other files.
    ordered = sorted(broken, key=lambda file: (file.partition, file.start))
    for first in range(0, len(ordered), FILES_IN_A_COMMIT):
        some = ordered[first : first + FILES_IN_A_COMMIT]

        def change(transaction: "Transaction", some: list[DataFileRange] = some) -> None:
            paths = {file.path for file in some}
            planned = (task.file for task in table.scan(row_filter=_around(some)).plan_files())
            writing.replace_files(transaction, [file for file in planned if file.file_path in paths], [])

        writing.commit(table, change)
    return spans


def _around(files: list[DataFileRange]) -> str:
    """A filter for the files, and some between them."""
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
        f"{topic.name}-{partition}: {named}{more}. Such files are taken out of the table, and their "
        f"{sum(file.records for file in files)} records, between the offsets {intervals.text(spans)}, are read from "
        f"Kafka and appended ({RUNBOOK})"
    )


def _repair(topic: LandedTopic, taken: Mapping[int, Ranges], conn_id: str) -> None:
    """Read what is missing of these offsets from Kafka; then record what still is, and close the alarm if nothing."""
    landing_id = topic_id(load_landing_table(topic))
    spans = [(number, *span) for number, ranges in sorted(taken.items()) for span in ranges]
    due = [Gap(OffsetRange(topic.name, landing_id, *span), timedelta()) for span in spans]
    repair(topic, due, conn_id=conn_id)
    landed = LandingIndex(load_landing_table(topic))
    covered = {span: landed.covered(*span) for span in spans}
    with begin() as connection:
        for (number, start, end), found in covered.items():
            settled = gaps.settled(connection, landing_id, {number: start}, {number: end}).get(number, [])
            missing = intervals.subtract([(start, end)], intervals.union([*found, *settled]))
            both = {number: missing}, {number: (start, end)}
            gaps.record_missing(connection, topic.name, landing_id, *both, age=WITHOUT_GRACE)
        close_if_whole(connection, topic, landing_id)


def close_if_whole(connection: Any, topic: LandedTopic, landing_id: str) -> None:
    """Close the alarm about gaps if no offset of the table is on record as missing."""
    if not gaps.has_missing_outside(connection, landing_id, {}, {}):
        close_alarm(connection, raw_table(topic), AlarmKind.landing_gap)
