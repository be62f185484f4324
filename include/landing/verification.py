"""Whether a landing table has everything: RUNNING connectors have been seen to lose files in silence.

Between where a partition is looked at from and the highest offset that has landed, or that the sink's group has
committed, every offset must have landed, or be known to hold no record, or to be lost. Whatever else is missing is a
gap. The sink commits its offsets in Kafka before the table, so the end of a partition is only a gap after a grace.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from include.kafka.claims import ConsumerStopped
from include.kafka.connection import CONN_ID
from include.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.landing import gaps, intervals
from include.landing.gaps import Gap
from include.landing.intervals import Ranges
from include.landing.landed import Landed, contiguous_end
from include.landing.tables import LandedTopic, load_landing_table, raw_table, sink_group, start_offsets, topic_id
from include.operations.alarms import close_alarm, open_alarm
from include.operations.database import begin

log = logging.getLogger(__name__)

GAP_ALARM, LOST_ALARM = "landing_gap", "messages_lost"
RUNBOOK = "docs/runbooks/landing-gap.md"
# Between what the sink has committed in Kafka and its commit of the table: seconds; a commit that failed is tried again
# for minutes.
LANDING_GRACE = timedelta(minutes=5)
# Offsets below ones that have landed: the sink lands a partition in order. Time for a commit that was cut in two.
INNER_GRACE = timedelta(seconds=30)


@dataclass(frozen=True)
class Verified:
    """What a landing table holds and misses, from the offset of each partition on that was asked about.

    begins: from which offset of each partition on the table should be complete. covered: by partition, the offsets that
    have landed or are settled. due: gaps that have outlived their grace.
    """

    topic: str
    topic_id: str
    landed: Landed
    begins: Mapping[int, int]
    covered: Mapping[int, Ranges]
    kafka: Mapping[Partition, PartitionOffsets]
    missing: tuple[Gap, ...]
    due: tuple[Gap, ...]

    def end(self, partition: int, start: int) -> int:
        """Where the offsets of the partition that begin at `start` have their first hole."""
        return contiguous_end(start, self.covered.get(partition, []))


def verify(
    topic: LandedTopic,
    starts: Mapping[int, int] | None = None,
    *,
    conn_id: str = CONN_ID,
    grace: timedelta = LANDING_GRACE,
) -> Verified:
    """Look at the topic's landing table, record what is missing, open or close the alarm; repairs nothing.

    `starts`: from which offset of each partition on; without it, from where the table begins. Raises ConsumerStopped
    when the topic was deleted and recreated, KafkaException, and what the catalog raises.
    """
    with GroupOffsets(sink_group(topic), conn_id) as group:
        # Before the table: what was committed by now has had more time to land.
        kafka = group.look_now([topic.name])
    table = load_landing_table(topic)
    landing_id = topic_id(table)
    check_same_topic(topic, landing_id, kafka)
    landed = Landed(table)
    begins = start_offsets(table)
    numbers = {partition.number for partition in kafka} | set(landed.partitions) | set(begins)
    froms = {number: (starts or {}).get(number, begins.get(number, 0)) for number in sorted(numbers)}
    with begin() as connection:
        settled = gaps.settled(connection, landing_id, froms)
        covered, missing = {}, {}
        for number, start in froms.items():
            covered[number] = intervals.union([*landed.covered(number, start), *settled.get(number, [])])
            offsets = kafka.get(Partition(topic.name, number))
            end = max(landed.end(number), (offsets and offsets.committed) or 0)
            missing[number] = intervals.subtract([(start, max(start, end))], covered[number])
        noted = gaps.note(connection, topic.name, landing_id, missing, froms)
        due = [gap for gap in noted if gap.age >= _grace(gap.offsets, landed, grace)]
        _alarm(connection, topic, due)
    return Verified(topic.name, landing_id, landed, begins, covered, kafka, tuple(noted), tuple(due))


def check_same_topic(topic: LandedTopic, landing_id: str, kafka: Mapping[Partition, PartitionOffsets]) -> None:
    """Raise ConsumerStopped when Kafka's topic is not the one that landed: the same offsets are other messages."""
    for offsets in kafka.values():
        if not is_same_topic(offsets.topic_id, landing_id):
            raise ConsumerStopped(
                topic.name,
                f"topic {topic.name} was deleted and recreated (its id was {landing_id} and is {offsets.topic_id}), "
                f"and landing table {raw_table(topic)} holds the old one's messages",
            )


def _grace(offsets: OffsetRange, landed: Landed, grace: timedelta) -> timedelta:
    is_inner = offsets.end <= landed.end(offsets.partition)
    return min(grace, INNER_GRACE) if is_inner else grace


def _alarm(connection, topic: LandedTopic, due: list[Gap]) -> None:
    if not due:
        close_alarm(connection, raw_table(topic), GAP_ALARM)
        return
    where = ", ".join(str(gap.offsets) for gap in due[:20])
    more = f" and {len(due) - 20} more" if len(due) > 20 else ""
    count = sum(len(gap.offsets) for gap in due)
    open_alarm(
        connection,
        raw_table(topic),
        GAP_ALARM,
        f"{count} offsets have not landed: {where}{more}. The next run reads them from Kafka and appends them; "
        f"{RUNBOOK} says how to find the cause",
    )
