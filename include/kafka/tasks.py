"""What the tasks of a consumer's Dag call.

Chunked: `claim_messages` claims, handles the first chunk and returns the others; `handle_chunk` is mapped over those.
One run per message: `claim_partition_keys` claims and returns a partition key for each message, for the asset that
schedules the Dag whose task calls `handle_message`; `claim_keys_again` returns keys whose runs never came. A task that
only wants to see the message uses `include.kafka.context`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, update

from include.kafka import watch
from include.kafka.broken_contracts import watch_broken_contracts
from include.kafka.claims import (
    Claimed,
    ConsumerStopped,
    claim,
    claimed_unhandled,
    positions_of,
    reset_command,
    settle,
)
from include.kafka.consumers import Consumer, Shape
from include.kafka.delivery import deliver_written
from include.kafka.handling import Handler, HandlingFailed
from include.kafka.messages import Message
from include.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.kafka.producer import AcknowledgedProducer
from include.kafka.reading import CONSUMER_SETTINGS, RangeReader, ReadingStalled
from include.kafka.watch import LOST_ALARM, Seen
from include.operations.alarms import add_to_alarm, open_alarm
from include.operations.database import begin
from include.operations.tables import Outcome, claim_ranges, claims

log = logging.getLogger(__name__)

# A chunk as an XCom: {"claim_id": int, "ranges": [{topic, topic_id, partition, start, end}]}.
Chunk = dict[str, Any]

# Before keys are emitted again when no run is under way: time for those just emitted to become runs.
IDLE_WAIT = timedelta(minutes=2)
# The longest wait between two emissions of the same keys.
MAX_WAIT = timedelta(hours=2)
# Until then Airflow may not have made runs of keys that were emitted: its scheduler makes some in each of its loops.
KEYS_BECOME_RUNS = timedelta(seconds=10)
# The topic of a message that was claimed longer ago is looked at again before the message is handled.
TRUSTED_AGE = timedelta(minutes=1)


def claim_messages(consumer: Consumer, run_id: str) -> list[Chunk]:
    """Claim this run's messages, handle the first chunk here, return the chunks that are left.

    The first chunk is handled in the claiming task, so that a single message costs one task. If that fails, whatever
    the reason, the chunk is returned with the others and gets a task and retries of its own: nothing that is wrong with
    it may keep the rest of the claim from being mapped.

    Raises what keeps a claim from being made or found: what the broker or the database raise; AirflowFailException,
    which is not retried, when a person has to decide.
    """
    _check_shape(consumer, Shape.chunked)
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        claimed = _claim(consumer, run_id, group)
        chunks = split(claimed, consumer.chunk_size)
        log.info(
            "claimed: consumer=%s run_id=%s ranges=%s chunks=%d",
            consumer.name,
            run_id,
            [str(r) for r in claimed.ranges],
            len(chunks),
        )
        if not chunks:
            return []
        try:
            _handle(consumer, chunks[0], run_id, group, producer)
        except Exception:
            # Whatever it is: else the other chunks would get no tasks, and wait for this one's retries.
            log.exception("the first chunk becomes a task of its own")
            return chunks
    return chunks[1:]


def claim_partition_keys(
    consumer: Consumer, run_id: str, *, worker_has_queue: Callable[[], bool] | None = None
) -> list[str]:
    """Claim this run's messages and return a key, "topic-partition-offset", for each that is not done yet.

    Messages that need no run are settled here: offsets that hold no record, and messages that break their contract,
    which go to the dead letters. A retried or cleared run returns the keys that are still open.

    While more messages than one claim takes are unhandled, the run claims nothing: at most two claims' worth of runs
    wait in Airflow. The other messages stay in Kafka, where the lag shows them and the alarm `lag` counts them.

    Args:
        consumer: declared with one run per message.
        run_id: the Dag run that claims.
        worker_has_queue: whether runs of the Dag that handles the keys wait for others to end. Asked before a claim is
            refused, so that runs that have failed for good, which are unhandled too, stop nothing. None: they count.

    Returns:
        The keys, for `outlet_events[...].add_partitions`; none when there is nothing to claim, or no room.

    Raises:
        AirflowFailException: the topic was recreated, or its log has lost its end.
    """
    _check_shape(consumer, Shape.per_message)

    def room(connection: Connection) -> int:
        unhandled = sum(claimed_unhandled(connection, consumer.name).values())
        if unhandled <= consumer.max_messages_per_claim:
            return consumer.max_messages_per_claim
        if worker_has_queue is not None and not worker_has_queue() and not _has_new_keys(connection, consumer):
            return consumer.max_messages_per_claim
        log.info("claims nothing: consumer=%s run_id=%s unhandled=%d", consumer.name, run_id, unhandled)
        return 0

    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        claimed = _claim(consumer, run_id, group, room)
        keys = _open_keys(consumer, claimed, run_id, group, producer)
    log.info("claimed: consumer=%s run_id=%s keys=%d", consumer.name, run_id, len(keys))
    return keys


def _has_new_keys(connection: Connection, consumer: Consumer) -> bool:
    """Whether keys were claimed or emitted just now: their runs may not be queued yet."""
    new = func.now() - func.coalesce(claims.c.emitted_at, claims.c.claimed_at) < KEYS_BECOME_RUNS
    found = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.closed_at.is_(None), new)
    return connection.execute(found.limit(1)).first() is not None


def claim_keys_again(
    consumer: Consumer, *, worker_is_idle: bool, worker_has_queue: bool = False, max_keys: int = 1_000
) -> list[str]:
    """Return the partition keys of claims that have been open for too long, to be emitted once more.

    Airflow drops the keys of a Dag that is paused, or not deployed yet; and the task that claimed may have failed for
    good before it emitted anything. A key that is emitted although its run only waits makes a second run, which does
    nothing but takes a slot. So each claim waits twice as long as before for its next turn, and while runs of the Dag
    wait in its queue, every claim waits for `MAX_WAIT`: its keys are probably in that queue.

    A claim whose messages cannot be read (its topic was recreated, a partition has no leader) is logged and gets its
    next turn; the keys of the other claims are returned.

    Do not call it while the Dag is paused: Airflow would drop the keys again.

    Args:
        consumer: declared with one run per message.
        worker_is_idle: the Dag that handles the keys has no run queued or running. No run is slow, so waits are short.
        worker_has_queue: runs of that Dag wait for others to end.
        max_keys: no further claim is looked at once so many keys are found.

    Returns:
        The keys, those of the longest open claims first.

    Raises:
        ClaimsUnreadable: no key was found, and at least one claim could not be read.
    """
    _check_shape(consumer, Shape.per_message)
    keys: list[str] = []
    unreadable: list[str] = []
    first_wait = IDLE_WAIT if worker_is_idle else MAX_WAIT if worker_has_queue else consumer.emit_again_after
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        for claim_id, run_id in _claims_to_emit_again(consumer, first_wait):
            try:
                keys += _open_keys(consumer, _claim(consumer, run_id, group), run_id, group, producer)
            except Exception as error:
                log.exception("a claim cannot be read: consumer=%s run_id=%s", consumer.name, run_id)
                unreadable.append(f"claim {claim_id} of run {run_id}: {error}")
                # It goes to the end of the line, or a few that take a timeout each would use up the task's time.
                _count_emission(claim_id)
            if len(keys) >= max_keys:
                break
    if keys:
        log.warning("open for too long, emitted again: consumer=%s keys=%d", consumer.name, len(keys))
    elif unreadable:
        # Only then: a task that fails emits none of its keys.
        raise ClaimsUnreadable(f"consumer {consumer.name}: {'; '.join(unreadable)}")
    return keys


class ClaimsUnreadable(Exception):
    """Open claims whose messages cannot be read; the text names each claim, its run and the reason."""


def _claims_to_emit_again(consumer: Consumer, first_wait: timedelta) -> list[tuple[int, str]]:
    """(claim id, run id) of the claims that are open, and whose keys are due; the longest open first."""
    last = func.coalesce(claims.c.emitted_at, claims.c.claimed_at)
    # Never emitted counts as once: the task that claims emits at its end.
    doublings = func.least(func.greatest(claims.c.emissions - 1, 0), 16)
    wait_seconds = func.least(first_wait.total_seconds() * func.pow(2, doublings), MAX_WAIT.total_seconds())
    due = select(claims.c.id, claims.c.run_id).where(
        claims.c.consumer == consumer.name,
        claims.c.closed_at.is_(None),
        func.extract("epoch", func.now() - last) >= wait_seconds,
    )
    with begin() as connection:
        return [(row.id, row.run_id) for row in connection.execute(due.order_by(claims.c.claimed_at))]


def _count_emission(claim_id: int) -> None:
    """Record that the claim's keys were emitted now, or that it was tried."""
    emitted = update(claims).where(claims.c.id == claim_id)
    with begin() as connection:
        connection.execute(emitted.values(emitted_at=func.now(), emissions=claims.c.emissions + 1))


def _open_keys(
    consumer: Consumer, claimed: Claimed, run_id: str, group: GroupOffsets, producer: AcknowledgedProducer
) -> list[str]:
    """A key for each message of the claim that is not done; settles what needs no run.

    A range that cannot be read keeps no key of the others back: its own are emitted once it can, by `maintain`.
    """
    from confluent_kafka import KafkaException

    keys: list[str] = []
    troubles: list[Exception] = []
    if claimed.ranges:
        handler = Handler(consumer, run_id, producer)
        reader = RangeReader(group.consumer)
        for wanted in claimed.ranges:
            position = wanted.start
            try:
                for batch in reader.read(wanted):
                    good = {message.offset for message in handler.keep_dead_letters(batch)}
                    for message in batch:
                        if message.offset in good:
                            keys.append(partition_key(message))
                            # Everything before it that is no key: holes, dead letters, and what retention has removed.
                            before = replace(wanted, start=position, end=message.offset)
                            _finish(consumer, claimed.id, before, reader.gone, run_id)
                            position = message.offset + 1
            except (ReadingStalled, KafkaException) as trouble:
                log.exception("not read to its end: %s", wanted)
                troubles.append(trouble)
                continue
            _finish(consumer, claimed.id, replace(wanted, start=position), reader.gone, run_id)
        if troubles and not keys:
            raise troubles[0]
        _watch_contracts(consumer, handler)
        _count_emission(claimed.id)
    return keys


def partition_key(message: Message) -> str:
    """The key of the run that handles this message; topic names may hold a dash, so it is read from the right."""
    return f"{message.topic}-{message.partition}-{message.offset}"


def handle_message(consumer: Consumer, key: str, run_id: str) -> None:
    """Handle the one message that a partition key names, as `claim_partition_keys` made it.

    Raises what `handle_chunk` raises, and ValueError for a key that this consumer has not claimed.
    """
    found = claimed_offset(consumer, key)
    _without_given_up(consumer, [found.wanted])
    chunk = {"claim_id": found.claim_id, "ranges": [asdict(found.wanted)]}
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        # The question costs a third of all that one message needs. Of a topic that was recreated only just, a message
        # of the new log is handled under the old coordinates, and once more by its own claim: its event acts once.
        if found.age > TRUSTED_AGE:
            _check_same_topics(consumer, [found.wanted], group)
        _handle(consumer, chunk, run_id, group, producer)


def read_message(consumer: Consumer, key: str) -> Message:
    """The message that a partition key names, with its event.

    Raises ValueError for a key that this consumer has not claimed, LookupError when the message is not in Kafka any
    more, and ContractViolation when it breaks its contract.
    """
    wanted = claimed_offset(consumer, key).wanted
    with _connect(consumer) as group:
        for batch in RangeReader(group.consumer).read(wanted):
            for message in batch:
                return message.with_event(consumer.topic(message.topic).parse(message.value))
    raise LookupError(f"consumer {consumer.name}: the message {key!r} is not in Kafka any more")


class ClaimedOffset(NamedTuple):
    """The claim that holds a message, how old it is, and the message's offset as a range of one."""

    claim_id: int
    age: timedelta
    wanted: OffsetRange


def claimed_offset(consumer: Consumer, key: str) -> ClaimedOffset:
    """Where the message of this key was claimed.

    Raises ValueError for a key that this consumer has not claimed.
    """
    topic, partition, offset = key.rsplit("-", 2)
    holds = (
        claim_ranges.c.topic == topic,
        claim_ranges.c.partition == int(partition),
        claim_ranges.c.start_offset <= int(offset),
        claim_ranges.c.end_offset > int(offset),
    )
    age = (func.now() - claims.c.claimed_at).label("age")
    found = select(claim_ranges.c.claim_id, claim_ranges.c.topic_id, age).join(
        claims, claims.c.id == claim_ranges.c.claim_id
    )
    # The newest: a topic that was made again has the same offsets once more.
    found = found.where(claims.c.consumer == consumer.name, *holds).order_by(claim_ranges.c.claim_id.desc()).limit(1)
    with begin() as connection:
        row = connection.execute(found).one_or_none()
    if row is None:
        raise ValueError(f"consumer {consumer.name}: no claim holds {key!r}")
    wanted = OffsetRange(topic, row.topic_id, int(partition), int(offset), int(offset) + 1)
    return ClaimedOffset(row.claim_id, row.age, wanted)


def handle_chunk(consumer: Consumer, chunk: Chunk, run_id: str) -> None:
    """Handle one chunk of a claim.

    Raises HandlingFailed, ReadingStalled, or what the broker or the database raise: all are for Airflow's retries.
    Raises AirflowFailException, which is not retried, when the topic is not the one that was claimed.
    """
    ranges = _without_given_up(consumer, [OffsetRange(**r) for r in chunk["ranges"]])
    chunk = {**chunk, "ranges": [asdict(r) for r in ranges]}
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        _check_same_topics(consumer, ranges, group)
        _handle(consumer, chunk, run_id, group, producer)


def _check_same_topics(consumer: Consumer, ranges: Sequence[OffsetRange], group: GroupOffsets) -> None:
    """A recreated topic has other messages at the offsets that were claimed."""
    claimed = {r.topic: r.topic_id for r in ranges}
    for topic, topic_id in group.topic_ids_now(claimed).items():
        if not is_same_topic(topic_id, claimed[topic]):
            command = reset_command(consumer.name, topic, consumer.conn_id)
            raise _final(
                f"consumer {consumer.name}: topic {topic} was deleted and recreated after these offsets were claimed; "
                f"their messages are gone. To go on with what is there now: {command}"
            )


def _without_given_up(consumer: Consumer, ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """The ranges whose log is still the consumer's: after a reset, the same offsets may hold messages of other claims.

    Raises AirflowFailException when none is left.
    """
    with begin() as connection:
        now = positions_of(connection, consumer.name, {wanted.topic for wanted in ranges})
    left: list[OffsetRange] = []
    for wanted in ranges:
        identity, _ = now.get(Partition(wanted.topic, wanted.partition), (wanted.topic_id, 0))
        if identity == wanted.topic_id:
            left.append(wanted)
        else:
            log.warning("given up when the consumer was reset: consumer=%s %s", consumer.name, wanted)
    if ranges and not left:
        named = ", ".join(map(str, ranges[:10]))
        raise _final(
            f"consumer {consumer.name}: {named} was given up when the consumer was reset; the alarm messages_lost has "
            "stated what was not handled of it. Nothing is left to do for this run: mark it as failed"
        )
    return left


def split(claimed: Claimed, chunk_size: int) -> list[Chunk]:
    """Cut the ranges into chunks of at most `chunk_size` offsets; small ranges share a chunk."""
    chunks: list[list[OffsetRange]] = []
    room = 0
    for whole in claimed.ranges:
        start = whole.start
        while start < whole.end:
            if room == 0:
                chunks.append([])
                room = chunk_size
            end = min(whole.end, start + room)
            chunks[-1].append(OffsetRange(whole.topic, whole.topic_id, whole.partition, start, end))
            room -= end - start
            start = end
    return [{"claim_id": claimed.id, "ranges": [asdict(r) for r in ranges]} for ranges in chunks]


def _check_shape(consumer: Consumer, wanted: Shape) -> None:
    if consumer.shape is not wanted:
        raise ValueError(f"consumer {consumer.name}: its shape is {consumer.shape}, this task is for {wanted}")


def _final(text: str) -> Exception:
    """A failure that Airflow does not retry: only a person can mend it."""
    from airflow.sdk.exceptions import AirflowFailException

    return AirflowFailException(text)


def _connect(consumer: Consumer) -> GroupOffsets:
    return GroupOffsets(consumer.group, consumer.conn_id, **CONSUMER_SETTINGS)


def _claim(
    consumer: Consumer, run_id: str, group: GroupOffsets, room: Callable[[Connection], int] | None = None
) -> Claimed:
    names = [topic.name for topic in consumer.topics]
    found: dict[Partition, PartitionOffsets] | None = None

    def available() -> dict[Partition, PartitionOffsets]:
        # The event lane's answer to what is available: everything up to the ends of the logs.
        nonlocal found
        found = group.look_now(names)
        return found

    committing = watch.Committing(group)
    try:
        claimed = claim(
            consumer.name,
            run_id,
            available,
            lambda positions: committing.forward(positions, found),
            max_messages=room or consumer.max_messages_per_claim,
            compare_logs=group.without_their_end,
            on_new=lambda connection, new: watch.watch_claim(
                connection, consumer, run_id, new, is_whole=not group.incomplete
            ),
        )
    except ConsumerStopped as stopped:
        text = watch.how_to_go_on(consumer, {stopped.topic: str(stopped)})
        with begin() as connection:
            open_alarm(connection, consumer.name, "consumer_stopped", text)
        raise _final(text) from stopped
    with begin() as connection:
        committing.watch(connection, consumer.name)
    if claimed.behind is None:
        # It asked again, for ranges that were claimed some time ago.
        claimed = replace(claimed, ranges=tuple(_without_given_up(consumer, claimed.ranges)))
        _check_same_topics(consumer, claimed.ranges, group)
    return claimed


def _handle(consumer: Consumer, chunk: Chunk, run_id: str, group: GroupOffsets, producer: AcknowledgedProducer) -> None:
    from confluent_kafka import KafkaException

    failures: list[str] = []
    reader = RangeReader(group.consumer)
    handler = Handler(consumer, run_id, producer)
    # Before anything is settled: in a run that is cleared later, the messages are old and not late.
    claimed_at = _open_since(chunk["claim_id"])
    old: list[Seen] = []
    for wanted in (OffsetRange(**r) for r in chunk["ranges"]):
        failed_before = len(failures)
        try:
            for batch in reader.read(wanted):
                if claimed_at is not None:
                    old += watch.older_than_allowed(consumer, batch)
                try:
                    handler.handle(batch)
                except HandlingFailed as failure:
                    # The messages behind it are not to wait for its retry.
                    failures.append(str(failure))
        except (ReadingStalled, KafkaException) as trouble:
            # Nor the other ranges for a partition that cannot be read.
            log.exception("not read to its end: %s", wanted)
            failures.append(f"{wanted}: {type(trouble).__name__}: {trouble}")
        if len(failures) == failed_before:
            _finish(consumer, chunk["claim_id"], wanted, reader.gone, run_id)
    if claimed_at is not None:
        watch.watch_handled(consumer, old, claimed_at)
    _watch_contracts(consumer, handler)
    deliver_written(handler.written, producer)
    counts = " ".join(f"{outcome}={number}" for outcome, number in handler.counts.items())
    log.info("handled: consumer=%s run_id=%s %s", consumer.name, run_id, counts)
    if failures:
        raise HandlingFailed("; ".join(failures))


def _open_since(claim_id: int) -> datetime | None:
    """When the claim was made; None when it is closed."""
    mine = select(claims.c.claimed_at).where(claims.c.id == claim_id, claims.c.closed_at.is_(None))
    with begin() as connection:
        return connection.scalar(mine)


def _watch_contracts(consumer: Consumer, handler: Handler) -> None:
    """Opens alarms at once about what these messages were; `maintain` closes them."""
    if handler.counts[Outcome.dead_letter]:
        with begin() as connection:
            watch_broken_contracts(connection, consumer)


def _finish(consumer: Consumer, claim_id: int, done: OffsetRange, gone: Sequence[tuple[int, int]], run_id: str) -> None:
    if not len(done):
        return
    with begin() as connection:
        if lost := settle(connection, consumer.name, claim_id, done, gone):
            where = ", ".join(str(r) for r in lost)
            text = f"retention removed {sum(map(len, lost))} messages before they were handled: {where} (run {run_id})"
            add_to_alarm(connection, consumer.name, LOST_ALARM, text)
