"""The functions that the tasks of a consumer's Dag call.

Chunked: `claim_messages` claims, handles the first chunk and returns the other chunks; `handle_chunk` is mapped over
those. A retry of `claim_messages` handles no chunk and returns all of them.

One run per message: `claim_partition_keys` claims, and returns a partition key for each message. The keys go to the
asset that schedules the Dag whose task calls `handle_message`. `claim_keys_again` returns keys whose runs were never
created. A task that only reads the message uses `include.streams.kafka.context`.

A message whose effect keeps failing leaves its run, so that it does not delay the messages after it. The Dag `maintain`
tries it again: `handle_postponed` (chunked) or `claim_keys_again`.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, func, select, update

from include.streams.formats import RegistryUnavailable
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
from include.streams.kafka.watch import OldMessage
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
# How long Airflow may take to create runs for emitted keys: its scheduler creates some of them in each of its loops.
KEYS_BECOME_RUNS = timedelta(seconds=10)
# `maintain` starts no further range after this time; its next run continues.
POSTPONED_SECONDS = 240.0
# How long the task that claims handles the first chunk. The other chunks get their tasks only when this task ends.
FIRST_CHUNK_TIME = timedelta(minutes=1)
# If a message was claimed longer ago than this, the topic id is checked again before the message is handled.
TRUSTED_AGE = timedelta(minutes=1)


def claim_messages(consumer: Consumer, run_id: str) -> list[Chunk]:
    """Claim this run's messages, handle the first chunk, and return the remaining chunks.

    The first chunk is handled in the claiming task, so that a single message costs one task. If that fails for any
    reason, or takes longer than FIRST_CHUNK_TIME, the chunk is returned with the others and gets a task with its own
    retries. So a problem in this chunk does not prevent the mapping of the other chunks. A task that finds the claim of
    its run, because it is retried or cleared, returns all chunks and handles none.

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
    try:
        _check_functions(consumer)
    except Exception:
        # The retry of a killed task, or a cleared run: its chunks get tasks, which leave them to the Dag maintain. If
        # this task failed, the claim would stay open after the repair, until a person clears its run.
        if not _has_claim(consumer, run_id):
            raise

    def max_messages(connection: Connection) -> int:
        return 0 if _blocks_claims(connection, consumer, run_id) else consumer.max_messages_per_claim

    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        claimed = _claim(consumer, run_id, group, max_messages)
        chunks = split(claimed, consumer.chunk_size)
        log.info(
            "claimed: consumer=%s run_id=%s ranges=%s chunks=%d",
            consumer.name,
            run_id,
            [str(r) for r in claimed.ranges],
            len(chunks),
        )
        if claimed.behind is None:
            # A retry, or a cleared run. Perhaps a message of the first chunk has killed the task's process (lack of
            # memory, a crash). Then it would kill each retry too, and no chunk would get a task.
            return chunks
        if not chunks:
            return []
        until = time.monotonic() + FIRST_CHUNK_TIME.total_seconds()
        try:
            _handle(consumer, chunks[0], run_id, group, producer, until=until)
        except (Exception, AirflowTaskTimeout):
            # Any exception: otherwise the other chunks would get no tasks until this chunk's retries succeed. Also
            # Airflow's timeout, which is not an Exception: a retry would time out again.
            log.exception("the first chunk is returned, to be handled in a separate task")
            return chunks
    return chunks[1:]


def claim_partition_keys(
    consumer: Consumer, run_id: str, *, worker_has_queue: Callable[[], bool] | None = None
) -> list[str]:
    """Claim this run's messages and return a key, "topic-partition-offset", for each message that is not handled yet.

    Offsets that need no run are settled here: offsets without a record, and messages that break their contract, which
    become dead letters. A retried or cleared run returns the keys that are not handled yet.

    While more messages are unhandled than one claim may take, the run claims nothing. So at most the runs of two claims
    wait in Airflow. The other messages stay in Kafka and count as lag, also for the alarm `lag`.

    Args:
        consumer: A consumer with the shape `per_message`.
        run_id: The Dag run that claims.
        worker_has_queue: Returns whether the Dag that handles the keys has queued runs. It is called before the run
            claims nothing: messages of failed runs are unhandled too, but must not block new claims. Without it, they
            do block new claims.

    Returns:
        The keys, for `outlet_events[...].add_partitions`; empty when nothing is claimed.

    Raises:
        AirflowFailException: The topic was recreated, or its log was truncated; or the effect cannot be loaded.
    """
    _check_shape(consumer, Shape.per_message)
    _check_functions(consumer)

    def max_messages(connection: Connection) -> int:
        if _blocks_claims(connection, consumer, run_id):
            return 0
        unhandled = sum(claimed_unhandled(connection, consumer.name).values())
        if unhandled <= consumer.max_messages_per_claim:
            return consumer.max_messages_per_claim
        if worker_has_queue is not None and not worker_has_queue() and not _has_new_keys(connection, consumer):
            return consumer.max_messages_per_claim
        log.info("claims nothing: consumer=%s run_id=%s unhandled=%d", consumer.name, run_id, unhandled)
        return 0

    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        claimed = _claim(consumer, run_id, group, max_messages)
        keys = _open_keys(consumer, claimed, run_id, group, producer)
    log.info("claimed: consumer=%s run_id=%s keys=%d", consumer.name, run_id, len(keys))
    return keys


def _check_functions(consumer: Consumer) -> None:
    """Raise AirflowFailException if the effect cannot be loaded, before messages are claimed that cannot be handled.

    The messages wait in Kafka, in their order, until a deploy corrects the effect.
    """
    try:
        consumer.load_effect()
        consumer.load_prepare()
    except FunctionUnusable as error:
        _alarm_failing_effect(consumer, str(error))
        raise _permanent_failure(f"{error}. Nothing was claimed; the messages wait in Kafka") from error


def _has_claim(consumer: Consumer, run_id: str) -> bool:
    of_run = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.run_id == run_id)
    with begin() as connection:
        return connection.scalar(of_run) is not None


def _alarm_failing_effect(consumer: Consumer, text: str) -> None:
    with begin() as connection:
        watch.alarm_failing_effect(connection, consumer, text)


def _blocks_claims(connection: Connection, consumer: Consumer, run_id: str) -> bool:
    is_blocked = postponed.blocks_claims(connection, consumer.name)
    if is_blocked:
        log.warning("claims nothing, because all effects fail: consumer=%s run_id=%s", consumer.name, run_id)
    return is_blocked


def _has_new_keys(connection: Connection, consumer: Consumer) -> bool:
    """Whether keys were claimed or emitted within KEYS_BECOME_RUNS: their runs may not be queued yet."""
    is_new = func.now() - func.coalesce(claims.c.emitted_at, claims.c.claimed_at) < KEYS_BECOME_RUNS
    new_claims = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.closed_at.is_(None), is_new)
    return connection.execute(new_claims.limit(1)).first() is not None


def claim_keys_again(
    consumer: Consumer, *, worker_is_idle: bool, worker_has_queue: bool = False, max_keys: int = 1_000
) -> list[str]:
    """Return the partition keys of claims that have been open for too long, to be emitted again.

    Airflow drops the keys of a Dag that is paused or not deployed yet, and the claiming task may have failed for good
    before it emitted its keys. If a key is emitted again while its first run still waits, the second run does nothing,
    but it takes a slot. So each claim waits twice as long as before for its next emission. While the Dag has queued
    runs, every claim waits for `MAX_WAIT`, because its keys are probably among these runs.

    The key of a postponed message (it left its run, because its effect kept failing) has its own time, whatever is
    queued.

    A claim whose messages cannot be read (its topic was recreated, or a partition has no leader) is logged and tried
    again at its next emission; the keys of the other claims are returned.

    Do not call this while the Dag is paused: Airflow would drop the keys again.

    Args:
        consumer: A consumer with the shape `per_message`.
        worker_is_idle: The Dag that handles the keys has no queued or running run. Then no key can be waiting in a run,
            and the wait is short.
        worker_has_queue: The Dag that handles the keys has queued runs.
        max_keys: Once this many keys are found, no further claim is read.

    Returns:
        The keys: first those of postponed messages, then those of open claims, the oldest claim first.

    Raises:
        ClaimsUnreadable: No key was found, and at least one claim could not be read.
    """
    from airflow.sdk.exceptions import AirflowTaskTimeout

    _check_shape(consumer, Shape.per_message)
    keys = _postponed_keys(consumer, max_keys)
    unreadable: list[str] = []
    first_wait = IDLE_WAIT if worker_is_idle else MAX_WAIT if worker_has_queue else consumer.emit_again_after
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        for claim_id, run_id in _claims_to_emit_again(consumer, first_wait):
            try:
                keys += _open_keys(consumer, _claim(consumer, run_id, group), run_id, group, producer)
            except Exception as error:
                log.exception("a claim cannot be read: consumer=%s run_id=%s", consumer.name, run_id)
                unreadable.append(f"claim {claim_id} of run {run_id}: {error}")
                # Counted as emitted, so that this claim waits for its next emission. Otherwise a few claims that each
                # end in a timeout would use up the task's time at every run.
                _count_emission(claim_id)
            except AirflowTaskTimeout:
                # Airflow raises it only once, so no further claim is read. If it were raised here, the keys of the
                # claims before would be lost: they count as emitted.
                log.exception("claim not read within the time limit: consumer=%s run_id=%s", consumer.name, run_id)
                _count_emission(claim_id)
                unreadable.append(f"claim {claim_id} of run {run_id}: not read within the time limit")
                break
            if len(keys) >= max_keys:
                break
    keys = list(dict.fromkeys(keys))
    if keys:
        log.warning("keys open for too long, emitted again: consumer=%s keys=%d", consumer.name, len(keys))
    elif unreadable:
        # Raised only without keys, because a task that fails emits none of its keys.
        raise ClaimsUnreadable(f"consumer {consumer.name}: {'; '.join(unreadable)}")
    return keys


def _postponed_keys(consumer: Consumer, max_keys: int) -> list[str]:
    """The keys of postponed messages that are due, at most `max_keys`.

    The runs of these messages have ended, so their keys are not among the queued runs. An emitted key may wait there.
    So it is due again only after its new run has failed, or, if the key was lost, after MAX_WAIT.
    """
    keys: list[str] = []
    while len(keys) < max_keys:
        due = postponed.take_due([consumer.name], due_again_after=MAX_WAIT)
        if due is None:
            break
        keys.append(_format_key(due.offsets.topic, due.offsets.partition, due.offsets.start))
    return keys


class ClaimsUnreadable(Exception):
    """Open claims whose messages cannot be read; the text names each claim, its run and the reason."""


def _claims_to_emit_again(consumer: Consumer, first_wait: timedelta) -> list[tuple[int, str]]:
    """(claim id, run id) of the open claims whose keys are due; the oldest first."""
    last = func.coalesce(claims.c.emitted_at, claims.c.claimed_at)
    # A claim without a recorded emission counts as emitted once, because the task that claims emits at its end.
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
    """Return a key for each unhandled message of the claim; settle offsets that need no run.

    A range that cannot be read does not delay the keys of the other ranges. The Dag `maintain` emits the keys of that
    range once it can be read.
    """
    from confluent_kafka import KafkaException

    keys: list[str] = []
    errors: list[Exception] = []
    if claimed.ranges:
        processor = BatchProcessor(consumer, run_id, producer)
        reader = RangeReader(group.consumer)
        for wanted in claimed.ranges:
            position = wanted.start
            try:
                for batch in reader.read(wanted):
                    unhandled = {message.offset for message in processor.publish_invalid(batch)}
                    for message in batch:
                        if message.offset in unhandled:
                            keys.append(partition_key(message))
                            # Offsets without a key before this message: holes, dead letters, handled messages, and
                            # offsets that retention removed.
                            before = replace(wanted, start=position, end=message.offset)
                            _finish(consumer, claimed.id, before, reader.gone, run_id)
                            position = message.offset + 1
            except (ReadingStalled, KafkaException, RegistryUnavailable) as error:
                log.exception("range not read to its end: %s", wanted)
                errors.append(error)
                continue
            _finish(consumer, claimed.id, replace(wanted, start=position), reader.gone, run_id)
        if errors and not keys:
            raise errors[0]
        _watch_dead_letters(consumer, processor)
        _count_emission(claimed.id)
    return keys


def partition_key(message: Message) -> str:
    """The key of the run that handles this message: "topic-partition-offset".

    It must be parsed from the right, because topic names may contain a dash.

    Args:
        message: The message.
    """
    return _format_key(message.topic, message.partition, message.offset)


def _format_key(topic: str, partition: int, offset: int) -> str:
    return f"{topic}-{partition}-{offset}"


def handle_message(consumer: Consumer, key: str, run_id: str) -> None:
    """Handle the one message that a partition key names.

    Args:
        consumer: The consumer that claimed the message.
        key: A key from `claim_partition_keys`.
        run_id: The Dag run that handles it.

    Raises:
        ValueError: This consumer has not claimed the key.
        HandlingFailed: The effect failed, or the message cannot be read or decoded; Airflow retries.
        KafkaException: The broker failed; Airflow retries.
        SQLAlchemyError: The database failed; Airflow retries.
        AirflowFailException: The topic is not the one that was claimed, or the effect keeps failing and its key is
            emitted again later; Airflow does not retry.
    """
    claimed = claimed_offset(consumer, key)
    _without_reset_ranges(consumer, [claimed.wanted])
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        # The check of the topic id takes a third of the time of one message, so it is skipped for recent claims. The
        # risk: if the topic was recreated within TRUSTED_AGE, a message of the new log is handled under the old
        # coordinates, and again by its own claim. The inbox ensures that its event has one effect.
        if claimed.age > TRUSTED_AGE:
            _check_same_topics(consumer, [claimed.wanted], group)
        _handle(consumer, as_chunk(claimed.claim_id, [claimed.wanted]), run_id, group, producer)


def read_message(consumer: Consumer, key: str) -> Message:
    """Read the message that a partition key names, with its event.

    Args:
        consumer: The consumer that claimed the message.
        key: A key from `claim_partition_keys`.

    Returns:
        The message; `event` is set.

    Raises:
        ValueError: This consumer has not claimed the key.
        LookupError: The message is no longer in Kafka.
        ContractViolation: The message breaks its contract.
        NotWanted: No contract of the topic's union takes the message.
        ReadingStalled: The broker returned nothing in time.
        RegistryUnavailable: The schema registry, which the topic's format needs, is unavailable.
        KafkaException: The broker failed.
    """
    wanted = claimed_offset(consumer, key).wanted
    with _connect(consumer) as group:
        for batch in RangeReader(group.consumer).read(wanted):
            for message in batch:
                return message.with_event(consumer.topic(message.topic).parse(message.value, message.headers))
    raise LookupError(f"consumer {consumer.name}: the message {key!r} is not in Kafka any more")


class ClaimedOffset(NamedTuple):
    """A claimed message.

    Attributes:
        claim_id: The claim that holds the message.
        age: The claim's age.
        wanted: The message's offset, as a range of length one.
    """

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
    query = select(claim_ranges.c.claim_id, claim_ranges.c.topic_id, age).join(
        claims, claims.c.id == claim_ranges.c.claim_id
    )
    # The newest claim, because a recreated topic uses the same offsets again.
    query = query.where(claims.c.consumer == consumer.name, *holds).order_by(claim_ranges.c.claim_id.desc()).limit(1)
    with begin() as connection:
        row = connection.execute(query).one_or_none()
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
        HandlingFailed: Some effects failed, or some ranges cannot be read or decoded; Airflow retries.
        KafkaException: The broker failed; Airflow retries.
        SQLAlchemyError: The database failed; Airflow retries.
        AirflowFailException: The topic is not the one that was claimed, or some effects keep failing and
            `handle_postponed` will try them again; Airflow does not retry.
    """
    ranges = _without_reset_ranges(consumer, [OffsetRange(**r) for r in chunk["ranges"]])
    with _connect(consumer) as group, AcknowledgedProducer(consumer.conn_id) as producer:
        _check_same_topics(consumer, ranges, group)
        _handle(consumer, as_chunk(chunk["claim_id"], ranges), run_id, group, producer)


def handle_postponed(consumers: Sequence[Consumer], *, seconds: float = POSTPONED_SECONDS) -> int:
    """Try postponed ranges again: their runs have ended, because their effects kept failing.

    A range that fails again is logged, and waits twice as long as before for its next try. The alarm `claim_open` names
    its run.

    Args:
        consumers: Declared consumers; only those with the shape `chunked` have such ranges.
        seconds: After this time no further range is tried.

    Returns:
        The number of ranges that were handled.

    Raises:
        SQLAlchemyError: The database is unavailable.
    """
    by_name = {consumer.name: consumer for consumer in consumers if consumer.shape is Shape.chunked}
    until = time.monotonic() + seconds
    handled = 0
    while time.monotonic() < until and (due := postponed.take_due(by_name)) is not None:
        try:
            handle_chunk(by_name[due.consumer], as_chunk(due.claim_id, [due.offsets]), due.run_id)
        except Exception as error:
            log.warning(
                "effect fails again: consumer=%s run_id=%s %s: %s", due.consumer, due.run_id, due.offsets, error
            )
            continue
        handled += 1
        log.info("handled at a later try: consumer=%s run_id=%s %s", due.consumer, due.run_id, due.offsets)
    return handled


def _check_same_topics(consumer: Consumer, ranges: Sequence[OffsetRange], group: GroupOffsets) -> None:
    """Raise AirflowFailException if a topic was recreated: it has other messages at the claimed offsets."""
    claimed = {r.topic: r.topic_id for r in ranges}
    for topic, topic_id in group.fetch_topic_ids(claimed).items():
        if not is_same_topic(topic_id, claimed[topic]):
            command = reset_command(consumer.name, topic, consumer.conn_id)
            raise _permanent_failure(
                f"consumer {consumer.name}: topic {topic} was deleted and recreated after these offsets were claimed; "
                f"their messages are gone. To continue with the records that are there now: {command}"
            )


def _without_reset_ranges(consumer: Consumer, ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """The ranges without those that a reset of the consumer has given up: other claims may now hold their offsets.

    Raises AirflowFailException when no range remains.
    """
    with begin() as connection:
        positions = positions_of(connection, consumer.name, {wanted.topic for wanted in ranges})
    remaining: list[OffsetRange] = []
    for wanted in ranges:
        identity, _ = positions.get(Partition(wanted.topic, wanted.partition), (wanted.topic_id, 0))
        if identity == wanted.topic_id:
            remaining.append(wanted)
        else:
            log.warning("range given up when the consumer was reset: consumer=%s %s", consumer.name, wanted)
    if ranges and not remaining:
        named = ", ".join(map(str, ranges[:10]))
        raise _permanent_failure(
            f"consumer {consumer.name}: {named} was given up when the consumer was reset; the alarm messages_lost "
            "names the offsets that were not handled. This run has nothing left to do"
        )
    return remaining


def split(claimed: Claimed, chunk_size: int) -> list[Chunk]:
    """Cut the ranges of a claim into chunks; small ranges share a chunk.

    Args:
        claimed: The claim.
        chunk_size: The most offsets per chunk.

    Returns:
        The chunks in the order of the ranges.
    """
    chunks: list[list[OffsetRange]] = []
    free = 0
    for claimed_range in claimed.ranges:
        start = claimed_range.start
        while start < claimed_range.end:
            if free == 0:
                chunks.append([])
                free = chunk_size
            end = min(claimed_range.end, start + free)
            chunks[-1].append(replace(claimed_range, start=start, end=end))
            free -= end - start
            start = end
    return [as_chunk(claimed.id, ranges) for ranges in chunks]


def _check_shape(consumer: Consumer, wanted: Shape) -> None:
    if consumer.shape is not wanted:
        raise ValueError(f"consumer {consumer.name}: its shape is {consumer.shape}, this task is for {wanted}")


def _permanent_failure(text: str) -> Exception:
    """A failure that Airflow does not retry, because only a person can fix it."""
    from airflow.sdk.exceptions import AirflowFailException

    return AirflowFailException(text)


def _connect(consumer: Consumer) -> GroupOffsets:
    return GroupOffsets(consumer.group, consumer.conn_id, **CONSUMER_SETTINGS)


def _claim(
    consumer: Consumer, run_id: str, group: GroupOffsets, max_messages: Callable[[Connection], int] | None = None
) -> Claimed:
    names = [topic.name for topic in consumer.topics]
    current: dict[Partition, PartitionOffsets] | None = None

    def available() -> dict[Partition, PartitionOffsets]:
        # In the event lane, all offsets up to the ends of the logs are available.
        nonlocal current
        current = group.fetch_offsets_sync(names, needs_committed=False)
        return _with_known_starts(consumer, current, group)

    committer = watch.OffsetCommitter(group)
    try:
        claimed = claim(
            consumer.name,
            run_id,
            available,
            lambda positions: committer.commit(positions, current),
            max_messages=max_messages or consumer.max_messages_per_claim,
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
            watch.alarm_stopped_topics(connection, consumer, stopped.stopped)
        raise _permanent_failure(watch.resume_text(consumer, stopped.stopped)) from stopped
    with begin() as connection:
        committer.update_alarm(connection, consumer.name)
    if claimed.behind is None:
        # The run had this claim already, so the topic may have changed since.
        claimed = replace(claimed, ranges=tuple(_without_reset_ranges(consumer, claimed.ranges)))
        _check_same_topics(consumer, claimed.ranges, group)
    return claimed


def _with_known_starts(
    consumer: Consumer, current: dict[Partition, PartitionOffsets], group: GroupOffsets
) -> dict[Partition, PartitionOffsets]:
    """Leave out topics without a claim, unless it is known for all of their partitions where the first claim starts.

    A first claim starts at the group's committed offsets. A partition that answers only after the first claim would
    start at its beginning, and its messages before the committed offset would be handled again.

    Raises KafkaException when the group's committed offsets cannot be read and no topic remains.
    """
    if group.committed_error is None and not group.left_out:
        return current
    with begin() as connection:
        started = {partition.topic for partition in positions_of(connection, consumer.name)}
    unknown = {p.topic for p in (group.left_out if group.committed_error is None else current)} - started
    if unknown:
        log.warning("first claim waits until all partitions answer: consumer=%s topics=%s", consumer.name, unknown)
    known = {partition: offsets for partition, offsets in current.items() if partition.topic not in unknown}
    if group.committed_error is not None and not known:
        raise group.committed_error
    return known


def _handle(
    consumer: Consumer,
    chunk: Chunk,
    run_id: str,
    group: GroupOffsets,
    producer: AcknowledgedProducer,
    *,
    until: float = math.inf,
) -> None:
    """Handle a chunk's messages; those that remain at `until`, a time of the monotonic clock, count as failed."""
    from confluent_kafka import KafkaException

    started = time.monotonic()
    claim_id, ranges = chunk["claim_id"], [OffsetRange(**fields) for fields in chunk["ranges"]]
    failures: list[str] = []
    # Ranges in which effects have failed; a range occurs once for each of its batches.
    failing: list[OffsetRange] = []
    is_read = True
    reader = RangeReader(group.consumer)
    try:
        processor = BatchProcessor(consumer, run_id, producer, until=until)
    except FunctionUnusable as error:
        _alarm_failing_effect(consumer, str(error))
        raise _postpone(claim_id, ranges, [str(error)]) from None
    delivery = OwnDelivery(producer)
    # Looked up before ranges are settled. None if the run was cleared after its claim was closed: its messages are old,
    # but were handled in time.
    claimed_at = _claimed_at(claim_id)
    old: list[OldMessage] = []
    for wanted in ranges:
        failed_before = len(failures)
        if time.monotonic() > until:
            failures.append(f"{wanted}: not handled within the time limit")
            continue
        try:
            for batch in reader.read(wanted):
                if time.monotonic() > until:
                    failures.append(f"{wanted}: not handled within the time limit")
                    break
                if claimed_at is not None:
                    old += watch.older_than_allowed(consumer, batch)
                try:
                    processor.handle(batch)
                except HandlingFailed as failure:
                    # Recorded, not raised, so that later messages need not wait for the retry.
                    failures.append(str(failure))
                    failing.append(wanted)
                delivery.between_batches(processor.written)
        except (ReadingStalled, KafkaException, RegistryUnavailable) as error:
            # Recorded, so that the other ranges need not wait for a partition that cannot be read or decoded.
            log.exception("range not read to its end: %s", wanted)
            failures.append(f"{wanted}: {type(error).__name__}: {error}")
            is_read = False
        if len(failures) == failed_before:
            _finish(consumer, claim_id, wanted, reader.gone, run_id)
    if claimed_at is not None:
        watch.watch_handled(consumer, old, claimed_at)
    _watch_dead_letters(consumer, processor)
    delivery.deliver(processor.written)
    counts = " ".join(f"{outcome}={number}" for outcome, number in processor.counts.items())
    log.info("handled: consumer=%s run_id=%s %s", consumer.name, run_id, counts)
    if failures:
        # Not postponed during an outage of the broker: the retries last for hours, so the outage fails no run.
        only_effects_failed = failing and is_read and time.monotonic() <= until
        failing, tried = list(dict.fromkeys(failing)), timedelta(seconds=time.monotonic() - started)
        if only_effects_failed and _is_programming_error(consumer, claim_id, failing, processor):
            # Without the errors' texts, which may quote a message.
            kinds = ", ".join(sorted(set(processor.faults)))
            _alarm_failing_effect(
                consumer, f"the effect {consumer.effect} fails for every message ({kinds}), see the run's log"
            )
            raise _postpone(claim_id, failing, failures)
        if only_effects_failed and postponed.should_postpone(consumer.name, claim_id, failing, tried=tried):
            raise _postpone(claim_id, failing, failures)
        raise HandlingFailed("; ".join(failures))


def _is_programming_error(
    consumer: Consumer, claim_id: int, failing: Sequence[OffsetRange], processor: BatchProcessor
) -> bool:
    """Whether the effects of all messages fail with a programming error, which no retry changes.

    If only a single message fails so, the message may be the cause: it is retried in its run, and the other messages
    are handled.
    """
    if processor.counts[Outcome.handled] or not processor.faults or len(processor.faults) < processor.failed:
        return False
    return postponed.all_fail(consumer.name, claim_id, failing, processor.failed)


def _postpone(claim_id: int, failing: Sequence[OffsetRange], failures: Sequence[str]) -> Exception:
    """Leave the ranges to the Dag `maintain`; returns a failure that Airflow does not retry, so that the run ends."""
    postponed.postpone(claim_id, failing)
    return _permanent_failure(
        f"{'; '.join(failures)}. This run ends, so that another run can claim the messages after them. The Dag "
        "maintain retries these messages; repair the cause (docs/runbooks/a-run-failed.md)"
    )


def _claimed_at(claim_id: int) -> datetime | None:
    """When the claim was made; None when the claim is closed."""
    query = select(claims.c.claimed_at).where(claims.c.id == claim_id, claims.c.closed_at.is_(None))
    with begin() as connection:
        return connection.scalar(query)


def _watch_dead_letters(consumer: Consumer, processor: BatchProcessor) -> None:
    """Open or close the alarm about dead letters now, if this task recorded any; else the Dag `maintain` closes it."""
    if processor.counts[Outcome.dead_letter]:
        with begin() as connection:
            watch_broken_contracts(connection, consumer)


def _finish(consumer: Consumer, claim_id: int, done: OffsetRange, gone: Sequence[tuple[int, int]], run_id: str) -> None:
    """Settle a range whose messages are handled, with an alarm if retention had removed some before."""
    if not len(done):
        return
    with begin() as connection:
        postponed.remove(connection, claim_id, done)
        if lost := settle(connection, consumer.name, claim_id, done, gone):
            where = ", ".join(str(r) for r in lost)
            text = f"retention removed {sum(map(len, lost))} messages before they were handled: {where} (run {run_id})"
            add_to_alarm(connection, consumer.name, AlarmKind.messages_lost, text)
