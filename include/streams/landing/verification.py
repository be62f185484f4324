"""Check whether a landing table is complete: connectors in the state RUNNING have been seen to lose files silently.

The check covers the offsets from a given start up to the highest offset that has landed or that the sink's group has
committed. Each of them must have landed, or be recorded as holding no record or as lost. Every other offset is missing:
a gap. The sink commits its offsets in Kafka before it commits to the table, so missing offsets at the end of a
partition are a gap only after a grace period.

A partition whose log has lost records that have landed is stopped (`log_ends.py`): its gaps are not looked at, because
Kafka would answer with other records.

With a limit, the check looks only so far ahead, because a lane that is far behind repairs only what its claim needs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from include.streams.kafka.claims import ConsumerStopped, fair_shares
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import GroupOffsets, Partition, PartitionOffsets, is_same_topic
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.landing import gaps, intervals, log_ends
from include.streams.landing.gaps import GAP_ALARM, RUNBOOK, Gap
from include.streams.landing.intervals import Ranges
from include.streams.landing.landed import Landed, contiguous_end
from include.streams.landing.tables import (
    LandedTopic,
    load_landing_table,
    raw_table,
    sink_group,
    start_offsets,
    topic_id,
)
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin

log = logging.getLogger(__name__)

# The time between the sink's commit in Kafka and its commit to the table: seconds, but a failed commit is retried for
# minutes.
LANDING_GRACE = timedelta(minutes=5)
# For missing offsets below offsets that have landed: the sink lands a partition in order. The later offsets must have
# been in the table for this long, which allows for a commit that was cut in two. The table's snapshots say for how
# long, not the first check: a lane that catches up would wait again for each part of its backlog.
INNER_GRACE = timedelta(seconds=30)


@dataclass(frozen=True)
class Verified:
    """What a landing table holds and misses, from the requested offset of each partition on.

    Attributes:
        topic: The topic's name.
        topic_id: The landing table's topic id.
        landed: The files of the table.
        begins: {partition: the offset from which the table should be complete}.
        ends: {partition: the end of the offsets that should have landed}.
        looked: {partition: (start, end) of the offsets that were checked}.
        covered: {partition: the checked offsets that have landed or are settled}.
        kafka: The offsets of the topic's partitions in Kafka, without those whose log could not be compared.
        lost: {partition: what happened} where the log has lost records that have landed. They have no gaps here.
        missing: All gaps, due or not.
        due: The gaps that have outlived their grace period, as far as they are needed within the limit.
    """

    topic: str
    topic_id: str
    landed: Landed
    begins: Mapping[int, int]
    ends: Mapping[int, int]
    looked: Mapping[int, tuple[int, int]]
    covered: Mapping[int, Ranges]
    kafka: Mapping[Partition, PartitionOffsets]
    lost: Mapping[Partition, str]
    missing: tuple[Gap, ...]
    due: tuple[Gap, ...]

    def end(self, partition: int, start: int) -> int:
        """The first offset of the partition, from `start` on, that is missing; `start` if its log is not the same."""
        if Partition(self.topic, partition) in self.lost:
            return start
        return contiguous_end(start, self.covered.get(partition, []))


def verify(
    topic: LandedTopic,
    starts: Mapping[int, int] | None = None,
    *,
    conn_id: str = CONN_ID,
    grace: timedelta = LANDING_GRACE,
    most: int | None = None,
    repairs: bool = False,
) -> Verified:
    """Check the topic's landing table, record what is missing, and open or close the alarm. It repairs nothing.

    It closes the alarm when no checked gap is due, and no gap of other offsets is on record.

    Args:
        topic: The landed topic.
        starts: {partition: the first offset to check}; by default where the table begins.
        conn_id: The Airflow connection of Kafka.
        grace: How long offsets at the end of a partition may be missing before they are a gap that is due.
        most: How many offsets the caller needs. Each partition is checked for so many of its landed offsets, and gaps
            are due within the share that a claim of so many would take of each. None: all.
        repairs: What is due is repaired next. Then no alarm is opened: most gaps are the markers of transactions, which
            hold no record. `repair` opens it when records are missing or cannot be read, or when it fails.

    Raises:
        ConsumerStopped: The topic was deleted and recreated.
        KafkaException: The broker is unavailable or refuses.
        Exception: What the catalog raises.
    """
    with GroupOffsets(sink_group(topic), conn_id, **CONSUMER_SETTINGS) as group:
        # Read Kafka before the table: offsets that are committed by now have had more time to land.
        kafka = group.look_now([topic.name])
        table = load_landing_table(topic)
        landing_id = topic_id(table)
        check_same_topic(topic, landing_id, kafka)
        landed = Landed(table)
        if any(offsets.end < landed.end(partition.number) for partition, offsets in kafka.items()):
            kafka = _looked_again(topic, group, kafka)
        logs = log_ends.compare(topic, table, landed, kafka, group)
    kafka = {partition: offsets for partition, offsets in kafka.items() if partition not in logs.unanswered}
    begins = start_offsets(table)
    numbers = {partition.number for partition in kafka} | set(landed.partitions) | set(begins)
    froms = {number: (starts or {}).get(number, begins.get(number, 0)) for number in sorted(numbers)}
    ends: dict[int, int] = {}
    tos: dict[int, int] = {}
    for number, start in froms.items():
        landed_end = landed.end(number)
        offsets = kafka.get(Partition(topic.name, number))
        ends[number] = max(start, landed_end, (offsets and offsets.committed) or 0)
        # The limit is for offsets in files. Those at the end, which are in none, cost nothing, and all of them are
        # noted now: their grace must not begin again with each part.
        is_far = most is not None and start + most < landed_end
        tos[number] = start + most if is_far else ends[number]  # type: ignore[operator]
    looked = {number: (start, tos[number]) for number, start in froms.items()}
    # In no transaction: the files take long to read after an outage, and the server ends a transaction that idles.
    with begin() as connection:
        settled = gaps.settled(connection, landing_id, froms, tos)
    covered = {
        number: intervals.union([*landed.covered(number, start, end), *settled.get(number, [])])
        for number, (start, end) in looked.items()
    }
    missing = {number: intervals.subtract([both], covered[number]) for number, both in looked.items()}
    long_landed = Landed.before(table, datetime.now(UTC) - INNER_GRACE) if any(missing.values()) else None
    inner_ends = {number: long_landed.end(number) for number in looked} if long_landed is not None else {}

    other_logs = {partition.number for partition in (*logs.lost, *logs.unanswered)}

    def is_due(gap: Gap) -> bool:
        return gap.offsets.end <= inner_ends.get(gap.offsets.partition, 0) or gap.age >= grace

    needed = _needed(topic, looked, most)
    with begin() as connection:
        found = gaps.note(connection, topic.name, landing_id, missing, looked)
        noted = [gap for gap in found if gap.offsets.partition not in other_logs]
        due = [cut for gap in noted if (cut := _cut(gap, needed[gap.offsets.partition])) and is_due(gap)]
        if due and not repairs:
            open_gap_alarm(connection, topic, due)
        if not any(map(is_due, found)) and not gaps.has_missing_outside(connection, landing_id, looked, begins):
            close_alarm(connection, raw_table(topic), GAP_ALARM)
    return Verified(
        topic.name, landing_id, landed, begins, ends, looked, covered, kafka, logs.lost, tuple(noted), tuple(due)
    )  # fmt: skip


def _looked_again(
    topic: LandedTopic, group: GroupOffsets, before: Mapping[Partition, PartitionOffsets]
) -> dict[Partition, PartitionOffsets]:
    """The offsets after the table was loaded, with what the sink had committed before.

    More has landed since the first look, or a log has lost its end.
    """
    now = group.look_now([topic.name], needs_committed=False)
    return {p: replace(offsets, committed=before[p].committed) for p, offsets in now.items() if p in before}


def check_same_topic(topic: LandedTopic, landing_id: str, kafka: Mapping[Partition, PartitionOffsets]) -> None:
    """Raise ConsumerStopped when Kafka's topic is not the one that landed: the same offsets would be other messages."""
    for offsets in kafka.values():
        if not is_same_topic(offsets.topic_id, landing_id):
            why = (
                f"topic {topic.name} was deleted and recreated (its id was {landing_id} and is {offsets.topic_id}), "
                f"and landing table {raw_table(topic)} holds the old one's messages"
            )
            raise ConsumerStopped({topic.name: why})


def _needed(topic: LandedTopic, looked: Mapping[int, tuple[int, int]], most: int | None) -> dict[int, int]:
    """{partition: the end of what a claim of `most` offsets would take, if nothing were missing}."""
    if most is None:
        return {number: end for number, (_, end) in looked.items()}
    shares = fair_shares({Partition(topic.name, n): end - start for n, (start, end) in looked.items()}, most)
    return {partition.number: looked[partition.number][0] + share for partition, share in shares.items()}


def _cut(gap: Gap, end: int) -> Gap | None:
    """The part of the gap before `end`."""
    if gap.offsets.start >= end:
        return None
    return replace(gap, offsets=replace(gap.offsets, end=min(end, gap.offsets.end)))


def open_gap_alarm(connection: Connection, topic: LandedTopic, due: Sequence[Gap]) -> None:
    """Open the alarm about these gaps of the topic's landing table."""
    where = ", ".join(str(gap.offsets) for gap in due[:20])
    more = f" and {len(due) - 20} more" if len(due) > 20 else ""
    count = sum(len(gap.offsets) for gap in due)
    open_alarm(
        connection,
        raw_table(topic),
        GAP_ALARM,
        f"{count} offsets have not landed: {where}{more}. A run reads them from Kafka and appends them, unless all "
        f"runs are past them; {RUNBOOK} says how to find the cause",
    )
