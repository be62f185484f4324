"""A consistent view of a landing table: which offsets it holds, and which are missing.

`LandingSnapshot.load` reads Kafka, the catalog, the store and the operational database once. The gaps, the offsets that
can be claimed, and the files that hold them are computed from this state, without further reads. So all decisions of a
task are based on the same state.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from include.streams.kafka.claims import fair_shares
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.landing import gaps, intervals, log_ends, units
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import Gap
from include.streams.landing.index import contiguous_end
from include.streams.landing.intervals import Ranges
from include.streams.landing.objects import objects_of
from include.streams.landing.positions import check_same_topic, next_offsets
from include.streams.landing.sources import ends_before, landed_index
from include.streams.landing.stored import FileOffsets
from include.streams.landing.tables import (
    LandedTopic,
    columns_of,
    load_landing_table,
    sink_group,
    start_offsets,
    topic_id,
)
from include.streams.landing.units import FileSlice
from include.streams.landing.xcom import TableColumn
from include.streams.operations.database import begin

if TYPE_CHECKING:
    pass

# The grace period for missing offsets before landed offsets: because the sink lands a partition in order, they are a
# gap as soon as the later offsets have been in the table for this long. The period allows for two commits instead of
# one. The time is taken from the table's snapshots, not from the first check: otherwise a lane that catches up would
# wait again for each part of its backlog.
INNER_GRACE = timedelta(seconds=30)

# Arguments: a connection to the operational database, the landing table's topic id. Returns {partition: offset}.
Starts = Callable[[Connection, str], Mapping[int, int]]


@dataclass(frozen=True)
class LandingSnapshot:
    """A landing table at one moment, from one offset of each partition on.

    Attributes:
        topic: The topic's name.
        topic_id: The landing table's topic id.
        location: The address of the landing table.
        columns: The columns of the landing table.
        begins: {partition: the offset from which the table should be complete}.
        checked: {partition: (start, end) of the offsets that this snapshot covers}.
        ends: {partition: the end of the offsets that should have landed}.
        files: {partition: the files that overlap these offsets, sorted by first offset}.
        settled: {partition: the offsets that are recorded as holding no record or as lost}.
        kafka: The offsets of the topic's partitions in Kafka, without those in `unanswered`; empty in a snapshot
            `of_ranges`.
        lost: {partition: what happened} where the log has lost landed records.
        unanswered: The partitions whose log could not be compared with what has landed.
        long_landed: {partition: the end of what had landed INNER_GRACE ago}; empty if no offset is missing.
        max_offsets: How many offsets the caller needs; None: all.
    """

    topic: str
    topic_id: str
    location: str
    columns: list[TableColumn]
    begins: Mapping[int, int]
    checked: Mapping[int, tuple[int, int]]
    ends: Mapping[int, int]
    files: Mapping[int, Sequence[FileOffsets]]
    settled: Mapping[int, Ranges]
    kafka: Mapping[Partition, PartitionOffsets]
    lost: Mapping[Partition, str]
    unanswered: Set[Partition]
    long_landed: Mapping[int, int]
    max_offsets: int | None = None

    @classmethod
    def load(cls, consumer: LandingConsumer) -> "LandingSnapshot":
        """Read the offsets that the consumer's next claim can take, from its positions on.

        Args:
            consumer: The landing consumer.

        Raises:
            ConsumerStopped: The topic was deleted and recreated.
            BrokenFiles: The store has lost or truncated some of the files.
            KafkaException: The broker is unavailable or refuses.
            Exception: The catalog, the store or the database is unavailable.
        """
        return cls._load(
            consumer.topic,
            lambda connection, of_topic: next_offsets(connection, consumer, of_topic),
            max_offsets=consumer.max_messages_per_claim,
            conn_id=consumer.conn_id,
        )

    @classmethod
    def of_topic(
        cls,
        topic: LandedTopic,
        starts: Mapping[int, int] | None = None,
        *,
        max_offsets: int | None = None,
        conn_id: str = CONN_ID,
    ) -> "LandingSnapshot":
        """Read a topic's table, independent of its consumers. Raises as `load` does.

        Args:
            topic: The landed topic.
            starts: {partition: the first offset to read}; by default where the table begins.
            max_offsets: How many offsets the caller needs. Of each partition, this many landed offsets are read;
                offsets without a file are not counted. None: all.
            conn_id: The Airflow connection of Kafka.
        """
        return cls._load(topic, lambda *_: starts or {}, max_offsets=max_offsets, conn_id=conn_id)

    @classmethod
    def _load(
        cls, topic: LandedTopic, starts_of: Starts, *, max_offsets: int | None, conn_id: str
    ) -> "LandingSnapshot":
        with GroupOffsets(sink_group(topic), conn_id, **CONSUMER_SETTINGS) as group:
            # Kafka is read before the table, so that the committed offsets have had more time to land.
            kafka = group.fetch_offsets_sync([topic.name])
            table = load_landing_table(topic)
            landing_id = topic_id(table)
            check_same_topic(topic, landing_id, kafka)
            landed, begins = landed_index(topic, table, at_once=True), start_offsets(table)
            landed.prove({p.number: found.committed for p, found in kafka.items() if found.committed is not None})
            if any(offsets.end < landed.end(partition.number) for partition, offsets in kafka.items()):
                kafka = _fetch_again(topic, group, kafka)
            logs = log_ends.compare(topic, table, landed, kafka, group)
        kafka = {partition: offsets for partition, offsets in kafka.items() if partition not in logs.unanswered}
        numbers = sorted({partition.number for partition in kafka} | set(landed.partitions) | set(begins))
        with begin() as connection:
            starts = starts_of(connection, landing_id)
            from_offsets = {number: starts.get(number, begins.get(number, 0)) for number in numbers}
            ends: dict[int, int] = {}
            to_offsets: dict[int, int] = {}
            for number, start in from_offsets.items():
                landed_end = landed.end(number)
                offsets = kafka.get(Partition(topic.name, number))
                ends[number] = max(start, landed_end, (offsets and offsets.committed) or 0)
                # The limit is for offsets in files. Offsets at the end that are in no file cost nothing, and all of
                # them are recorded now. Otherwise the grace period would begin again with each part.
                is_far = max_offsets is not None and start + max_offsets < landed_end
                to_offsets[number] = start + max_offsets if is_far else ends[number]  # type: ignore[operator]
            settled = gaps.settled(connection, landing_id, from_offsets, to_offsets)
        long_landed: dict[int, int] = {}
        snapshot = cls(
            topic=topic.name,
            topic_id=landing_id,
            location=table.location(),
            columns=columns_of(table),
            begins=begins,
            checked={number: (start, to_offsets[number]) for number, start in from_offsets.items()},
            ends=ends,
            # Outside of the transaction: after an outage the files take long to read, and the server ends idle
            # transactions.
            files={
                number: landed.files_with_offsets(number, start, to_offsets[number])
                for number, start in from_offsets.items()
            },
            settled=settled,
            kafka=kafka,
            lost=logs.lost,
            unanswered=logs.unanswered,
            long_landed=long_landed,
            max_offsets=max_offsets,
        )
        if any(snapshot.gaps().values()):
            source = objects_of(topic)
            grace = INNER_GRACE if source is None else source.order_grace
            # Updated in place, because a copy would compute the offsets again, which takes long for a topic with
            # transactions.
            long_landed.update(ends_before(topic, table, datetime.now(UTC) - grace, numbers))
        return snapshot

    @classmethod
    def of_ranges(cls, topic: LandedTopic, ranges: Iterable[OffsetRange]) -> "LandingSnapshot":
        """Read the files that hold the ranges of a claim now. Kafka is not queried.

        Args:
            topic: The landed topic.
            ranges: The claim's ranges.

        Raises:
            BrokenFiles: The store has lost or truncated some of the files.
            Exception: The catalog, the store or the database is unavailable.
        """
        table = load_landing_table(topic)
        landed = landed_index(topic, table)
        checked: dict[int, tuple[int, int]] = {}
        for part in ranges:
            start, end = checked.get(part.partition, (part.start, part.end))
            checked[part.partition] = (min(start, part.start), max(end, part.end))
        with begin() as connection:
            # Gaps are recorded under the table's own id. A claim may have the id of a later generation of the log.
            settled = gaps.settled(connection, topic_id(table), *_starts_and_ends(checked))
        return cls(
            topic=topic.name,
            topic_id=topic_id(table),
            location=table.location(),
            columns=columns_of(table),
            begins=start_offsets(table),
            checked=checked,
            ends=_starts_and_ends(checked)[1],
            files={number: landed.files_with_offsets(number, *span) for number, span in checked.items()},
            settled=settled,
            kafka={},
            lost={},
            unanswered=frozenset(),
            long_landed={},
        )

    @cached_property
    def covered(self) -> Mapping[int, Ranges]:
        """{partition: the offsets that have landed or are settled}, within `checked`."""
        return {
            number: intervals.union(
                [
                    *intervals.between(intervals.union(r for held in self.files[number] for r in held.offsets), *span),
                    *self.settled.get(number, []),
                ]
            )
            for number, span in self.checked.items()
        }

    def gaps(self) -> Mapping[int, Ranges]:
        """{partition: the offsets that are missing}, within `checked`."""
        return self._gaps

    @cached_property
    def _gaps(self) -> Mapping[int, Ranges]:
        return {number: intervals.subtract([span], self.covered[number]) for number, span in self.checked.items()}

    def is_comparable(self, gap: Gap) -> bool:
        """Whether Kafka's log still holds the gap's own records; otherwise Kafka would return other records."""
        partition = Partition(self.topic, gap.offsets.partition)
        return partition not in self.lost and partition not in self.unanswered

    def due(self, known: Iterable[Gap], grace: timedelta) -> list[Gap]:
        """The gaps that are older than their grace period.

        Args:
            known: Gaps of this snapshot, with their age.
            grace: How long offsets at the end of a partition may be missing.
        """
        return [
            gap
            for gap in known
            if gap.offsets.end <= self.long_landed.get(gap.offsets.partition, 0) or gap.age >= grace
        ]

    def needed(self, known: Iterable[Gap]) -> list[Gap]:
        """The parts of the gaps that a claim of `max_offsets` offsets would take."""
        if self.max_offsets is None:
            ends = {number: end for number, (_, end) in self.checked.items()}
        else:
            wanted = {Partition(self.topic, n): end - start for n, (start, end) in self.checked.items()}
            shares = fair_shares(wanted, self.max_offsets)
            ends = {partition.number: self.checked[partition.number][0] + share for partition, share in shares.items()}
        return [cut for gap in known if (cut := _cut(gap, ends[gap.offsets.partition]))]

    def end(self, partition: int, start: int) -> int:
        """The first missing offset of the partition from `start` on; `start` if the log has lost landed records.

        Args:
            partition: The Kafka partition.
            start: The first offset to check.
        """
        if Partition(self.topic, partition) in self.lost:
            return start
        return contiguous_end(start, self.covered.get(partition, []))

    def available(self, next_now: Mapping[int, int]) -> dict[Partition, PartitionOffsets]:
        """The offsets that can be claimed: each partition up to its first gap.

        Args:
            next_now: {partition: the next offset that the consumer has not claimed}, read under the lock of the claim.
        """
        claimable: dict[Partition, PartitionOffsets] = {}
        for partition, offsets in self.kafka.items():
            low = self.begins.get(partition.number, 0)
            start = max(low, next_now.get(partition.number, low))
            # Another run may have claimed since the snapshot, so end < start is normal and does not mean a truncated
            # log. If the log itself ends before the claimed offsets, it was truncated, and the claim stops the
            # consumer.
            end = max(start, self.end(partition.number, start)) if offsets.end >= start else offsets.end
            claimable[partition] = PartitionOffsets(offsets.topic_id, low, end, leader_epoch=offsets.leader_epoch)
        return claimable

    def slices(self, ranges: Iterable[OffsetRange]) -> dict[OffsetRange, list[FileSlice]]:
        """Which slices of which files hold the ranges.

        Args:
            ranges: Ranges of a claim, within `checked`.

        Raises:
            NotLanded: An offset is in no file, and is not settled.
        """
        return {
            wanted: units.slices(self.files.get(wanted.partition, ()), wanted, self.settled.get(wanted.partition, []))
            for wanted in sorted(ranges, key=lambda part: (part.partition, part.start))
        }


def _fetch_again(
    topic: LandedTopic, group: GroupOffsets, before: Mapping[Partition, PartitionOffsets]
) -> dict[Partition, PartitionOffsets]:
    """Fetch the offsets again after the table was loaded, and keep the committed offsets of the first fetch.

    Needed when the table has offsets beyond the first fetch: either more has landed since, or a log has lost its end.
    """
    now = group.fetch_offsets_sync([topic.name], needs_committed=False)
    return {p: replace(offsets, committed=before[p].committed) for p, offsets in now.items() if p in before}


def _starts_and_ends(checked: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], dict[int, int]]:
    return {n: start for n, (start, _) in checked.items()}, {n: end for n, (_, end) in checked.items()}


def _cut(gap: Gap, end: int) -> Gap | None:
    """The part of the gap before `end`."""
    if gap.offsets.start >= end:
        return None
    return replace(gap, offsets=replace(gap.offsets, end=min(end, gap.offsets.end)))
