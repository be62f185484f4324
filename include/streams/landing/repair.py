"""Close gaps in a landing table: read exactly the missing offsets from Kafka and append them, once.

The offsets are repaired in steps of limited size, and each step is recorded. If the process is killed, the next try
continues after the last recorded step. Kafka and the store are read outside of transactions and without a lock.

If the process is killed before a commit, nothing was appended, and the next try reads the step's offsets again. If it
is killed after the commit, the next check finds that the offsets have landed. If two repairs run at once, a commit
succeeds only on the snapshot in which the offsets were missing. So the second fails, checks again, and finds nothing to
do in this step. Late files of the sink may still contain the same offsets. They are duplicates by coordinates, as after
any rewind of the sink, and each offset is read once (`units.py`).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.kafka.claims import ConsumerStopped
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader, ReadingStalled
from include.streams.landing import gaps, intervals
from include.streams.landing.gaps import RUNBOOK, Gap, State
from include.streams.landing.intervals import Ranges
from include.streams.landing.positions import check_same_topic
from include.streams.landing.sources import landed_index
from include.streams.landing.tables import (
    LandedTopic,
    headers_of,
    load_landing_table,
    raw_table,
    sink_group,
    topic_id,
)
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm
from include.streams.operations.database import begin

if TYPE_CHECKING:
    import pyarrow
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# The most bytes of values that are in memory at once and that one commit appends.
MAX_BYTES = 32 * 1024 * 1024
# Each transaction leaves a hole of one offset. Holes that are closer together than this are read in one pass, because a
# new start of reading takes about as long as reading this many records.
READ_THROUGH = 2_000
# The limits of a step: its offsets, including those that are only read through, and the bytes that it reads. A step
# takes seconds, and is repeated if the process is killed.
STEP_OFFSETS, STEP_BYTES = 100_000, 256 * 1024 * 1024
# Tries of one append. The sink commits every few seconds, so conflicts are normal.
COMMIT_TRIES = 10
REPAIR_PROPERTY = "landing.repair"


class RepairFailed(Exception):
    """Another writer committed first in every try. The retry continues after the records that were appended."""


@dataclass
class Repaired:
    """Counts of missing offsets: their records were appended, they hold no record, or retention has removed them."""

    appended: int = 0
    without_record: int = 0
    lost: int = 0


def repair(topic: LandedTopic, due: Iterable[Gap], *, conn_id: str = CONN_ID) -> Repaired:
    """Append the missing records of these gaps, and record the outcome of every offset.

    Offsets that hold no record are no loss. For offsets that retention has removed, an alarm reports the loss. They
    then count as settled, so that claims continue after them. A partition that has no leader, or cannot be read, keeps
    its gaps, and the other partitions do not wait for it.

    Args:
        topic: The landed topic.
        due: The gaps to repair.
        conn_id: The Airflow connection of Kafka.

    Returns:
        How many of the offsets had which outcome.

    Raises:
        RepairFailed: Another writer committed first in every try. Airflow retries, as it does when the catalog or the
            store is unavailable. The alarm is open then.
        ConsumerStopped: The topic was deleted and recreated.
    """
    from confluent_kafka import KafkaException

    repaired = Repaired()
    by_partition: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for gap in due:
        key = (gap.offsets.topic_id, gap.offsets.partition)
        by_partition.setdefault(key, []).append((gap.offsets.start, gap.offsets.end))
    if not by_partition:
        return repaired
    with GroupOffsets(sink_group(topic), conn_id, **CONSUMER_SETTINGS) as group:
        reader = RangeReader(group.consumer, batch_size=5_000)
        for (of_topic, partition), ranges in sorted(by_partition.items()):
            partition_repair = _Repair(topic, of_topic, partition, group, reader, repaired)
            try:
                partition_repair.close(intervals.union(ranges))
            except (KafkaException, ReadingStalled):
                # Not raised, because the other partitions must not wait for this one.
                log.exception("not repaired: %s-%d cannot be read", topic.name, partition)
                partition_repair.report("they cannot be read from Kafka")
            except ConsumerStopped:
                # Not reported here: the caller opens the alarm about a stopped consumer.
                raise
            except BaseException:
                # BaseException, because Airflow's timeout is not an Exception.
                partition_repair.report("their repair has failed")
                raise
    return repaired


class _Repair:
    """The repair of one partition."""

    def __init__(
        self,
        topic: LandedTopic,
        of_topic: str,
        partition: int,
        group: GroupOffsets,
        reader: RangeReader,
        repaired: Repaired,
    ) -> None:
        self.topic, self.of_topic, self.partition, self.group = topic, of_topic, partition, group
        self.reader, self.repaired = reader, repaired
        self.missing: Ranges = []
        self.reported: set[str] = set()

    def close(self, wanted: Ranges) -> None:
        # The lost offsets of all steps at once, so that one message of the alarm reports them.
        self.missing = self._without_lost(self._missing(load_landing_table(self.topic), wanted))
        for step in _steps(self.missing):
            self._close(step)

    def report(self, what: str) -> None:
        """Open the alarm about this partition, or add to it, once for each text. A later check closes it."""
        if what in self.reported:
            return
        self.reported.add(what)
        text = f"{self.topic.name}-{self.partition}: records have not landed; {what} ({RUNBOOK})"
        with begin() as connection:
            add_to_alarm(connection, raw_table(self.topic), AlarmKind.landing_gap, text)

    def _close(self, wanted: Ranges) -> None:
        while missing := self._without_lost(self._missing(load_landing_table(self.topic), wanted)):
            batch, holes = self._read(missing)
            if batch:
                self._append(batch)
            # After the commit. If the process is killed in between, the next try finds the holes again.
            gaps.record_outcome(self.topic.name, self.of_topic, self.partition, State.no_record, holes)
            if holes:
                self.repaired.without_record += intervals.total(holes)
                log.info("no record: %s partition=%d %s", self.topic.name, self.partition, intervals.text(holes))

    def _missing(self, table: "Table", wanted: Ranges) -> Ranges:
        if not wanted:
            return []
        if topic_id(table) != self.of_topic:
            log.warning("table %s was created again: its old gaps are gone", raw_table(self.topic))
            return []
        start, end = wanted[0][0], wanted[-1][1]
        landed = landed_index(self.topic, table).covered(self.partition, start, end)
        with begin() as connection:
            settled = gaps.settled(connection, self.of_topic, {self.partition: start}, {self.partition: end})
        return intervals.subtract(wanted, intervals.union([*landed, *settled.get(self.partition, [])]))

    def _without_lost(self, missing: Ranges) -> Ranges:
        """The missing offsets that Kafka still has; those that retention has removed are recorded as lost."""
        if not missing:
            return []
        partition = Partition(self.topic.name, self.partition)
        kafka = self.group.fetch_offsets_sync([self.topic.name], needs_committed=False, only=partition)
        check_same_topic(self.topic, self.of_topic, kafka)
        if (offsets := kafka.get(partition)) is None:
            self.report("it has no leader")
            return []
        lost = intervals.subtract(missing, [(offsets.low, max(offsets.low, missing[-1][1]))])
        if lost:
            text = (
                f"{intervals.total(lost)} offsets of {self.topic.name}-{self.partition} are in no landed file, and "
                f"retention has removed them from Kafka: {intervals.text(lost)}. They are lost; the offsets after them "
                f"are processed ({RUNBOOK})"
            )
            # Before `record_outcome`, which settles the offsets. In the other order, a kill in between would mean that
            # they are never checked again, and the loss is never reported.
            with begin() as connection:
                add_to_alarm(connection, raw_table(self.topic), AlarmKind.messages_lost, text)
            gaps.record_outcome(self.topic.name, self.of_topic, self.partition, State.lost, lost)
            self.repaired.lost += intervals.total(lost)
        # Only up to the end that Kafka shows: after the beginning of an open transaction, or after a truncation,
        # nothing can be decided yet.
        return intervals.intersect(missing, [(offsets.low, max(offsets.low, offsets.end))])

    def _read(self, missing: Ranges) -> tuple[list[Message], Ranges]:
        """Read the records of these offsets, as many as one commit appends.

        Returns:
            (records, holes): holes are the requested offsets that hold no record, up to where the reading ended.
        """
        records: list[Message] = []
        holes: Ranges = []
        size = read = 0
        for span in _spans(missing):
            offsets: list[int] = []
            wanted = iter(span)
            first, last = next(wanted)
            done = span[-1][1]
            for message in self._messages(span[0][0], done):
                read += message.size_bytes
                while message.offset >= last:
                    first, last = next(wanted)
                if message.offset >= first:
                    records.append(message)
                    offsets.append(message.offset)
                    size += len(message.value or b"")
                if size >= MAX_BYTES or read >= STEP_BYTES:
                    done = message.offset + 1
                    break
            if self.reader.gone:
                # Retention has removed some offsets in the meantime. They are no holes; the next pass records them as
                # lost.
                return records, holes
            holes += intervals.subtract(intervals.between(span, span[0][0], done), intervals.of_numbers(offsets))
            if done < span[-1][1]:
                break
        return records, holes

    def _messages(self, start: int, end: int) -> Iterator[Message]:
        for batch in self.reader.read(OffsetRange(self.topic.name, self.of_topic, self.partition, start, end)):
            yield from batch

    def _append(self, batch: list[Message]) -> None:
        """Append the records, without those that have landed in the meantime.

        The table is loaded again after the reading, and before each further try. So only a commit during the upload is
        a conflict, and a conflict does not repeat the reading: a busy sink commits more often than a large gap can be
            read.

        Raises:
            RepairFailed: Another writer committed first in each try.
        """
        for _ in range(COMMIT_TRIES):
            table = load_landing_table(self.topic)
            read = intervals.of_numbers(message.offset for message in batch)
            missing = self._missing(table, read)
            if missing != read:
                batch = [m for m in batch if intervals.between(missing, m.offset, m.offset + 1)]
            if not batch or self._is_appended(table, batch):
                return
        raise RepairFailed(f"table {raw_table(self.topic)} was changed at each of {COMMIT_TRIES} tries")

    def _is_appended(self, table: "Table", batch: list[Message]) -> bool:
        """Append the records; returns False when another writer has committed since the table was loaded."""
        from pyiceberg.exceptions import CommitFailedException

        from include.streams.lake.writing import only_on_this_state

        # Before the append, so that it is reported even if the process is killed in between.
        count, where = intervals.total(self.missing), intervals.text(self.missing)
        self.report(f"they are read from Kafka and appended. {count} offsets were missing: {where}")
        only_on_this_state(table)
        first, last = batch[0].offset, batch[-1].offset
        what = f"{self.topic.name}-{self.partition} [{first}, {last + 1}) {len(batch)} records"
        try:
            table.append(_rows(table, batch), snapshot_properties={REPAIR_PROPERTY: what})
        except CommitFailedException as error:
            log.info("%s: changed in the meantime, checked again: %s", raw_table(self.topic), error)
            return False
        log.warning("repaired: table=%s %s", raw_table(self.topic), what)
        numbers = intervals.of_numbers(message.offset for message in batch)
        gaps.record_outcome(self.topic.name, self.of_topic, self.partition, State.repaired, numbers, len(batch))
        self.repaired.appended += len(batch)
        return True


def _steps(ranges: Ranges) -> Iterator[Ranges]:
    """Cut the ranges into steps of at most STEP_OFFSETS offsets; offsets that are only read through count too."""
    step: Ranges = []
    left = STEP_OFFSETS
    for start, end in ranges:
        left -= min(start - step[-1][1], READ_THROUGH) if step else 0
        while start < end:
            if left <= 0:
                yield step
                step, left = [], STEP_OFFSETS
            cut = min(end, start + left)
            step.append((start, cut))
            left -= cut - start
            start = cut
    if step:
        yield step


def _spans(missing: Ranges) -> Iterator[Ranges]:
    """Group ranges that are close enough together for one read."""
    span: Ranges = []
    for start, end in missing:
        if span and start - span[-1][1] > READ_THROUGH:
            yield span
            span = []
        span.append((start, end))
    if span:
        yield span


def _rows(table: "Table", batch: list[Message]) -> "pyarrow.Table":
    """The rows as the sink would have written them."""
    import pyarrow

    columns: dict[str, list] = {
        "topic": [message.topic for message in batch],
        "partition": [message.partition for message in batch],
        "offset": [message.offset for message in batch],
        "timestamp": [message.timestamp for message in batch],
        # Bytes that are not UTF-8 are replaced, as Connect's string converter does.
        "value": [None if message.value is None else message.value.decode("utf-8", "replace") for message in batch],
    }
    headers = headers_of(table)
    for name in headers:
        # If a name occurs several times, the last header counts, as in `parse`.
        columns[header_column(name)] = [dict(message.headers).get(name) for message in batch]
    if headers:
        columns[HEADERS_LANDED] = [",".join(headers)] * len(batch)
    return pyarrow.table(columns, schema=table.schema().as_arrow())
