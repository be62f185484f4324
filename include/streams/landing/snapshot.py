"""What a landing table holds and lacks, read once.

`LandingSnapshot.load` asks Kafka, the catalog, the store and the operational database. What follows from the answers is
computed from them alone: the gaps, what can be claimed, and which files hold it. So a task asks once, and all that it
decides fits together.
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
from include.streams.landing.intervals import Ranges
from include.streams.landing.landed import Landed, contiguous_end
from include.streams.landing.positions import check_same_topic, next_offsets
from include.streams.landing.stored import HeldFile
from include.streams.landing.tables import LandedTopic, load_landing_table, sink_group, start_offsets, topic_id
from include.streams.landing.units import FileSlice
from include.streams.landing.xcom import TableColumn
from include.streams.operations.database import begin

if TYPE_CHECKING:
    from pyiceberg.table import Table

# For missing offsets below offsets that have landed: the sink lands a partition in order. The later offsets must have
# been in the table for this long, which allows for a commit that was cut in two. The table's snapshots say for how
# long, not the first check: a lane that catches up would wait again for each part of its backlog.
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
        looked: {partition: (start, end) of the offsets that were looked at}.
        ends: {partition: the end of the offsets that should have landed}.
        files: {partition: the files that overlap these offsets, sorted by first offset}.
        settled: {partition: the offsets that are recorded as holding no record or as lost}.
        kafka: The offsets of the topic's partitions in Kafka, without those in `unanswered`; empty in a snapshot
            `of_ranges`.
        lost: {partition: what happened} where the log has lost records that have landed.
        unanswered: The partitions whose log could not be compared with what has landed.
        long_landed: {partition: the end of what had landed INNER_GRACE ago}; empty if no offset is missing.
        most: How many offsets the caller needs; None: all.
    """

    topic: str
    topic_id: str
    location: str
    columns: list[TableColumn]
    begins: Mapping[int, int]
    looked: Mapping[int, tuple[int, int]]
    ends: Mapping[int, int]
    files: Mapping[int, Sequence[HeldFile]]
    settled: Mapping[int, Ranges]
    kafka: Mapping[Partition, PartitionOffsets]
    lost: Mapping[Partition, str]
    unanswered: Set[Partition]
    long_landed: Mapping[int, int]
    most: int | None = None

    @classmethod
    def load(cls, consumer: LandingConsumer) -> "LandingSnapshot":
        """Read what the consumer's next claim can take, from its positions on.

        Args:
            consumer: The landing consumer.

        Raises:
            ConsumerStopped: The topic was deleted and recreated.
            BrokenFiles: The store has lost or cut some of the files.
            KafkaException: The broker is unavailable or refuses.
            Exception: What the catalog, the store and the database raise.
        """
        return cls._load(
            consumer.topic,
            lambda connection, of_topic: next_offsets(connection, consumer, of_topic),
            most=consumer.max_messages_per_claim,
            conn_id=consumer.conn_id,
        )

    @classmethod
    def of_topic(
        cls,
        topic: LandedTopic,
        starts: Mapping[int, int] | None = None,
        *,
        most: int | None = None,
        conn_id: str = CONN_ID,
    ) -> "LandingSnapshot":
        """Read a topic's table, whoever consumes it. Raises what `load` raises.

        Args:
            topic: The landed topic.
            starts: {partition: the first offset to look at}; by default where the table begins.
            most: How many offsets the caller needs. Of each partition, so many of its landed offsets are looked at.
                None: all.
            conn_id: The Airflow connection of Kafka.
        """
        return cls._load(topic, lambda *_: starts or {}, most=most, conn_id=conn_id)

    @classmethod
    def _load(cls, topic: LandedTopic, starts_of: Starts, *, most: int | None, conn_id: str) -> "LandingSnapshot":
        with GroupOffsets(sink_group(topic), conn_id, **CONSUMER_SETTINGS) as group:
            # Read Kafka before the table: offsets that are committed by now have had more time to land.
            kafka = group.fetch_offsets_sync([topic.name])
            table = load_landing_table(topic)
            landing_id = topic_id(table)
            check_same_topic(topic, landing_id, kafka)
            landed, begins = Landed(table), start_offsets(table)
            if any(offsets.end < landed.end(partition.number) for partition, offsets in kafka.items()):
                kafka = _looked_again(topic, group, kafka)
            logs = log_ends.compare(topic, table, landed, kafka, group)
        kafka = {partition: offsets for partition, offsets in kafka.items() if partition not in logs.unanswered}
        numbers = sorted({partition.number for partition in kafka} | set(landed.partitions) | set(begins))
        with begin() as connection:
            starts = starts_of(connection, landing_id)
            froms = {number: starts.get(number, begins.get(number, 0)) for number in numbers}
            ends: dict[int, int] = {}
            tos: dict[int, int] = {}
            for number, start in froms.items():
                landed_end = landed.end(number)
                offsets = kafka.get(Partition(topic.name, number))
                ends[number] = max(start, landed_end, (offsets and offsets.committed) or 0)
                # The limit is for offsets in files. Those at the end, which are in none, cost nothing, and all of them
                # are noted now: their grace must not begin again with each part.
                is_far = most is not None and start + most < landed_end
                tos[number] = start + most if is_far else ends[number]  # type: ignore[operator]
            settled = gaps.settled(connection, landing_id, froms, tos)
        long_landed: dict[int, int] = {}
        found = cls(
            topic=topic.name,
            topic_id=landing_id,
            location=table.location(),
            columns=_columns(table),
            begins=begins,
            looked={number: (start, tos[number]) for number, start in froms.items()},
            ends=ends,
            # In no transaction: the files take long to read after an outage, and the server ends a transaction that
            # idles.
            files={number: landed.held(number, start, tos[number]) for number, start in froms.items()},
            settled=settled,
            kafka=kafka,
            lost=logs.lost,
            unanswered=logs.unanswered,
            long_landed=long_landed,
            most=most,
        )
        if any(found.gaps().values()) and (before := Landed.before(table, datetime.now(UTC) - INNER_GRACE)) is not None:
            # Not in a copy: the offsets of a topic with transactions take as long to compute as to read.
            long_landed.update((number, before.end(number)) for number in numbers)
        return found

    @classmethod
    def of_ranges(cls, topic: LandedTopic, ranges: Iterable[OffsetRange]) -> "LandingSnapshot":
        """Read what holds the ranges of a claim now. Kafka is not asked.

        Args:
            topic: The landed topic.
            ranges: The claim's ranges.

        Raises:
            BrokenFiles: The store has lost or cut some of the files.
            Exception: What the catalog, the store and the database raise.
        """
        table = load_landing_table(topic)
        landed = Landed(table)
        looked: dict[int, tuple[int, int]] = {}
        for part in ranges:
            start, end = looked.get(part.partition, (part.start, part.end))
            looked[part.partition] = (min(start, part.start), max(end, part.end))
        with begin() as connection:
            # Gaps are recorded under the table's own id: a claim may be of a later generation of the log.
            settled = gaps.settled(connection, topic_id(table), *_both(looked))
        return cls(
            topic=topic.name,
            topic_id=topic_id(table),
            location=table.location(),
            columns=_columns(table),
            begins=start_offsets(table),
            looked=looked,
            ends=_both(looked)[1],
            files={number: landed.held(number, *both) for number, both in looked.items()},
            settled=settled,
            kafka={},
            lost={},
            unanswered=frozenset(),
            long_landed={},
        )

    @cached_property
    def covered(self) -> Mapping[int, Ranges]:
        """{partition: the offsets that have landed or are settled, of those that were looked at}."""
        return {
            number: intervals.union(
                [
                    *intervals.between(intervals.union(r for held in self.files[number] for r in held.offsets), *both),
                    *self.settled.get(number, []),
                ]
            )
            for number, both in self.looked.items()
        }

    def gaps(self) -> Mapping[int, Ranges]:
        """{partition: the offsets that are missing, of those that were looked at}."""
        return self._gaps

    @cached_property
    def _gaps(self) -> Mapping[int, Ranges]:
        return {number: intervals.subtract([both], self.covered[number]) for number, both in self.looked.items()}

    def is_comparable(self, gap: Gap) -> bool:
        """Whether Kafka's log holds what this table lacks there; otherwise Kafka would answer with other records."""
        partition = Partition(self.topic, gap.offsets.partition)
        return partition not in self.lost and partition not in self.unanswered

    def due(self, known: Iterable[Gap], grace: timedelta) -> list[Gap]:
        """The gaps that have outlived their grace period.

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
        """The gaps, as far as a claim of `most` offsets would take their offsets."""
        if self.most is None:
            ends = {number: end for number, (_, end) in self.looked.items()}
        else:
            wanted = {Partition(self.topic, n): end - start for n, (start, end) in self.looked.items()}
            shares = fair_shares(wanted, self.most)
            ends = {partition.number: self.looked[partition.number][0] + share for partition, share in shares.items()}
        return [cut for gap in known if (cut := _cut(gap, ends[gap.offsets.partition]))]

    def end(self, partition: int, start: int) -> int:
        """The first offset of the partition, from `start` on, that is missing; `start` if its log is not the same."""
        if Partition(self.topic, partition) in self.lost:
            return start
        return contiguous_end(start, self.covered.get(partition, []))

    def available(self, next_now: Mapping[int, int]) -> dict[Partition, PartitionOffsets]:
        """The offsets that can be claimed: each partition up to its first gap.

        Args:
            next_now: {partition: the next offset that the consumer has not claimed}, read under the lock of the claim.
        """
        found: dict[Partition, PartitionOffsets] = {}
        for partition, offsets in self.kafka.items():
            low = self.begins.get(partition.number, 0)
            start = max(low, next_now.get(partition.number, low))
            # Another run may have claimed since the snapshot, so end < start is normal and does not mean a truncated
            # log. If the log itself ends before the claimed offsets, it was truncated, and the claim stops the
            # consumer.
            end = max(start, self.end(partition.number, start)) if offsets.end >= start else offsets.end
            found[partition] = PartitionOffsets(offsets.topic_id, low, end, leader_epoch=offsets.leader_epoch)
        return found

    def slices(self, ranges: Iterable[OffsetRange]) -> dict[OffsetRange, list[FileSlice]]:
        """Which pieces of which files hold the ranges.

        Args:
            ranges: Ranges of a claim, within what was looked at.

        Raises:
            NotLanded: An offset is in no file, and is not settled.
        """
        return {
            wanted: units.slices(self.files.get(wanted.partition, ()), wanted, self.settled.get(wanted.partition, []))
            for wanted in sorted(ranges, key=lambda part: (part.partition, part.start))
        }


def _looked_again(
    topic: LandedTopic, group: GroupOffsets, before: Mapping[Partition, PartitionOffsets]
) -> dict[Partition, PartitionOffsets]:
    """The offsets after the table was loaded, with what the sink had committed before.

    More has landed since the first look, or a log has lost its end.
    """
    now = group.fetch_offsets_sync([topic.name], needs_committed=False)
    return {p: replace(offsets, committed=before[p].committed) for p, offsets in now.items() if p in before}


def _both(looked: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], dict[int, int]]:
    return {n: start for n, (start, _) in looked.items()}, {n: end for n, (_, end) in looked.items()}


def _columns(table: "Table") -> list[TableColumn]:
    return [{"id": f.field_id, "name": f.name, "type": str(f.field_type)} for f in table.schema().fields]


def _cut(gap: Gap, end: int) -> Gap | None:
    """The part of the gap before `end`."""
    if gap.offsets.start >= end:
        return None
    return replace(gap, offsets=replace(gap.offsets, end=min(end, gap.offsets.end)))
