"""Offset ranges, and the offsets that the broker reports: log ends, low watermarks, committed offsets."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from include.streams.kafka.connection import CONN_ID, ClientErrors, admin_config, client_config, consumer_config

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaException
    from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

# An answer takes milliseconds. A request to an unavailable broker must fail well before a task or a trigger seems hung.
REQUEST_TIMEOUT_SECONDS = 10.0
# A leader election takes less than a second; a partition without a leader for longer is left out.
LEADER_CHANGE_TRIES, LEADER_CHANGE_SECONDS = 5, 0.1
# The client requests descriptions of topics from the broker that the metadata names as controller. A KRaft cluster
# names any of its brokers there, perhaps one that this client cannot reach; the next metadata may name another broker.
# If one of two brokers cannot be reached, all of eight tries fail once in 256 times. These are the timeouts of the
# first seven tries; the last one has REQUEST_TIMEOUT_SECONDS.
DESCRIBE_SECONDS = (1.0,) * 7
# How long to wait for a topic's leaders. The client also requests them by itself, only later.
LEADERS_SECONDS = 2.0
NO_ANSWER = "its leader does not answer"
# How many logs are compared at once: each partition may fetch up to a megabyte during the comparison.
COMPARED_AT_ONCE = 50
# The topic id in the answer of a broker without topic ids.
ZERO_TOPIC_ID = "A" * 22
# Separates a topic's id from its generation; occurs in no topic id and no topic name.
GENERATION_MARK = "#"
_topics_without_id: set[str] = set()


def learn_leaders(consumer: "Consumer", topic: str) -> None:
    """Let a client learn the leaders of a topic's partitions before it reads them.

    Without this request, the client would request them only at its next one-second tick. The request may go to a broker
    that does not answer. That must not delay the partitions of other brokers, so a failure is ignored: reading the
    partition will report it.

    Args:
        consumer: The client.
        topic: The topic's name.
    """
    from confluent_kafka import KafkaException

    with suppress(KafkaException):
        consumer.list_topics(topic, timeout=LEADERS_SECONDS)


def log_identity(topic: str, broker_id: str) -> str:
    """The identity of a topic's log: the broker's topic id, or the topic's name when the broker has no topic ids.

    Without topic ids, a recreated topic is detected only when its log ends before the claimed offsets, or when its
    leader epochs have started again at a lower number.

    Args:
        topic: The topic's name.
        broker_id: The topic id as the broker reports it, in base64.
    """
    if broker_id != ZERO_TOPIC_ID:
        return broker_id
    if topic not in _topics_without_id:
        _topics_without_id.add(topic)
        log.warning(
            "topic %s: the broker gives it no topic id, so a recreated topic is not always detected; when you recreate "
            "it, run the Dag reset_consumer for each of its consumers",
            topic,
        )
    return topic


def is_same_topic(identity: str, other: str) -> bool:
    """Whether two log identities are generations of the same topic."""
    return identity.partition(GENERATION_MARK)[0] == other.partition(GENERATION_MARK)[0]


def next_generation(identity: str) -> str:
    """A new identity for a topic's log after the log was truncated: the same offsets now hold other records.

    Args:
        identity: The log's identity before it was truncated, from `log_identity` or this function.

    Returns:
        The identity with the next number: `id#2` after `id`, `id#3` after `id#2`.
    """
    topic_id, _, generation = identity.partition(GENERATION_MARK)
    return f"{topic_id}{GENERATION_MARK}{int(generation or 1) + 1}"


class Partition(NamedTuple):
    """A topic's partition."""

    topic: str
    number: int


@dataclass(frozen=True)
class OffsetRange:
    """Offsets [start, end) of one partition; `topic_id` is the identity of the log at the time of the claim."""

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
    """The available offsets [low, end) of a partition, and the committed offset of its consumer group.

    Attributes:
        topic_id: The identity of the log.
        low: The first available offset.
        end: The offset after the last one that can be read (the last stable offset).
        committed: The group's committed offset; None when the group has committed none, or when its offsets cannot be
            read (`GroupOffsets.committed_error`).
        leader_epoch: The epoch of the leader that answered; None when the broker does not report it.
    """

    topic_id: str
    low: int
    end: int
    committed: int | None = None
    leader_epoch: int | None = None

    @property
    def lag(self) -> int:
        """The number of offsets that are not committed; offsets that retention has removed do not count."""
        return max(0, self.end - max(self.low, self.committed or 0))

    @property
    def truncated(self) -> bool:
        """Whether the committed offset is after the end of the log: the topic was recreated or its log truncated."""
        return self.committed is not None and self.committed > self.end


class LogComparison(NamedTuple):
    """Logs compared with earlier positions.

    Attributes:
        truncated: The partitions whose log was truncated before the position.
        unanswered: The partitions that did not answer.
    """

    truncated: set[Partition]
    unanswered: set[Partition]


def _reason_of(error: "KafkaException") -> str:
    """Why a request about a partition has failed: NO_ANSWER for a timeout, else the client's text."""
    from confluent_kafka import KafkaError

    # The client has two codes for a missing answer, depending on where in the request the connection broke.
    is_unanswered = error.args[0].code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT)
    return NO_ANSWER if is_unanswered else error.args[0].str()


class GroupOffsets:
    """A consumer group's offsets and the offsets of its topics, as the broker reports them; a context manager.

    It uses two clients. An AdminClient requests the offsets of the logs: a consumer that tails a log has a fetch
    waiting at the broker, and a request on the same connection would wait for that fetch. A consumer that never joins
    the group reads and commits the group's offsets: the same requests through an AdminClient crash the process when the
    broker answers NOT_COORDINATOR, as it does after every restart (librdkafka issue 5040).

    Attributes:
        group: The consumer group's name.
        consumer: The consumer client. It may also be used to read and tail logs, because its requests about the group
            use a separate connection.
        incomplete: Whether the last `fetch_offsets`, or a check after it, left out a topic or a partition.
        left_out: {partition: reason} of the partitions that were left out: they have no leader, or it did not answer.
        committed_error: Why the last `fetch_offsets` could not read the group's committed offsets; None when it could.
        forbidden: The topics that the user may not read; they count as missing.
    """

    def __init__(self, group: str, conn_id: str = CONN_ID, **settings: Any) -> None:
        """Create the consumer client; blocks while the Airflow connection is fetched.

        Args:
            group: The consumer group's name.
            conn_id: The Airflow connection of the broker.
            settings: Added to the consumer's configuration.
        """
        from confluent_kafka import Consumer

        config = client_config(conn_id)
        self._errors = ClientErrors(conn_id, config)
        self.group = group
        self.incomplete = False
        self.left_out: dict[Partition, str] = {}
        self.committed_error: KafkaException | None = None
        self.forbidden: set[str] = set()
        # Whether a partition is changing its leader: it has none, or the new leader does not know yet that it leads.
        # Or the group is changing its coordinator.
        self._is_leader_changing = False
        self._admin_config = admin_config(config)
        # Its own threads: calls to a broker that hangs would occupy the threads that all triggers of a process share.
        # Two threads, so that the clients can be closed while such a call hangs.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"offsets of {group}")
        self.consumer = Consumer({**consumer_config(config, group), **settings})

    @cached_property
    def _admin(self) -> "AdminClient":
        # Created at the first request: a task that handles one message sends no such request.
        from confluent_kafka.admin import AdminClient

        return AdminClient(self._admin_config)

    async def fetch_offsets(
        self, topics: Iterable[str], *, needs_committed: bool = True, only: Partition | None = None
    ) -> dict[Partition, PartitionOffsets]:
        """Fetch the offsets of every partition of the topics, up to the last stable offset.

        Sends four requests, whatever the number of partitions. A missing topic, or a partition whose leader does not
        answer, does not block the others: `incomplete` is True when something was left out. A leader that does not
        answer delays the call by REQUEST_TIMEOUT_SECONDS.

        Args:
            topics: Names of topics.
            needs_committed: Raise when the group's committed offsets cannot be read. Otherwise they are None, and
                `committed_error` says why.
            only: Fetch the offsets of this partition only, without waiting for the leaders of others.

        Returns:
            The offsets by partition. Left out are topics that do not exist (yet) or that the user may not read, and
            partitions that have no leader or whose leader does not answer (`left_out`).

        Raises:
            KafkaException: No broker can be reached, no leader answers, or the user may read none of the topics.
        """
        names = list(topics)
        current: dict[Partition, PartitionOffsets] = {}
        before = {*self.left_out}, str(self.committed_error)
        until = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        with self._errors.explaining(self._admin):
            for _ in range(LEADER_CHANGE_TRIES):
                current = await self._fetch_offsets(names, only)
                if not self._is_leader_changing or time.monotonic() > until:
                    break
                await asyncio.sleep(LEADER_CHANGE_SECONDS)
            if self.committed_error is not None and needs_committed:
                raise self.committed_error
        if before != ({*self.left_out}, str(self.committed_error)):
            # Only changes are logged: the trigger calls this many times a minute.
            reasons = {f"{p.topic}-{p.number}": why for p, why in sorted(self.left_out.items())}
            log.warning("group=%s partitions left out: %s; error: %s", self.group, reasons, self.committed_error)
        return current

    async def _fetch_offsets(self, topics: Iterable[str], only: Partition | None) -> dict[Partition, PartitionOffsets]:
        from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        timeout = {"request_timeout": REQUEST_TIMEOUT_SECONDS}
        topic_ids: dict[str, str] = {}
        wanted: list[TopicPartition] = []
        self.incomplete = self._is_leader_changing = False
        self.left_out, self.committed_error = {}, None
        for topic, description in (await self._describe(topics)).items():
            if description is None:
                self.incomplete = True
                continue
            topic_ids[topic] = log_identity(topic, str(description.topic_id))
            for p in description.partitions:
                if only is not None and only != Partition(topic, p.id):
                    continue
                if p.leader is None:
                    self._leave_out(Partition(topic, p.id), "it has no leader")
                else:
                    wanted.append(TopicPartition(topic, p.id))
        if not wanted:
            return {}
        # read_committed: the end is the last stable offset. Later offsets belong to, or follow, an open transaction.
        options = {"isolation_level": IsolationLevel.READ_COMMITTED, **timeout}
        latest, earliest = cast(OffsetSpec, OffsetSpec.latest()), cast(OffsetSpec, OffsetSpec.earliest())
        ends = self._admin.list_offsets(dict.fromkeys(wanted, latest), **options)
        lows = self._admin.list_offsets(dict.fromkeys(wanted, earliest), **options)
        committed: dict[Partition, int] = {}
        try:
            committed = await self.in_thread(self._committed, wanted)
        except KafkaException as error:
            # Without the right to describe the group, the client only reports a timeout.
            text = (
                f"the committed offsets of group {self.group} cannot be read ({error.args[0].str()}): restart the "
                "broker of its coordinator, or grant the user READ and DESCRIBE on the group"
            )
            self.committed_error = KafkaException(KafkaError(error.args[0].code(), text))
            # After a broker's restart, the group's coordinator answers so until it knows its role.
            coordinator_changes = (
                KafkaError.NOT_COORDINATOR,
                KafkaError.COORDINATOR_NOT_AVAILABLE,
                KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
            )
            self._is_leader_changing |= error.args[0].code() in coordinator_changes
        current: dict[Partition, PartitionOffsets] = {}
        last_error: KafkaException | None = None
        for tp in wanted:
            partition = Partition(tp.topic, tp.partition)
            try:
                low, end = await self._offset(lows[tp]), await self._offset(ends[tp])
            except KafkaException as error:
                last_error = error
                self._leave_out(partition, _reason_of(error))
                continue
            if low is None or end is None:
                self._leave_out(partition, "its leader changes")
                continue
            current[partition] = PartitionOffsets(
                topic_ids[tp.topic], low.offset, end.offset, committed.get(partition), end.leader_epoch
            )
        if last_error is not None and not current:
            raise last_error
        return current

    def _leave_out(self, partition: Partition, why: str) -> None:
        self.left_out[partition] = why
        self.incomplete = True

    async def _describe(self, topics: Iterable[str]) -> dict[str, Any]:
        """{topic: its description, or None when it does not exist or may not be read}."""
        from confluent_kafka import KafkaError, KafkaException, TopicCollection
        from confluent_kafka.admin import AclOperation

        names = list(topics)
        if not names:
            return {}
        answers: dict[str, Future] = {}
        for seconds in (*DESCRIBE_SECONDS, REQUEST_TIMEOUT_SECONDS):
            # The answer includes the user's rights. If messages were claimed that the user may not read, their run
            # could never end.
            options = {"include_authorized_operations": True, "request_timeout": seconds}
            answers = self._admin.describe_topics(TopicCollection(names), **options)
            if await self._is_answered(answers.values()):
                break
            # Any reachable broker answers this request; the answer may name another controller.
            call = self.in_thread(self._admin.list_topics, names[0], REQUEST_TIMEOUT_SECONDS)
            metadata = asyncio.ensure_future(call)
            await self._wait([metadata])
            metadata.result()
        descriptions: dict[str, Any] = {}
        refusal: KafkaException | None = None
        self.forbidden = set()
        for topic, future in answers.items():
            descriptions[topic] = None
            try:
                description = await self._result(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise
                refusal = error
                self.forbidden.add(topic)
                continue
            # None or empty: the broker does not report the rights.
            allowed = description.authorized_operations if description is not None else None
            if allowed and AclOperation.READ not in allowed and AclOperation.ALL not in allowed:
                refusal = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, f"no READ on {topic}"))
                self.forbidden.add(topic)
                continue
            descriptions[topic] = description
        if refusal is not None and not any(descriptions.values()):
            raise refusal
        return descriptions

    def fetch_topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Fetch the log identities of topics with one request; blocks.

        Args:
            topics: Names of topics.

        Returns:
            {topic: log identity} of the topics that exist and that the user may read.

        Raises:
            KafkaException: No broker can be reached, or the user may read none of the topics.
        """
        with self._errors.explaining(self._admin):
            descriptions = asyncio.run(self._describe(topics))
        return {topic: log_identity(topic, str(d.topic_id)) for topic, d in descriptions.items() if d is not None}

    def fetch_offsets_sync(
        self, topics: Iterable[str], *, needs_committed: bool = True, only: Partition | None = None
    ) -> dict[Partition, PartitionOffsets]:
        """`fetch_offsets` for callers without an event loop; blocks."""
        return asyncio.run(self.fetch_offsets(topics, needs_committed=needs_committed, only=only))

    def find_open_transactions(self, current: Mapping[Partition, PartitionOffsets]) -> dict[Partition, int]:
        """Find partitions with an open transaction: their log continues after the last stable offset. Blocks.

        Args:
            current: The return value of `fetch_offsets`.

        Returns:
            {partition: end of its log} for these partitions. Partitions that do not answer are in `left_out`.
        """
        from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        if not current:
            return {}
        latest = cast(OffsetSpec, OffsetSpec.latest())
        wanted = {TopicPartition(p.topic, p.number): latest for p in current}
        options = {"isolation_level": IsolationLevel.READ_UNCOMMITTED, "request_timeout": REQUEST_TIMEOUT_SECONDS}
        answers = self._admin.list_offsets(wanted, **options)

        async def wait() -> dict[Partition, int]:
            blocked: dict[Partition, int] = {}
            for tp in wanted:
                partition = Partition(tp.topic, tp.partition)
                try:
                    end = await self._offset(answers[tp])
                except KafkaException as error:
                    self._leave_out(partition, _reason_of(error))
                    continue
                if end is None:
                    self._leave_out(partition, "its leader changes")
                elif end.offset > current[partition].end:
                    blocked[partition] = end.offset
            return blocked

        return asyncio.run(wait())

    def find_truncated_logs(self, positions: Mapping[Partition, tuple[int, int]]) -> LogComparison:
        """Find partitions whose log was truncated before a position, even if it was filled again since. Blocks.

        The client asks the broker where the records of the position's leader epoch end in the present log
        (OffsetForLeaderEpoch, KIP-320). If they end before the offset, other records have replaced some of the records
        that were read. The consumer must report the ends of partitions (`reading.CONSUMER_SETTINGS`). Afterwards it has
        no assignment.

        Args:
            positions: {partition: (offset, leader epoch)}: the epoch of the leader at the time when the records before
                the offset were read.

        Returns:
            The truncated partitions, and those that did not answer within REQUEST_TIMEOUT_SECONDS. The latter are also
            in `left_out`.

        Raises:
            KafkaException: The client refuses a position.
        """
        wanted = sorted(positions.items())
        compared = LogComparison(set(), set())
        try:
            for first in range(0, len(wanted), COMPARED_AT_ONCE):
                self._compare(dict(wanted[first : first + COMPARED_AT_ONCE]), compared)
        finally:
            self.consumer.unassign()
        for partition in sorted(compared.unanswered):
            self._leave_out(partition, "its log cannot be compared")
        if compared.unanswered:
            log.warning("group=%s logs cannot be compared: %s", self.group, sorted(compared.unanswered)[:10])
        return compared

    def _compare(self, positions: Mapping[Partition, tuple[int, int]], compared: LogComparison) -> None:
        from confluent_kafka import KafkaError, TopicPartition

        for topic in {partition.topic for partition in positions}:
            learn_leaders(self.consumer, topic)
        self.consumer.assign([TopicPartition(p.topic, p.number, offset) for p, (offset, _) in positions.items()])
        # The client compares the epoch only at a seek, not at an assignment.
        for partition, (offset, epoch) in positions.items():
            self._seek(TopicPartition(partition.topic, partition.number, offset, leader_epoch=epoch))
        # The client reports a truncated log with the code of a missing offset (_AUTO_OFFSET_RESET); only the text
        # differs.
        truncation_text = KafkaError(KafkaError._LOG_TRUNCATION).str()
        left = set(positions)
        until = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        while left:
            record: Any = self.consumer.poll(0.1)
            if time.monotonic() > until:
                compared.unanswered.update(left)
                return
            if record is None or record.topic() is None:
                continue
            partition, error = Partition(record.topic(), record.partition()), record.error()
            # A record or one of these errors ends the comparison of its partition; an error of the connection does not.
            ended = (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
            if partition in left and (error is None or error.code() in ended):
                left.discard(partition)
                if error is not None and truncation_text in error.str():
                    compared.truncated.add(partition)
                self.consumer.incremental_unassign([TopicPartition(*partition)])

    def _seek(self, position: Any) -> None:
        from confluent_kafka import KafkaError, KafkaException

        until = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        while True:
            try:
                return self.consumer.seek(position)
            except KafkaException as error:
                # The client is still ending the previous assignment and has not started this partition yet.
                if error.args[0].code() != KafkaError._STATE or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def commit_forward(
        self,
        positions: Mapping[Partition, tuple[str, int]],
        known: Mapping[Partition, PartitionOffsets] | None = None,
    ) -> dict[Partition, int]:
        """Commit the positions that are ahead of the group's committed offsets.

        Call this under the lock on the consumer's row. Every committer then sees positions that only grow, so committed
        offsets never move back. Positions in a deleted or recreated topic are not committed.

        Args:
            positions: {partition: (log identity, next offset)}.
            known: The return value of a call of `fetch_offsets` after the consumer's row was first locked; None to call
                it here.

        Returns:
            {partition: offset} that were committed.

        Raises:
            KafkaException: The broker refused, as it does when the group has a member; or the committed offsets could
                not be read.
        """
        if known is None:
            known = self.fetch_offsets_sync({partition.topic for partition in positions})
        if self.committed_error is not None:
            # Without the committed offsets, a commit might move them back. And without a coordinator, a commit would
            # wait for minutes, under the consumer's lock.
            raise self.committed_error
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
        """Set the group's committed offsets, forward or back. Claims call `commit_forward` instead.

        Args:
            offsets: {partition: next offset to read}.

        Raises:
            KafkaException: The broker refused an offset.
        """
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

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Wait for a blocking call without blocking the event loop or the calls of other objects."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args))

    def close(self) -> None:
        self.consumer.close()
        self._threads.shutdown(wait=False)

    def __enter__(self) -> "GroupOffsets":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _committed(self, partitions: list) -> dict[Partition, int]:
        from confluent_kafka import KafkaException

        answer = self.consumer.committed(partitions, timeout=REQUEST_TIMEOUT_SECONDS)
        for tp in answer:
            # Raised: if an error counted as "nothing committed", a first claim would start at the topic's beginning.
            if tp.error is not None:
                raise KafkaException(tp.error)
        return {Partition(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    async def _wait(self, futures: Iterable[Future | asyncio.Future]) -> None:
        """Wait without blocking the event loop; meanwhile the client serves its callbacks (OAuth tokens)."""
        pause = 0.001
        while not all(future.done() for future in futures):
            self._admin.poll(0)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.02)

    async def _is_answered(self, futures: Collection[Future]) -> bool:
        """Whether a broker has answered the request of these results."""
        from confluent_kafka import KafkaError, KafkaException

        await self._wait(futures)
        errors = [future.exception() for future in futures]
        codes = [error.args[0].code() if isinstance(error, KafkaException) else None for error in errors]
        return not all(code in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT) for code in codes)

    async def _offset(self, future: Future) -> Any:
        """`_result` for an offset; raises KafkaException also when the client returns no offset and no error."""
        from confluent_kafka import KafkaError, KafkaException

        result = await self._result(future)
        if result is not None and result.offset < 0:
            # The client returns this for a partition whose leader it cannot reach. Taken as an offset, it would look
            # like a truncated log.
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, NO_ANSWER))
        return result

    async def _result(self, future: Future) -> Any:
        """Wait for a result; None for a topic or a partition that does not exist or has no leader."""
        from confluent_kafka import KafkaError, KafkaException

        await self._wait([future])
        try:
            return future.result()
        except KafkaException as error:
            missing = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
            leader_changes = (
                KafkaError.LEADER_NOT_AVAILABLE,
                KafkaError.NOT_LEADER_FOR_PARTITION,
                KafkaError.FENCED_LEADER_EPOCH,
                KafkaError.UNKNOWN_LEADER_EPOCH,
                KafkaError.OFFSET_NOT_AVAILABLE,
            )
            code = error.args[0].code()
            self._is_leader_changing |= code in leader_changes
            if code in missing or code in leader_changes:
                return None
            raise
