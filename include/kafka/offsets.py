"""Offset ranges, and what the broker says about offsets: log ends, low watermarks, committed offsets."""

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

# An answer takes milliseconds; a broker that is away must fail the request well before a task or a trigger looks hung.
REQUEST_TIMEOUT_SECONDS = 10.0


class Partition(NamedTuple):
    """A topic's partition."""

    topic: str
    number: int


@dataclass(frozen=True)
class OffsetRange:
    """Offsets [start, end) of one partition of the topic that had `topic_id` when they were claimed."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition} [{self.start}, {self.end})"

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class PartitionOffsets:
    """What a partition has available: [low, end), and where its consumer group stands (None: nowhere)."""

    topic_id: str
    low: int
    end: int
    committed: int | None = None

    @property
    def lag(self) -> int:
        """Offsets behind the end; what retention has removed is not lag."""
        return max(0, self.end - max(self.low, self.committed or 0))

    @property
    def truncated(self) -> bool:
        """The group is ahead of the log: the topic was made again, or its end was lost."""
        return self.committed is not None and self.committed > self.end


async def partition_offsets(
    admin: "AdminClient", topics: Iterable[str], group: str | None = None
) -> dict[Partition, PartitionOffsets]:
    """Offsets of every partition of the topics that exist, up to the last stable offset.

    Through an AdminClient, in four requests whatever the number of partitions: a consumer that tails the log has a
    fetch waiting at the broker, and every request behind it on that connection waits as long.

    A topic that does not exist (yet) and a partition without a leader are left out: the others go on. Raises
    KafkaException when the broker cannot be reached.
    """
    from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, TopicCollection, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    timeout = {"request_timeout": REQUEST_TIMEOUT_SECONDS}
    described = admin.describe_topics(TopicCollection(list(topics)), **timeout)
    topic_ids: dict[str, str] = {}
    asked: list[TopicPartition] = []
    for topic, future in described.items():
        description = await _result(admin, future, missing_is_none=True)
        if description is not None:
            topic_ids[topic] = str(description.topic_id)
            asked += [TopicPartition(topic, p.id) for p in description.partitions if p.leader is not None]
    if not asked:
        return {}

    # read_committed: up to the last stable offset. Offsets of an open transaction are not available yet.
    isolation = {"isolation_level": IsolationLevel.READ_COMMITTED}
    ends = admin.list_offsets(dict.fromkeys(asked, cast(OffsetSpec, OffsetSpec.latest())), **isolation, **timeout)
    lows = admin.list_offsets(dict.fromkeys(asked, cast(OffsetSpec, OffsetSpec.earliest())), **isolation, **timeout)
    committed: dict[Partition, int] = {}
    if group is not None:
        (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, asked)], **timeout).values()
        for tp in (await _result(admin, future)).topic_partitions:
            if tp.error is None and tp.offset >= 0:
                committed[Partition(tp.topic, tp.partition)] = tp.offset
    found: dict[Partition, PartitionOffsets] = {}
    for tp in asked:
        low = await _result(admin, lows[tp], missing_is_none=True)
        end = await _result(admin, ends[tp], missing_is_none=True)
        if low is not None and end is not None:
            key = Partition(tp.topic, tp.partition)
            found[key] = PartitionOffsets(topic_ids[tp.topic], low.offset, end.offset, committed.get(key))
    return found


async def _result(admin: "AdminClient", future: Future, *, missing_is_none: bool = False) -> Any:
    """Wait without blocking the event loop, and let the client serve its callbacks (OAuth tokens) meanwhile."""
    from confluent_kafka import KafkaError, KafkaException

    pause = 0.001
    while not future.done():
        admin.poll(0)
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.02)
    try:
        return future.result()
    except KafkaException as error:
        missing = (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError._UNKNOWN_PARTITION,
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError.NOT_LEADER_FOR_PARTITION,
        )
        if missing_is_none and error.args[0].code() in missing:
            return None
        raise


def commit_forward(
    admin: "AdminClient", group: str, positions: dict[Partition, tuple[str, int]]
) -> dict[Partition, int]:
    """Commit the positions, {partition: (topic id, next offset)}, that are ahead of the group; returns those.

    Call it under the lock on the consumer's row: then every committer sees positions that only grow, and committed
    offsets never move back. Positions in a topic that is gone, or was made again, are left alone. Raises
    KafkaException when the broker refuses, RuntimeError when somebody else is a member of the group.
    """
    now = asyncio.run(partition_offsets(admin, {partition.topic for partition in positions}, group))
    ahead = {
        partition: offset
        for partition, (topic_id, offset) in positions.items()
        if partition in now and now[partition].topic_id == topic_id and offset > (now[partition].committed or 0)
    }
    if ahead:
        alter_committed(admin, group, ahead)
    return ahead


def alter_committed(admin: "AdminClient", group: str, offsets: dict[Partition, int]) -> None:
    """Set the group's committed offsets, in whatever direction; `commit_forward` is what claims use."""
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

    request = [
        ConsumerGroupTopicPartitions(
            group, [TopicPartition(p.topic, p.number, offset) for p, offset in offsets.items()]
        )
    ]
    (future,) = admin.alter_consumer_group_offsets(request, request_timeout=REQUEST_TIMEOUT_SECONDS).values()
    for tp in wait(admin, future).topic_partitions:
        if tp.error is not None:
            raise RuntimeError(
                f"group {group}: offset {tp.offset} of {tp.topic}-{tp.partition} was not committed: {tp.error}; "
                "no other program may be a member of a group that claims use"
            )


def wait(admin: "AdminClient", future: Future) -> Any:
    """The result of an admin request, outside an event loop."""
    return asyncio.run(_result(admin, future))
