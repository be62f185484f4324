"""Close gaps in a landing table: read exactly the missing offsets from Kafka and append them, once.

If the process is killed before a commit, nothing was appended, and the next try reads the offsets again. If it is
killed after the commit, the next check finds that the offsets have landed. Two repairs at once: a commit succeeds only
on the same snapshot in which the offsets were missing, so the second fails, checks again and finds nothing to do. Late
files of the sink may still bring the same offsets. They are duplicates by coordinates, as after any rewind of the sink,
and are read once (`planning.py`).
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.kafka.connection import CONN_ID
from include.kafka.messages import Message
from include.kafka.offsets import GroupOffsets, OffsetRange, Partition
from include.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.landing import gaps, intervals
from include.landing.gaps import Gap, State
from include.landing.intervals import Ranges
from include.landing.landed import Landed
from include.landing.tables import LandedTopic, load_landing_table, raw_table, sink_group, topic_id
from include.landing.verification import LOST_ALARM, RUNBOOK, check_same_topic
from include.operations.alarms import add_to_alarm
from include.operations.database import begin

if TYPE_CHECKING:
    import pyarrow
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# The limits of what is in memory at once and of what one commit appends.
MAX_RECORDS, MAX_BYTES = 100_000, 32 * 1024 * 1024
# Each transaction leaves a hole of one offset. Holes that are closer together than this are read in one go.
READ_THROUGH = 2_000
# The sink commits every few seconds, so conflicts are normal.
COMMIT_TRIES = 10
REPAIR_PROPERTY = "landing.repair"


class RepairFailed(Exception):
    """Other writers committed first at every try. The retry continues after what was appended."""


@dataclass
class Repaired:
    """Counts of missing offsets: their records were appended, they hold no record, or retention has removed them."""

    appended: int = 0
    without_record: int = 0
    lost: int = 0


def repair(topic: LandedTopic, due: Iterable[Gap], *, conn_id: str = CONN_ID) -> Repaired:
    """Append the missing records of these gaps, and record the outcome of every offset.

    Offsets that hold no record are not a loss. For offsets that retention has removed, an alarm states the loss. They
    then count as settled, so that claims go past them.

    Args:
        topic: The landed topic.
        due: The gaps to repair.
        conn_id: The Airflow connection of Kafka.

    Returns:
        What became of the offsets.

    Raises:
        KafkaException, ReadingStalled, RepairFailed: Airflow retries, as for what the catalog and the store raise.
    """
    repaired = Repaired()
    by_partition: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for gap in due:
        key = (gap.offsets.topic_id, gap.offsets.partition)
        by_partition.setdefault(key, []).append((gap.offsets.start, gap.offsets.end))
    for (of_topic, partition), ranges in sorted(by_partition.items()):
        with gaps.repairing(of_topic), GroupOffsets(sink_group(topic), conn_id, **CONSUMER_SETTINGS) as group:
            _Repair(topic, of_topic, partition, group, repaired).close(intervals.union(ranges))
    return repaired


class _Repair:
    """The repair of one partition."""

    def __init__(
        self, topic: LandedTopic, of_topic: str, partition: int, group: GroupOffsets, repaired: Repaired
    ) -> None:
        self.topic, self.of_topic, self.partition, self.group = topic, of_topic, partition, group
        self.repaired = repaired
        self.reader = RangeReader(group.consumer, batch_size=5_000)

    def close(self, wanted: Ranges) -> None:
        conflicts = 0
        while True:
            table = load_landing_table(self.topic)
            missing = self._missing(table, wanted)
            missing = self._without_lost(missing)
            if not missing:
                return
            span = _first_span(missing)
            batch, read_to = self._read(span)
            holes = intervals.intersect(span, [(span[0][0], read_to)])
            if batch:
                holes = intervals.subtract(holes, intervals.of_numbers(message.offset for message in batch))
                if not self._append(table, batch):
                    conflicts += 1
                    if conflicts == COMMIT_TRIES:
                        raise RepairFailed(f"table {raw_table(self.topic)} was changed at each of {conflicts} tries")
                    continue
            # After the commit: if the process is killed in between, the holes are found again.
            if holes and not self.reader.gone:
                gaps.record(self.topic.name, self.of_topic, self.partition, State.no_record, holes)
                self.repaired.without_record += intervals.total(holes)
                log.info("no record: %s partition=%d %s", self.topic.name, self.partition, intervals.text(holes))

    def _missing(self, table: "Table", wanted: Ranges) -> Ranges:
        if topic_id(table) != self.of_topic:
            log.warning("table %s was made again: its old gaps are gone", raw_table(self.topic))
            return []
        start = wanted[0][0]
        landed = Landed(table).covered(self.partition, start, wanted[-1][1])
        with begin() as connection:
            settled = gaps.settled(connection, self.of_topic, {self.partition: start}).get(self.partition, [])
        return intervals.subtract(wanted, intervals.union([*landed, *settled]))

    def _without_lost(self, missing: Ranges) -> Ranges:
        """The missing offsets that Kafka still has; those that retention has removed are recorded as lost."""
        if not missing:
            return []
        kafka = self.group.look_now([self.topic.name])
        check_same_topic(self.topic, self.of_topic, kafka)
        offsets = kafka.get(Partition(self.topic.name, self.partition))
        if offsets is None:
            raise LookupError(f"{self.topic.name}-{self.partition} has no leader or does not exist; try again")
        lost = intervals.subtract(missing, [(offsets.low, max(offsets.low, missing[-1][1]))])
        if lost:
            text = (
                f"{intervals.total(lost)} offsets of {self.topic.name}-{self.partition} never landed, and retention "
                f"has removed them from Kafka: {intervals.text(lost)}. They are lost; those behind them are processed "
                f"({RUNBOOK})"
            )
            # Before `record`, which settles the offsets: if the process is killed in between, they would never be
            # checked again, and the loss would never be reported.
            with begin() as connection:
                add_to_alarm(connection, raw_table(self.topic), LOST_ALARM, text)
            gaps.record(self.topic.name, self.of_topic, self.partition, State.lost, lost)
            self.repaired.lost += intervals.total(lost)
        # Not beyond what Kafka shows: behind an open transaction, or after a truncation, nothing can be decided yet.
        return intervals.intersect(missing, [(offsets.low, max(offsets.low, offsets.end))])

    def _read(self, span: Ranges) -> tuple[list[Message], int]:
        """Read the records of the span, as many as one commit appends; returns (records, end of what was read)."""
        found: list[Message] = []
        size, wanted = 0, iter(span)
        first, last = next(wanted)
        whole = OffsetRange(self.topic.name, self.of_topic, self.partition, span[0][0], span[-1][1])
        for batch in self.reader.read(whole):
            for message in batch:
                while message.offset >= last:
                    first, last = next(wanted)
                if message.offset < first:
                    continue
                found.append(message)
                size += len(message.value or b"")
                if len(found) >= MAX_RECORDS or size >= MAX_BYTES:
                    return found, message.offset + 1
        return found, whole.end

    def _append(self, table: "Table", batch: list[Message]) -> bool:
        """Append the records; returns False when somebody else has committed since the table was loaded."""
        from pyiceberg.exceptions import CommitFailedException

        from include.lake.writing import only_on_this_state

        only_on_this_state(table)
        first, last = batch[0].offset, batch[-1].offset
        what = f"{self.topic.name}-{self.partition} [{first}, {last + 1}) {len(batch)} records"
        try:
            table.append(_rows(table, batch), snapshot_properties={REPAIR_PROPERTY: what})
        except CommitFailedException as error:
            log.info("%s: changed meanwhile, looking again: %s", raw_table(self.topic), error)
            return False
        log.warning("repaired: table=%s %s", raw_table(self.topic), what)
        numbers = intervals.of_numbers(message.offset for message in batch)
        gaps.record(self.topic.name, self.of_topic, self.partition, State.repaired, numbers, len(batch))
        self.repaired.appended += len(batch)
        return True


def _first_span(missing: Ranges) -> Ranges:
    """The first ranges that are close enough together for one read."""
    span = [missing[0]]
    for start, end in missing[1:]:
        if start - span[-1][1] > READ_THROUGH:
            break
        span.append((start, end))
    return span


def _rows(table: "Table", batch: list[Message]) -> "pyarrow.Table":
    """The rows as the sink would have written them."""
    import pyarrow

    columns = {
        "topic": [message.topic for message in batch],
        "partition": [message.partition for message in batch],
        "offset": [message.offset for message in batch],
        "timestamp": [message.timestamp for message in batch],
        # Bytes that are not UTF-8 are replaced, as Connect's string converter does.
        "value": [None if message.value is None else message.value.decode("utf-8", "replace") for message in batch],
    }
    return pyarrow.table(columns, schema=table.schema().as_arrow())
