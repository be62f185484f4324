"""The functions that the tasks of a consumer's Dag call.

Chunked: `claim_messages` claims, handles the first chunk and returns the others; `handle_chunk` is mapped over those.
A retry of it handles none.

One run per message: `claim_partition_keys` claims, and returns a partition key for each message. The keys go to the
asset that schedules the Dag whose task calls `handle_message`. `claim_keys_again` returns keys whose runs were never
created. A task that only reads the message uses `include.streams.kafka.context`.

A message whose effect keeps failing leaves its run, so that it does not hold up the messages behind it. The Dag
`maintain` tries it again: `handle_postponed` (chunked) or `claim_keys_again`.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, func, select, update

from include.streams.kafka import postponed, watch
from include.streams.kafka.broken_contracts import watch_broken_contracts
from include.streams.kafka.claims import (
    Claimed,
    ConsumerStopped,
    claim,
    claimed_unhandled,
    positions_of,
    reset_command,
    settle,
)
from include.streams.kafka.consumers import Consumer, FunctionUnusable, Shape
from include.streams.kafka.delivery import OwnDelivery
from include.streams.kafka.handling import BatchProcessor, HandlingFailed
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader, ReadingStalled
from include.streams.kafka.watch import Seen
from include.streams.kafka.xcom import Chunk, as_chunk
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm
from include.streams.operations.database import begin
from include.streams.operations.tables import Outcome, claim_ranges, claims

log = logging.getLogger(__name__)

# The wait before keys are emitted again while no run is queued or running: new keys need time to become runs.
IDLE_WAIT = timedelta(minutes=2)
# The longest wait between two emissions of the same keys.
MAX_WAIT = timedelta(hours=2)
# How long Airflow may take to create runs for emitted keys: its scheduler creates some in each of its loops.
KEYS_BECOME_RUNS = timedelta(seconds=10)
# `maintain` starts no further range after this time; its next run continues.
POSTPONED_SECONDS = 240.0
# How long the task that claims handles messages itself. The other chunks get their tasks only when it ends.
FIRST_CHUNK_TIME = timedelta(minutes=1)
# The topic id is checked again before a message is handled that was claimed longer ago than this.
TRUSTED_AGE = timedelta(minutes=1)


def claim_messages(consumer: Consumer, run_id: str) -> list[Chunk]:
    """Claim this run's messages, handle the first chunk, and return the remaining chunks.

    The first chunk is handled in the claiming task, so that a single message costs one task. If that fails for any
    reason, or takes longer than FIRST_CHUNK_TIME, the chunk is returned with the others and gets a task with its own
    retries. So a problem in this chunk does not prevent the mapping of the others. A task that finds the claim of its
    run, because it is retried or cleared, returns all chunks and handles none.

    Args:
        consumer: A consumer with the shape `chunked`.
        run_id: The Dag run that claims.

    Returns:
        The chunks for `handle_chunk`; empty when nothing is left to handle.

    Raises:
        KafkaException: The broker failed before the claim was made or found.
        SQLAlchemyError: The database failed before the claim was made or found.
        AirflowFailException: A person must decide, because a topic was recreated or truncated, or the effect cannot be
            loaded. Airflow does not retry.
    """
    from airflow.sdk.exceptions import AirflowTaskTimeout

    _check_shape(consumer, Shape.chunked)
    _check_functions(consumer)

    def room(connection: Connection) -> int:
        return 0 if _holds_back(connection, consumer, run_id) else consumer.max_messages_per_claim

    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        claimed = _claim(consumer, run_id, group, room)
        chunks = split(claimed, consumer.chunk_size)
        log.info(
            "claimed: consumer=%s run_id=%s ranges=%s chunks=%d",
            consumer.name,
            run_id,
            [str(r) for r in claimed.ranges],
            len(chunks),
        )
        if claimed.behind is None:
            # A retry, or a cleared run. The task may have ended because a message of the first chunk ends its process,
            # through lack of memory or a crash: then each retry would end there, and no chunk would get a task.
            return chunks
        if not chunks:
            return []
        until = time.monotonic() + FIRST_CHUNK_TIME.total_seconds()
        try:
            _handle(consumer, chunks[0], run_id, group, producer, until=until)
        except (Exception, AirflowTaskTimeout):
            # Any exception: otherwise the other chunks would get no tasks until this chunk's retries succeed. Airflow's
            # timeout too, which is no Exception: a retry would end in it again.
            log.exception("the first chunk becomes a task of its own")
            return chunks
    return chunks[1:]


def claim_partition_keys(
    consumer: Consumer, run_id: str, *, worker_has_queue: Callable[[], bool] | None = None
) -> list[str]:
    """Claim this run's messages and return a key, "topic-partition-offset", for each that is not handled yet.

    Offsets that need no run are settled here: offsets without a record, and messages that break their contract, which
    become dead letters. A retried or cleared run returns the keys that are not handled yet.

    While more messages are unhandled than one claim may take, the run claims nothing. So at most the runs of two claims
    wait in Airflow. The other messages stay in Kafka, where they count as lag and for the alarm `lag`.

    Args:
        consumer: A consumer with the shape `per_message`.
        run_id: The Dag run that claims.
        worker_has_queue: Returns whether the Dag that handles the keys has queued runs. It is called before a claim is
            refused: messages of runs that failed for good are unhandled too, but must not block new claims. None: they
            do block new claims.

    Returns:
        The keys, for `outlet_events[...].add_partitions`; empty when there is nothing to claim, or no room.

    Raises:
        AirflowFailException: The topic was recreated, or its log was truncated; or the effect cannot be loaded.
    """
    _check_shape(consumer, Shape.per_message)
    _check_functions(consumer)

    def room(connection: Connection) -> int:
        if _holds_back(connection, consumer, run_id):
            return 0
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


def _check_functions(consumer: Consumer) -> None:
    """Raise AirflowFailException if the effect cannot be loaded: nothing is claimed that could not be handled.

    The messages wait in Kafka, in their order, until a deploy brings the effect.
    """
    try:
        consumer.load_effect()
        consumer.load_prepare()
    except FunctionUnusable as broken:
        _alarm_fault(consumer, str(broken))
        raise _final(f"{broken}. Nothing was claimed; the messages wait in Kafka") from broken


def _alarm_fault(consumer: Consumer, text: str) -> None:
    with begin() as connection:
        watch.open_fault(connection, consumer, text)


def _holds_back(connection: Connection, consumer: Consumer, run_id: str) -> bool:
    held = postponed.blocks_claims(connection, consumer.name)
    if held:
        log.warning("claims nothing, because all effects fail: consumer=%s run_id=%s", consumer.name, run_id)
    return held


def _has_new_keys(connection: Connection, consumer: Consumer) -> bool:
    """Whether keys were claimed or emitted within KEYS_BECOME_RUNS: their runs may not be queued yet."""
    new = func.now() - func.coalesce(claims.c.emitted_at, claims.c.claimed_at) < KEYS_BECOME_RUNS
    found = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.closed_at.is_(None), new)
    return connection.execute(found.limit(1)).first() is not None


def claim_keys_again(
    consumer: Consumer, *, worker_is_idle: bool, worker_has_queue: bool = False, max_keys: int = 1_000
) -> list[str]:
    """Return the partition keys of claims that have been open for too long, to be emitted again.

    Airflow drops the keys of a Dag that is paused or not deployed yet, and the claiming task may have failed for good
    before it emitted its keys. If a key is emitted again although its first run still waits, the second run does
    nothing, but it takes a slot. So each claim waits twice as long as before for its next emission. While the Dag has
    queued runs, every claim waits for `MAX_WAIT`, because its keys are probably among these runs.

    The key of a message that left its run because its effect kept failing is due by its own time, whatever is queued.

    A claim whose messages cannot be read (its topic was recreated, or a partition has no leader) is logged and tried
    again at its next emission; the keys of the other claims are returned.

    Do not call this while the Dag is paused: Airflow would drop the keys again.

    Args:
        consumer: A consumer with the shape `per_message`.
        worker_is_idle: The Dag that handles the keys has no run queued or running. Then no run is slow, and waits are
            short.
        worker_has_queue: The Dag that handles the keys has queued runs.
        max_keys: Once this many keys are found, no further claim is read.

    Returns:
        The keys: of messages that left their runs, then those of the oldest open claims first.

    Raises:
        ClaimsUnreadable: No key was found, and at least one claim could not be read.
    """
    from airflow.sdk.exceptions import AirflowTaskTimeout

    _check_shape(consumer, Shape.per_message)
    keys = _keys_that_left_their_runs(consumer, max_keys)
    unreadable: list[str] = []
    first_wait = IDLE_WAIT if worker_is_idle else MAX_WAIT if worker_has_queue else consumer.emit_again_after
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        for claim_id, run_id in _claims_to_emit_again(consumer, first_wait):
            try:
                keys += _open_keys(consumer, _claim(consumer, run_id, group), run_id, group, producer)
            except Exception as error:
                log.exception("a claim cannot be read: consumer=%s run_id=%s", consumer.name, run_id)
                unreadable.append(f"claim {claim_id} of run {run_id}: {error}")
                # Counted as emitted, so that this claim waits for its next emission: otherwise a few claims that each
                # end in a timeout would use up the task's time.
                _count_emission(claim_id)
            except AirflowTaskTimeout:
                # It comes only once, so no further claim may be read. Without keys, the task would fail and lose those
                # of the claims before, which count as emitted.
                log.exception("no time was left to read a claim: consumer=%s run_id=%s", consumer.name, run_id)
                _count_emission(claim_id)
                unreadable.append(f"claim {claim_id} of run {run_id}: no time was left")
                break
            if len(keys) >= max_keys:
                break
    keys = list(dict.fromkeys(keys))
    if keys:
        log.warning("open for too long, emitted again: consumer=%s keys=%d", consumer.name, len(keys))
    elif unreadable:
        # Raised only without keys, because a task that fails emits none of its keys.
        raise ClaimsUnreadable(f"consumer {consumer.name}: {'; '.join(unreadable)}")
    return keys


def _keys_that_left_their_runs(consumer: Consumer, max_keys: int) -> list[str]:
    """The keys of messages that are due because their effects kept failing, at most this many.

    Their runs have ended, so they are not among the runs that are queued. Emitted, a key may wait there, so it is not
    due again before its run has failed; only a key that is lost is due after MAX_WAIT.
    """
    keys: list[str] = []
    while len(keys) < max_keys and (one := postponed.take_due([consumer.name], due_again_after=MAX_WAIT)) is not None:
        keys.append(_key_at(one.offsets.topic, one.offsets.partition, one.offsets.start))
    return keys


class ClaimsUnreadable(Exception):
    """Open claims whose messages cannot be read; the text names each claim, its run and the reason."""


def _claims_to_emit_again(consumer: Consumer, first_wait: timedelta) -> list[tuple[int, str]]:
    """(claim id, run id) of the open claims whose keys are due; the oldest first."""
    last = func.coalesce(claims.c.emitted_at, claims.c.claimed_at)
    # No emission counts as one, because the task that claims emits at its end.
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
    """Record that the claim's keys were emitted now, or that an attempt failed."""
    emitted = update(claims).where(claims.c.id == claim_id)
    with begin() as connection:
        connection.execute(emitted.values(emitted_at=func.now(), emissions=claims.c.emissions + 1))


def _open_keys(
    consumer: Consumer, claimed: Claimed, run_id: str, group: GroupOffsets, producer: AcknowledgedProducer
) -> list[str]:
    """A key for each unhandled message of the claim; settles offsets that need no run.

    A range that cannot be read does not delay the keys of the others. The Dag `maintain` emits the keys of that range
    once it can be read.
    """
    from confluent_kafka import KafkaException

    keys: list[str] = []
    troubles: list[Exception] = []
    if claimed.ranges:
        processor = BatchProcessor(consumer, run_id, producer)
        reader = RangeReader(group.consumer)
        for wanted in claimed.ranges:
            position = wanted.start
            try:
                for batch in reader.read(wanted):
                    good = {message.offset for message in processor.publish_invalid(batch)}
                    for message in batch:
                        if message.offset in good:
                            keys.append(partition_key(message))
                            # Offsets before this message without a key: holes, dead letters, messages already handled,
                            # and offsets that retention removed.
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
        _watch_contracts(consumer, processor)
        _count_emission(claimed.id)
    return keys


def partition_key(message: Message) -> str:
    """The key of the run that handles this message; parsed from the right, because topic names may contain a dash."""
    return _key_at(message.topic, message.partition, message.offset)


def _key_at(topic: str, partition: int, offset: int) -> str:
    return f"{topic}-{partition}-{offset}"


def handle_message(consumer: Consumer, key: str, run_id: str) -> None:
    """Handle the one message that a partition key names.

    Args:
        consumer: The consumer that claimed the message.
        key: A key from `claim_partition_keys`.
        run_id: The Dag run that handles it.

    Raises:
        ValueError: This consumer has not claimed the key.
        HandlingFailed: The effect failed, or the message cannot be read; Airflow retries.
        KafkaException: The broker failed; Airflow retries.
        SQLAlchemyError: The database failed; Airflow retries.
        AirflowFailException: The topic is not the one that was claimed, or the effect keeps failing and its key is
            emitted again later; Airflow does not retry.
    """
    found = claimed_offset(consumer, key)
    _without_given_up(consumer, [found.wanted])
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        # The check of the topic id takes a third of the time of one message, so it is skipped for recent claims. The
        # risk: if the topic was recreated within TRUSTED_AGE, a message of the new log is handled under the old
        # coordinates, and again by its own claim. The inbox ensures that its event has one effect.
        if found.age > TRUSTED_AGE:
            _check_same_topics(consumer, [found.wanted], group)
        _handle(consumer, as_chunk(found.claim_id, [found.wanted]), run_id, group, producer)


def read_message(consumer: Consumer, key: str) -> Message:
    """Read the message that a partition key names, with its event.

    Args:
        consumer: The consumer that claimed the message.
        key: A key from `claim_partition_keys`.

    Raises:
        ValueError: This consumer has not claimed the key.
        LookupError: The message is no longer in Kafka.
        ContractViolation: The message breaks its contract.
        NotWanted: No contract of the topic's union takes the message.
        ReadingStalled: The broker returned nothing in time.
        KafkaException: The broker failed.
    """
    wanted = claimed_offset(consumer, key).wanted
    with _connect(consumer) as group:
        for batch in RangeReader(group.consumer).read(wanted):
            for message in batch:
                return message.with_event(consumer.topic(message.topic).parse(message.value, message.headers))
    raise LookupError(f"consumer {consumer.name}: the message {key!r} is not in Kafka any more")


class ClaimedOffset(NamedTuple):
    """The claim that holds a message, the claim's age, and the message's offset as a range of length one."""

    claim_id: int
    age: timedelta
    wanted: OffsetRange


def claimed_offset(consumer: Consumer, key: str) -> ClaimedOffset:
    """Find the claim that holds the message of this key.

    Args:
        consumer: The consumer that claimed the message.
        key: A key from `claim_partition_keys`.

    Raises:
        ValueError: This consumer has not claimed the key.
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
    # The newest claim, because a recreated topic uses the same offsets again.
    found = found.where(claims.c.consumer == consumer.name, *holds).order_by(claim_ranges.c.claim_id.desc()).limit(1)
    with begin() as connection:
        row = connection.execute(found).one_or_none()
    if row is None:
        raise ValueError(f"consumer {consumer.name}: no claim holds {key!r}")
    wanted = OffsetRange(topic, row.topic_id, int(partition), int(offset), int(offset) + 1)
    return ClaimedOffset(row.claim_id, row.age, wanted)


def handle_chunk(consumer: Consumer, chunk: Chunk, run_id: str) -> None:
    """Handle one chunk of a claim.

    Args:
        consumer: The consumer that made the claim.
        chunk: A chunk from `claim_messages`.
        run_id: The Dag run that handles it.

    Raises:
        HandlingFailed: Some effects failed, or some ranges cannot be read; Airflow retries.
        KafkaException: The broker failed; Airflow retries.
        SQLAlchemyError: The database failed; Airflow retries.
        AirflowFailException: The topic is not the one that was claimed, or some effects keep failing and are left to
            `handle_postponed`; Airflow does not retry.
    """
    ranges = _without_given_up(consumer, [OffsetRange(**r) for r in chunk["ranges"]])
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        _check_same_topics(consumer, ranges, group)
        _handle(consumer, as_chunk(chunk["claim_id"], ranges), run_id, group, producer)


def handle_postponed(consumers: Sequence[Consumer], *, seconds: float = POSTPONED_SECONDS) -> int:
    """Try ranges again whose runs have ended because effects failed; each waits twice as long as before.

    A range that fails again is logged and waits for its next turn. The alarm `claim_open` names its run.

    Args:
        consumers: Declared consumers; those with the shape `chunked` have such ranges.
        seconds: After this time no further range is tried.

    Returns:
        How many ranges are handled now.

    Raises:
        SQLAlchemyError: The database is unavailable.
    """
    by_name = {consumer.name: consumer for consumer in consumers if consumer.shape is Shape.chunked}
    until = time.monotonic() + seconds
    handled = 0
    while time.monotonic() < until and (one := postponed.take_due(by_name)) is not None:
        try:
            handle_chunk(by_name[one.consumer], as_chunk(one.claim_id, [one.offsets]), one.run_id)
        except Exception as error:
            log.warning("fails again: consumer=%s run_id=%s %s: %s", one.consumer, one.run_id, one.offsets, error)
            continue
        handled += 1
        log.info("handled at last: consumer=%s run_id=%s %s", one.consumer, one.run_id, one.offsets)
    return handled


def _check_same_topics(consumer: Consumer, ranges: Sequence[OffsetRange], group: GroupOffsets) -> None:
    """Raise AirflowFailException if a topic was recreated: it has other messages at the claimed offsets."""
    claimed = {r.topic: r.topic_id for r in ranges}
    for topic, topic_id in group.fetch_topic_ids(claimed).items():
        if not is_same_topic(topic_id, claimed[topic]):
            command = reset_command(consumer.name, topic, consumer.conn_id)
            raise _final(
                f"consumer {consumer.name}: topic {topic} was deleted and recreated after these offsets were claimed; "
                f"their messages are gone. To go on with what is there now: {command}"
            )


def _without_given_up(consumer: Consumer, ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """The ranges that no reset of the consumer has given up: after a reset, other claims may hold the same offsets.

    Raises AirflowFailException when no range is left.
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
            "stated what was not handled of it. Nothing is left to do for this run"
        )
    return left


def split(claimed: Claimed, chunk_size: int) -> list[Chunk]:
    """Cut the ranges of a claim into chunks; small ranges share a chunk.

    Args:
        claimed: The claim.
        chunk_size: The most offsets per chunk.

    Returns:
        The chunks in the order of the ranges.
    """
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
    return [as_chunk(claimed.id, ranges) for ranges in chunks]


def _check_shape(consumer: Consumer, wanted: Shape) -> None:
    if consumer.shape is not wanted:
        raise ValueError(f"consumer {consumer.name}: its shape is {consumer.shape}, this task is for {wanted}")


def _final(text: str) -> Exception:
    """A failure that Airflow does not retry, because only a person can fix it."""
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
        # In the event lane, all offsets up to the ends of the logs are available.
        nonlocal found
        found = group.fetch_offsets_sync(names, needs_committed=False)
        return _without_unsure_starts(consumer, found, group)

    committing = watch.Committing(group)
    try:
        claimed = claim(
            consumer.name,
            run_id,
            available,
            lambda positions: committing.forward(positions, found),
            max_messages=room or consumer.max_messages_per_claim,
            compare_logs=group.find_truncated_logs,
            on_new=lambda connection, new: watch.watch_claim(
                connection,
                consumer,
                run_id,
                new,
                is_whole=not group.incomplete and group.committed_error is None,
            ),
        )
    except ConsumerStopped as stopped:
        with begin() as connection:
            watch.add_stopped(connection, consumer, stopped.stopped)
        raise _final(watch.how_to_go_on(consumer, stopped.stopped)) from stopped
    with begin() as connection:
        committing.watch(connection, consumer.name)
    if claimed.behind is None:
        # The run had this claim already, so the topic may have changed since.
        claimed = replace(claimed, ranges=tuple(_without_given_up(consumer, claimed.ranges)))
        _check_same_topics(consumer, claimed.ranges, group)
    return claimed


def _without_unsure_starts(
    consumer: Consumer, found: dict[Partition, PartitionOffsets], group: GroupOffsets
) -> dict[Partition, PartitionOffsets]:
    """Leave out topics that the consumer has not started while it cannot be known where all their partitions start.

    A first claim starts at the group's committed offsets. A partition that comes later starts at its beginning: its
    messages before the committed offset would be handled again.

    Raises KafkaException when the group's committed offsets cannot be read and no topic is left.
    """
    if group.committed_error is None and not group.left_out:
        return found
    with begin() as connection:
        started = {partition.topic for partition in positions_of(connection, consumer.name)}
    unsure = {p.topic for p in (group.left_out if group.committed_error is None else found)} - started
    if unsure:
        log.warning("first claim waits until all partitions answer: consumer=%s topics=%s", consumer.name, unsure)
    sure = {partition: offsets for partition, offsets in found.items() if partition.topic not in unsure}
    if group.committed_error is not None and not sure:
        raise group.committed_error
    return sure


def _handle(
    consumer: Consumer,
    chunk: Chunk,
    run_id: str,
    group: GroupOffsets,
    producer: AcknowledgedProducer,
    *,
    until: float = math.inf,
) -> None:
    """Handle a chunk's messages; what is left at `until`, a time of the monotonic clock, counts as failed."""
    from confluent_kafka import KafkaException

    began = time.monotonic()
    failures: list[str] = []
    # Ranges with effects that failed.
    refused: list[OffsetRange] = []
    is_read = True
    reader = RangeReader(group.consumer)
    try:
        processor = BatchProcessor(consumer, run_id, producer, until=until)
    except FunctionUnusable as broken:
        _alarm_fault(consumer, str(broken))
        raise _left_to_maintain(chunk["claim_id"], [OffsetRange(**r) for r in chunk["ranges"]], [str(broken)]) from None
    delivery = OwnDelivery(producer)
    # Read before ranges are settled. None in a run that is cleared later: its messages are old, but not late.
    claimed_at = _open_since(chunk["claim_id"])
    old: list[Seen] = []
    for wanted in (OffsetRange(**r) for r in chunk["ranges"]):
        failed_before = len(failures)
        if time.monotonic() > until:
            failures.append(f"{wanted}: no time was left")
            continue
        try:
            for batch in reader.read(wanted):
                if time.monotonic() > until:
                    failures.append(f"{wanted}: no time was left")
                    break
                if claimed_at is not None:
                    old += watch.older_than_allowed(consumer, batch)
                try:
                    processor.handle(batch)
                except HandlingFailed as failure:
                    # Recorded, not raised, so that later messages need not wait for the retry.
                    failures.append(str(failure))
                    refused.append(wanted)
                delivery.between_batches(processor.written)
        except (ReadingStalled, KafkaException) as trouble:
            # Recorded, so that the other ranges need not wait for a partition that cannot be read.
            log.exception("not read to its end: %s", wanted)
            failures.append(f"{wanted}: {type(trouble).__name__}: {trouble}")
            is_read = False
        if len(failures) == failed_before:
            _finish(consumer, chunk["claim_id"], wanted, reader.gone, run_id)
    if claimed_at is not None:
        watch.watch_handled(consumer, old, claimed_at)
    _watch_contracts(consumer, processor)
    delivery.deliver(processor.written)
    counts = " ".join(f"{outcome}={number}" for outcome, number in processor.counts.items())
    log.info("handled: consumer=%s run_id=%s %s", consumer.name, run_id, counts)
    if failures:
        # An outage of the broker fails no run: its retries last for hours.
        only_effects_failed = refused and is_read and time.monotonic() <= until
        ranges, tried = list(dict.fromkeys(refused)), timedelta(seconds=time.monotonic() - began)
        if only_effects_failed and _is_fault(consumer, chunk["claim_id"], ranges, processor):
            # Without the errors' texts, which may quote a message.
            kinds = ", ".join(sorted(set(processor.faults)))
            _alarm_fault(consumer, f"the effect {consumer.effect} fails for every message ({kinds}), see the run's log")
            raise _left_to_maintain(chunk["claim_id"], ranges, failures)
        if only_effects_failed and postponed.should_postpone(consumer.name, chunk["claim_id"], ranges, tried=tried):
            raise _left_to_maintain(chunk["claim_id"], ranges, failures)
        raise HandlingFailed("; ".join(failures))


def _is_fault(consumer: Consumer, claim_id: int, refused: Sequence[OffsetRange], processor: BatchProcessor) -> bool:
    """Whether the effects of all messages fail with a programming error, which no retry changes.

    A single message may be odd, and its error with it: it is retried in its run while the others are handled.
    """
    if processor.counts[Outcome.handled] or not processor.faults or len(processor.faults) < processor.failed:
        return False
    return postponed.all_fail(consumer.name, claim_id, refused, processor.failed)


def _left_to_maintain(claim_id: int, refused: Sequence[OffsetRange], failures: Sequence[str]) -> Exception:
    """Leave the ranges to the Dag `maintain`; returns a failure that Airflow does not retry, so that the run ends."""
    postponed.postpone(claim_id, refused)
    return _final(
        f"{'; '.join(failures)}. This run ends, so that the messages behind them get one. The Dag maintain tries these "
        "messages again; repair the cause (docs/runbooks/a-run-failed.md)"
    )


def _open_since(claim_id: int) -> datetime | None:
    """When the claim was made; None when it is closed."""
    mine = select(claims.c.claimed_at).where(claims.c.id == claim_id, claims.c.closed_at.is_(None))
    with begin() as connection:
        return connection.scalar(mine)


def _watch_contracts(consumer: Consumer, processor: BatchProcessor) -> None:
    """Open or close the alarm about dead letters now, if this run had any; otherwise the Dag `maintain` closes it."""
    if processor.counts[Outcome.dead_letter]:
        with begin() as connection:
            watch_broken_contracts(connection, consumer)


def _finish(consumer: Consumer, claim_id: int, done: OffsetRange, gone: Sequence[tuple[int, int]], run_id: str) -> None:
    if not len(done):
        return
    with begin() as connection:
        postponed.remove(connection, claim_id, done)
        if lost := settle(connection, consumer.name, claim_id, done, gone):
            where = ", ".join(str(r) for r in lost)
            text = f"retention removed {sum(map(len, lost))} messages before they were handled: {where} (run {run_id})"
            add_to_alarm(connection, consumer.name, AlarmKind.messages_lost, text)
