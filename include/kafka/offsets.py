"""Offset ranges, and what the broker says about offsets: log ends, low watermarks, committed offsets."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from include.kafka.connection import CONN_ID, ClientErrors, admin_config, client_config, consumer_config

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

# An answer takes milliseconds; a broker that is away must fail the request well before a task or a trigger looks hung.
REQUEST_TIMEOUT_SECONDS = 10.0
# A change of leaders takes moments; a partition that has none for longer is left out.
LEADER_CHANGE_TRIES, LEADER_CHANGE_SECONDS = 5, 0.1
# Partitions whose log is compared at once: each may fetch up to a megabyte meanwhile.
COMPARED_AT_ONCE = 50
# What a broker without topic ids answers with.
ZERO_TOPIC_ID = "A" * 22
# Between a topic's id and its generation; in no topic id and no topic name.
GENERATION_MARK = "#"
_topics_without_id: set[str] = set()


def log_identity(topic: str, broker_id: str) -> str:
    """The identity of a topic's log: the broker's topic id, or the topic's name where the broker has no ids.

    Without ids, a topic that was deleted and recreated shows only when its log is shorter than what was claimed, or
    when its leader epochs began again at a lower number.
    """
    if broker_id != ZERO_TOPIC_ID:
        return broker_id
    if topic not in _topics_without_id:
        _topics_without_id.add(topic)
        log.warning(
            "topic %s: the broker gives it no topic id, so a recreation of the topic is not always noticed; after one, "
            "run `python -m include.kafka reset CONSUMER %s` for each of its consumers",
            topic,
            topic,
        )
    return topic


def is_same_topic(one: str, other: str) -> bool:
    """Whether two log identities are generations of the same topic."""
    return one.partition(GENERATION_MARK)[0] == other.partition(GENERATION_MARK)[0]


def next_generation(identity: str) -> str:
    """The identity of the log that begins when this one has lost its end: its offsets hold other records."""
    topic_id, _, generation = identity.partition(GENERATION_MARK)
    return f"{topic_id}{GENERATION_MARK}{int(generation or 1) + 1}"


class Partition(NamedTuple):
    """A topic's partition."""

    topic: str
    number: int


@dataclass(frozen=True)
class OffsetRange:
    """Offsets [start, end) of one partition; `topic_id` is the identity of its log when they were claimed."""

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
    """What a partition has available: [low, end), and where its consumer group stands (None: nowhere).

    leader_epoch: of the leader that answered; None when the broker does not say.
    """

    topic_id: str
    low: int
    end: int
    committed: int | None = None
    leader_epoch: int | None = None

    @property
    def lag(self) -> int:
        """Offsets behind the end; what retention has removed is not lag."""
        return max(0, self.end - max(self.low, self.committed or 0))

    @property
    def truncated(self) -> bool:
        """The group is ahead of the log: the topic was recreated, or its end was lost."""
        return self.committed is not None and self.committed > self.end


class GroupOffsets:
    """A consumer group and its topics, as the broker sees them; a context manager.

    Two clients. What the logs hold is asked through an AdminClient: a consumer that tails the log has a fetch waiting
    at the broker, and such a request on that connection waits as long. What the group has committed is asked, and
    committed, through a consumer that never joins the group: the same requests through an AdminClient crash the
    process when the broker answers NOT_COORDINATOR, as it does after every restart (librdkafka has no group there,
    confluentinc/confluent-kafka-javascript issue 374).

    `consumer` may be used for reading and tailing. Its requests about the group go over a connection of their own.
    """

    def __init__(self, group: str, conn_id: str = CONN_ID, **settings: Any) -> None:
        """`settings` are added to the consumer's. Blocks while the connection is fetched."""
        from confluent_kafka import Consumer

        config = client_config(conn_id)
        self._errors = ClientErrors(conn_id, config)
        self.group = group
        # Whether the last look found a topic or a partition's leader missing.
        self.incomplete = False
        # The topics that the user may not read; they count as missing.
        self.forbidden: set[str] = set()
        # Whether it found a leader on the move, or one that does not know yet that it leads.
        self._moving = False
        self._admin_config = admin_config(config)
        self.consumer = Consumer({**consumer_config(config, group), **settings})

    @cached_property
    def _admin(self) -> "AdminClient":
        # With the first question: who handles one message asks none.
        from confluent_kafka.admin import AdminClient

        return AdminClient(self._admin_config)

    async def look(self, topics: Iterable[str]) -> dict[Partition, PartitionOffsets]:
        """Offsets of every partition of the topics that exist, up to the last stable offset.

        Four requests, whatever the number of partitions. A topic that does not exist (yet) or that the user may not
        read, and a partition without a leader, are left out: the others go on. Raises KafkaException when the broker
        cannot be reached, or the user may read none of the topics.
        """
        names = list(topics)
        found: dict[Partition, PartitionOffsets] = {}
        with self._errors.explaining(self._admin):
            for _ in range(LEADER_CHANGE_TRIES):
                found = await self._look(names)
                if not self._moving:
                    break
                await asyncio.sleep(LEADER_CHANGE_SECONDS)
        return found

    async def _look(self, topics: Iterable[str]) -> dict[Partition, PartitionOffsets]:
        from confluent_kafka import IsolationLevel, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        timeout = {"request_timeout": REQUEST_TIMEOUT_SECONDS}
        topic_ids: dict[str, str] = {}
        asked: list[TopicPartition] = []
        self.incomplete = self._moving = False
        for topic, description in (await self._describe(topics)).items():
            if description is None:
                self.incomplete = True
                continue
            topic_ids[topic] = log_identity(topic, str(description.topic_id))
            led = [TopicPartition(topic, p.id) for p in description.partitions if p.leader is not None]
            self.incomplete |= len(led) < len(description.partitions)
            asked += led
        if not asked:
            return {}
        # read_committed: up to the last stable offset. Offsets of an open transaction are not available yet.
        options = {"isolation_level": IsolationLevel.READ_COMMITTED, **timeout}
        latest, earliest = cast(OffsetSpec, OffsetSpec.latest()), cast(OffsetSpec, OffsetSpec.earliest())
        ends = self._admin.list_offsets(dict.fromkeys(asked, latest), **options)
        lows = self._admin.list_offsets(dict.fromkeys(asked, earliest), **options)
        # In a thread, for a millisecond: this one blocks.
        committed = await asyncio.to_thread(self._committed, asked)
        found: dict[Partition, PartitionOffsets] = {}
        for tp in asked:
            low = await self._result(lows[tp])
            end = await self._result(ends[tp])
            if low is None or end is None:
                self.incomplete = True
                continue
            key = Partition(tp.topic, tp.partition)
            found[key] = PartitionOffsets(
                topic_ids[tp.topic], low.offset, end.offset, committed.get(key), end.leader_epoch
            )
        return found

    async def _describe(self, topics: Iterable[str]) -> dict[str, Any]:
        """{topic: its description, or None when it does not exist or may not be read}."""
        from confluent_kafka import KafkaError, KafkaException, TopicCollection
        from confluent_kafka.admin import AclOperation

        # With the rights of the user: messages that it may not read must not be claimed, their run could never end.
        options = {"include_authorized_operations": True, "request_timeout": REQUEST_TIMEOUT_SECONDS}
        found: dict[str, Any] = {}
        refusal: KafkaException | None = None
        self.forbidden = set()
        for topic, future in self._admin.describe_topics(TopicCollection(list(topics)), **options).items():
            found[topic] = None
            try:
                description = await self._result(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise
                refusal = error
                self.forbidden.add(topic)
                continue
            # None or empty: the broker does not say.
            allowed = description.authorized_operations if description is not None else None
            if allowed and AclOperation.READ not in allowed and AclOperation.ALL not in allowed:
                refusal = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, f"no READ on {topic}"))
                self.forbidden.add(topic)
                continue
            found[topic] = description
        if refusal is not None and not any(found.values()):
            raise refusal
        return found

    def topic_ids_now(self, topics: Iterable[str]) -> dict[str, str]:
        """{topic: its id} of the topics that exist, with one request. Raises what `look` raises."""
        with self._errors.explaining(self._admin):
            found = asyncio.run(self._describe(topics))
        return {topic: log_identity(topic, str(d.topic_id)) for topic, d in found.items() if d is not None}

    def look_now(self, topics: Iterable[str]) -> dict[Partition, PartitionOffsets]:
        """The same, outside an event loop."""
        return asyncio.run(self.look(topics))

    def open_transactions_now(self, found: Mapping[Partition, PartitionOffsets]) -> dict[Partition, int]:
        """{partition: the end of its log} where a transaction is open: the log goes on behind the last stable offset.

        found: what `look` returned. Raises what `look` raises.
        """
        from confluent_kafka import IsolationLevel, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        if not found:
            return {}
        latest = cast(OffsetSpec, OffsetSpec.latest())
        asked = {TopicPartition(p.topic, p.number): latest for p in found}
        options = {"isolation_level": IsolationLevel.READ_UNCOMMITTED, "request_timeout": REQUEST_TIMEOUT_SECONDS}
        answers = self._admin.list_offsets(asked, **options)

        async def wait() -> dict[Partition, int]:
            ends = {Partition(tp.topic, tp.partition): await self._result(answers[tp]) for tp in asked}
            return {p: end.offset for p, end in ends.items() if end is not None and end.offset > found[p].end}

        with self._errors.explaining(self._admin):
            return asyncio.run(wait())

    def without_their_end(self, positions: Mapping[Partition, tuple[int, int]]) -> set[Partition]:
        """The partitions whose log has lost records before these positions: {partition: (offset, leader epoch)}.

        leader_epoch: the leader's when records up to the offset were seen. The client asks the broker where the
        records of that epoch end in the log of today (OffsetForLeaderEpoch, KIP-320): if they end before the offset,
        other records have taken the place of some that were seen. The consumer must report the ends of partitions
        (`reading.CONSUMER_SETTINGS`); it is left without an assignment.

        Raises KafkaException when a partition does not answer.
        """
        wanted = sorted(positions.items())
        gone: set[Partition] = set()
        try:
            for first in range(0, len(wanted), COMPARED_AT_ONCE):
                gone |= self._without_their_end(dict(wanted[first : first + COMPARED_AT_ONCE]))
        finally:
            self.consumer.unassign()
        return gone

    def _without_their_end(self, positions: Mapping[Partition, tuple[int, int]]) -> set[Partition]:
        from confluent_kafka import KafkaError, KafkaException, TopicPartition

        for topic in {partition.topic for partition in positions}:
            # Else the client would notice at its next one-second tick that it does not know the topic's leaders.
            self.consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_SECONDS)
        self.consumer.assign([TopicPartition(p.topic, p.number, offset) for p, (offset, _) in positions.items()])
        # Of a position that is only assigned, the client compares no epoch; of one that it seeks, it does.
        for partition, (offset, epoch) in positions.items():
            self._seek(TopicPartition(partition.topic, partition.number, offset, leader_epoch=epoch))
        # The client has no code for it in what it reports, only its text beside the code for "no offset to go on from".
        lost_end = KafkaError(KafkaError._LOG_TRUNCATION).str()
        left, gone = set(positions), set()
        until = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        while left:
            record: Any = self.consumer.poll(0.1)
            if time.monotonic() > until:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"logs cannot be compared: {sorted(left)[:10]}"))
            if record is None or record.topic() is None:
                continue
            partition, error = Partition(record.topic(), record.partition()), record.error()
            # Anything else than an error of the connection says that the comparison is over, and how it ended.
            ended = (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
            if partition in left and (error is None or error.code() in ended):
                left.discard(partition)
                if error is not None and lost_end in error.str():
                    gone.add(partition)
                self.consumer.incremental_unassign([TopicPartition(*partition)])
        return gone

    def _seek(self, place: Any) -> None:
        from confluent_kafka import KafkaError, KafkaException

        until = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        while True:
            try:
                return self.consumer.seek(place)
            except KafkaException as error:
                # The client has not begun with the partition yet: it still ends the assignment before.
                if error.args[0].code() != KafkaError._STATE or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def commit_forward(
        self,
        positions: Mapping[Partition, tuple[str, int]],
        known: Mapping[Partition, PartitionOffsets] | None = None,
    ) -> dict[Partition, int]:
        """Commit the positions, {partition: (log identity, next offset)}, that are ahead of the group; returns those.

        known: what `look` has returned since the consumer's row was first locked; it is asked for when missing. Call
        it under the lock on the consumer's row: then every committer sees positions that only grow, and committed
        offsets never move back. Positions in a topic that is gone, or was recreated, are left alone. Raises
        KafkaException when the broker refuses, as it does when somebody else is a member of the group.
        """
        if known is None:
            known = self.look_now({partition.topic for partition in positions})
        ahead = {
            partition: offset
            for partition, (identity, offset) in positions.items()
            if (now := known.get(partition)) is not None
            and is_same_topic(now.topic_id, identity)
            and offset > (now.committed or 0)
        }
        self.commit(ahead)
        return ahead

    def commit(self, offsets: dict[Partition, int]) -> None:
        """Set the group's committed offsets, in whatever direction; `commit_forward` is what claims use."""
        from confluent_kafka import KafkaException, TopicPartition

        if not offsets:
            return
        wanted = [TopicPartition(p.topic, p.number, offset) for p, offset in offsets.items()]
        for tp in self.consumer.commit(offsets=wanted, asynchronous=False) or ():
            if tp.error is not None:
                log.error(
                    "group=%s offset %d of %s-%d was not committed", self.group, tp.offset, tp.topic, tp.partition
                )
                raise KafkaException(tp.error)

    def close(self) -> None:
        self.consumer.close()

    def __enter__(self) -> "GroupOffsets":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _committed(self, partitions: list) -> dict[Partition, int]:
        from confluent_kafka import KafkaException

        answer = self.consumer.committed(partitions, timeout=REQUEST_TIMEOUT_SECONDS)
        for tp in answer:
            # Not taken for "nothing is committed": a first claim would start at the beginning of the topic.
            if tp.error is not None:
                raise KafkaException(tp.error)
        return {Partition(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    async def _result(self, future: Future) -> Any:
        """Wait without blocking the event loop, and let the client serve its callbacks (OAuth tokens) meanwhile.

        None for a topic or a partition that is not there, or has no leader.
        """
        from confluent_kafka import KafkaError, KafkaException

        pause = 0.001
        while not future.done():
            self._admin.poll(0)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.02)
        try:
            return future.result()
        except KafkaException as error:
            missing = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
            moving = (
                KafkaError.LEADER_NOT_AVAILABLE,
                KafkaError.NOT_LEADER_FOR_PARTITION,
                KafkaError.FENCED_LEADER_EPOCH,
                KafkaError.UNKNOWN_LEADER_EPOCH,
                KafkaError.OFFSET_NOT_AVAILABLE,
            )
            code = error.args[0].code()
            self._moving |= code in moving
            if code in missing or code in moving:
                return None
            raise
