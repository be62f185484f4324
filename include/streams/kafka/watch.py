"""Alarms about consumers that fall behind or are disturbed by another client.

Every run checks its own consumer. `check_consumers` checks without a run, because a Dag that is paused, or whose claims
stall, has no runs; `include/streams/landing/watch.py` does this for the standard lane. The alarms about lag and age
open above a limit and close at half of it, so that a consumer that stays around the limit opens one alarm and not
hundreds.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple, Protocol

from sqlalchemy import Connection, delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from include.streams.kafka.broken_contracts import watch_broken_contracts
from include.streams.kafka.claims import Claimed, claimed_unhandled, positions_of, reset_command, stopped_topics
from include.streams.kafka.consumers import Consumer, FunctionUnusable, Shape
from include.streams.kafka.dead_letters import watch_waiting_dead_letters
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader, ReadingStalled
from include.streams.operations import samples
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_lasting, add_to_alarm, close_alarm, close_others, open_alarm
from include.streams.operations.database import begin
from include.streams.operations.each import do_each, shuffled
from include.streams.operations.tables import (
    Outcome,
    alarms,
    claims,
    inbox,
    log_ends,
    open_transactions,
    postponed_ranges,
)

log = logging.getLogger(__name__)

REMEDIES = (
    "raise capacity (max_active_runs, max_messages_per_claim, workers), or move the topic to the standard lane; "
    "docs/runbooks/lag-grows.md says what to check first"
)
LANDING_REMEDIES = (
    "find out why the lane does not claim them (its Dag is paused or does not import, its run fails, offsets have not "
    "landed), or raise max_messages_per_claim; docs/runbooks/lag-grows.md says what to check first"
)
# Consumer settings to read one message per partition.
ONE_MESSAGE = {"queued.min.messages": 1, "queued.max.messages.kbytes": 1024}
# How many ends of one log after the consumer's position are stored. While the position does not move, more ends would
# only add rows.
MAX_REMEMBERED_ENDS = 8
# The most partitions that an alarm's text names.
MAX_NAMED = 10


@dataclass(frozen=True)
class ConsumerStatus:
    """The state of a consumer.

    Attributes:
        behind: {topic: number of messages that are not claimed}.
        waiting: {topic: how long its oldest unclaimed message has waited}; only topics with such a message.
        oldest_claim: The age of the oldest open claim; None when no claim is open.
        is_whole: False when a topic or a partition was left out or could not be read: the numbers may be too low.
    """

    behind: Mapping[str, int]
    waiting: Mapping[str, timedelta]
    oldest_claim: timedelta | None
    is_whole: bool


class WatchedConsumer(Protocol):
    """A consumer of either lane, as a check sees it."""

    @property
    def name(self) -> str: ...
    @property
    def max_lag(self) -> int: ...
    @property
    def max_age(self) -> timedelta: ...
    @property
    def max_claim_age(self) -> timedelta: ...


class CheckFailed(Exception):
    """Some consumers, or topics, could not be checked; the others were."""


def check_consumers(consumers: Iterable[Consumer]) -> None:
    """Check every consumer, also after a failed check: an unavailable broker must not hide alarms of other consumers.

    Dead letters that wait in the outbox are looked up once, for the consumers of both lanes together.

    Args:
        consumers: The declared consumers.

    Raises:
        CheckFailed: At least one consumer could not be checked; raised after all others were.
    """
    checks = {f"consumer {consumer.name}": partial(check_consumer, consumer) for consumer in consumers}
    # Dead letters first: this check needs only the database, and while the broker is unavailable, the other checks may
    # take the task's whole time.
    do_each({"dead letters that wait": _watch_waiting_dead_letters, **shuffled(checks)}, CheckFailed)


def _watch_waiting_dead_letters() -> None:
    with begin() as connection:
        watch_waiting_dead_letters(connection)


def check_consumer(consumer: Consumer) -> ConsumerStatus:
    """Open and close the consumer's alarms by the present state of the database and the broker.

    Checks that need only the database come first, so that they also work while the broker is unavailable.

    Args:
        consumer: The declared consumer.

    Returns:
        The consumer's state.

    Raises:
        KafkaException: The broker did not answer, or the group's committed offsets cannot be read.
        ReadingStalled: The oldest message of a partition could not be read.
    """
    with begin() as connection:
        oldest_claim = watch_claims(connection, consumer)
        _close_effect_alarm(connection, consumer)
        watch_broken_contracts(connection, consumer)
    with GroupOffsets(consumer.group, consumer.conn_id, **{**CONSUMER_SETTINGS, **ONE_MESSAGE}) as group:
        current = group.fetch_offsets_sync((topic.name for topic in consumer.topics), needs_committed=False)
        blocked = group.find_open_transactions(current)
        current = _with_known_start(consumer, current, group)
        blocked = {partition: end for partition, end in blocked.items() if partition in current}
        status, unread = _read_status(consumer, current, group, oldest_claim)
        forbidden = sorted(group.forbidden)
    with begin() as connection:
        _watch_rights(connection, consumer, forbidden)
        _watch_left_out(connection, consumer, group.left_out)
        if group.committed_error is None:
            _watch_foreign_commits(connection, consumer, current)
        watch_transactions(
            connection, consumer.name, current, blocked, consumer.max_transaction_age, is_whole=status.is_whole
        )
        watch_lag(connection, consumer, status.behind, is_whole=status.is_whole)
        watch_waiting(connection, consumer, status)
        samples.record_lag(connection, consumer.name, status.behind, status.waiting)
    log.info(
        "checked: consumer=%s behind=%s oldest_unclaimed=%s oldest_open_claim=%s",
        consumer.name,
        dict(status.behind),
        {topic: str(age) for topic, age in status.waiting.items()},
        oldest_claim,
    )
    # Raised last: a partition or committed offsets that cannot be read must not hide an alarm.
    if (error := unread or group.committed_error) is not None:
        raise error
    return status


def fetch_status(consumer: Consumer) -> ConsumerStatus:
    """Fetch the consumer's state, for people: it opens no alarm and records nothing.

    Args:
        consumer: The declared consumer.

    Returns:
        The state, without open claims. The oldest message of a partition that cannot be read counts as not waiting.

    Raises:
        KafkaException: The broker did not answer.
        SQLAlchemyError: The database is unavailable.
    """
    with GroupOffsets(consumer.group, consumer.conn_id, **{**CONSUMER_SETTINGS, **ONE_MESSAGE}) as group:
        current = group.fetch_offsets_sync((topic.name for topic in consumer.topics), needs_committed=False)
        current = _with_known_start(consumer, current, group)
        return _read_status(consumer, current, group, None, remembers=False)[0]


def _with_known_start(
    consumer: Consumer, current: Mapping[Partition, PartitionOffsets], group: GroupOffsets
) -> dict[Partition, PartitionOffsets]:
    """The partitions that answer, and of which it is known where a claim would start."""
    known = {partition: offsets for partition, offsets in current.items() if partition not in group.left_out}
    if group.committed_error is not None:
        with begin() as connection:
            positions = positions_of(connection, consumer.name)
        known = {partition: offsets for partition, offsets in known.items() if partition in positions}
    return known


def watch_claim(
    connection: Connection, consumer: Consumer, run_id: str, claimed: Claimed, *, is_whole: bool = True
) -> None:
    """Open and close the consumer's alarms by a new claim.

    Args:
        connection: A connection in the claim's transaction, so that a loss is never recorded without its alarm.
        consumer: The consumer.
        run_id: The run that owns the claim.
        claimed: The new claim.
        is_whole: False when a topic or a partition's leader was missing: the alarms that depend on it must not close.
    """
    if claimed.lost:
        gone = ", ".join(str(r) for r in claimed.lost)
        text = f"retention removed messages before they were claimed (run {run_id}): {gone}"
        add_to_alarm(connection, consumer.name, AlarmKind.messages_lost, text)
    stopped = stopped_topics(claimed.stopped)
    alarm_stopped_topics(connection, consumer, stopped)
    if is_whole:
        close_others(connection, consumer.name, AlarmKind.consumer_stopped, stopped)
    if claimed.foreign:
        open_alarm(connection, consumer.name, AlarmKind.foreign_commits, _foreign_text(consumer.group, claimed.foreign))
    behind = dict(claimed.behind or {})
    if _is_per_message(consumer):
        # Subtracted, because `watch_lag` counts the offsets of this claim as claimed and not handled.
        for offsets in claimed.ranges:
            behind[offsets.topic] -= len(offsets)
    watch_lag(connection, consumer, behind, is_whole=is_whole)
    watch_claims(connection, consumer)


def _shape(consumer: WatchedConsumer) -> Shape | None:
    # Consumers of the standard lane have no shape.
    return getattr(consumer, "shape", None)


def _is_per_message(consumer: WatchedConsumer) -> bool:
    return _shape(consumer) is Shape.per_message


def _remedies(consumer: WatchedConsumer) -> str:
    return LANDING_REMEDIES if _shape(consumer) is None else REMEDIES


def alarm_stopped_topics(connection: Connection, consumer: Consumer, stopped: Mapping[str, str]) -> None:
    """Open an alarm for each stopped topic, or add what has happened to it since.

    Args:
        connection: A connection in a transaction.
        consumer: The stopped consumer.
        stopped: {topic: what happened to it}.
    """
    for topic, why in sorted(stopped.items()):
        text = resume_text(consumer, {topic: why})
        add_lasting(connection, consumer.name, AlarmKind.consumer_stopped, [text], key=topic)


def resume_text(consumer: Consumer, stopped: Mapping[str, str]) -> str:
    """A text with what happened and the reset command for each stopped topic.

    Args:
        consumer: The stopped consumer.
        stopped: {topic: what happened to it}.
    """
    commands = {topic: reset_command(consumer.name, topic, consumer.conn_id) for topic in stopped}
    # The command comes last, so that it can be copied.
    page = AlarmKind.consumer_stopped.runbook
    return "; ".join(
        f"{why}; to continue with the records that are there now ({page}): {commands[topic]}"
        for topic, why in stopped.items()
    )


class OffsetCommitter:
    """Commits a claim's offsets to Kafka, and remembers a refusal for an alarm.

    Claims do not depend on committed offsets, so a broker that refuses them delays no message.

    Args:
        group: Commits the offsets.
    """

    def __init__(self, group: GroupOffsets) -> None:
        self._group = group
        self._refusal: str | None = None
        self._is_accepted = False

    def commit(
        self, positions: Mapping[Partition, tuple[str, int]], known: Mapping[Partition, PartitionOffsets] | None
    ) -> None:
        """Call `GroupOffsets.commit_forward` and remember a refusal of the broker instead of raising it.

        Args:
            positions: {partition: (log identity, next offset)}.
            known: Offsets from `GroupOffsets.fetch_offsets` under the consumer's lock; None to request them.
        """
        from confluent_kafka import KafkaException

        try:
            self._group.commit_forward(positions, known)
            self._is_accepted = True
        except KafkaException as error:
            log.warning("group=%s offsets were not committed: %s", self._group.group, error)
            if not _will_pass(error.args[0]):
                self._refusal = str(error.args[0].str())

    def update_alarm(self, connection: Connection, consumer: str) -> None:
        """Open the alarm about a refusal, or close it when the broker has accepted the offsets.

        Args:
            connection: A connection in a transaction.
            consumer: The consumer's name.
        """
        if self._refusal is not None:
            group = self._group.group
            text = (
                f"the broker refuses the committed offsets of group {group}: {self._refusal}. Messages are handled "
                "nevertheless, but tools that use committed offsets show a lag that does not exist. Find out who is a "
                f"member of the group (kafka-consumer-groups --describe --members --group {group}) and stop them: only "
                "this consumer may use the group's name; or give the user the right to read the group"
            )
            open_alarm(connection, consumer, AlarmKind.commit_refused, text)
        elif self._is_accepted:
            close_alarm(connection, consumer, AlarmKind.commit_refused)


def _will_pass(error) -> bool:
    """Whether the broker is unavailable or the coordinator is moving: the next claim then commits these offsets too."""
    from confluent_kafka import KafkaError

    temporary = (
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    )
    return error.code() in temporary


def watch_lag(
    connection: Connection, consumer: WatchedConsumer, behind: Mapping[str, int], *, is_whole: bool = True
) -> None:
    """Open or close the alarm about lag.

    With one run per message, messages that are claimed and wait for their runs count as lag too: a claim takes hundreds
    of messages within a second, and their runs take minutes.

    Args:
        connection: A connection in a transaction.
        consumer: The consumer.
        behind: {topic: number of messages that are not claimed}.
        is_whole: False when a topic or a partition's leader was missing, so that the alarm must not close.
    """
    if _is_per_message(consumer):
        claimed = claimed_unhandled(connection, consumer.name)
        behind = {topic: behind.get(topic, 0) + claimed.get(topic, 0) for topic in {*behind, *claimed}}
    total = sum(behind.values())
    if total > consumer.max_lag:
        text = f"{total} messages behind, limit {consumer.max_lag} ({_by_topic(behind)}): {_remedies(consumer)}"
        open_alarm(connection, consumer.name, AlarmKind.lag, text)
    elif is_whole and total <= consumer.max_lag / 2:
        close_alarm(connection, consumer.name, AlarmKind.lag)


def watch_claims(connection: Connection, consumer: WatchedConsumer) -> timedelta | None:
    """Open or close the alarm about an old open claim.

    Args:
        connection: A connection in a transaction.
        consumer: The consumer.

    Returns:
        The age of the oldest open claim; None when no claim is open.
    """
    open_claims = select(claims.c.run_id, claims.c.claimed_at).where(
        claims.c.consumer == consumer.name, claims.c.closed_at.is_(None)
    )
    oldest = connection.execute(open_claims.order_by(claims.c.claimed_at).limit(1)).first()
    if oldest is None:
        close_alarm(connection, consumer.name, AlarmKind.claim_open)
        return None
    age = datetime.now(UTC) - oldest.claimed_at
    if age > consumer.max_claim_age:
        text = (
            f"a claim has been open since {oldest.claimed_at.isoformat()} (run {oldest.run_id}): if its run has "
            "failed, repair the cause, then clear the run"
        )
        open_alarm(connection, consumer.name, AlarmKind.claim_open, text)
    else:
        close_alarm(connection, consumer.name, AlarmKind.claim_open)
    return age


def alarm_failing_effect(connection: Connection, consumer: Consumer, text: str) -> None:
    """Open the alarm about an effect that cannot work.

    Args:
        connection: A connection in a transaction.
        consumer: The consumer.
        text: What is wrong.
    """
    remedy = (
        "repair the code and deploy it. The Dag maintain retries claimed messages, at least every half hour; new "
        "messages are claimed again once one of these is handled"
    )
    open_alarm(connection, consumer.name, AlarmKind.effect_fails, f"{text}: {remedy}")


def _close_effect_alarm(connection: Connection, consumer: Consumer) -> None:
    """Close the alarm about an effect that cannot work.

    It closes once a message was handled since it was opened. It also closes once the effect can be loaded and no claim
    waits for it: the failing messages may have become dead letters, or duplicates, and on a quiet topic no further
    message would ever be handled. If the effect still fails, the next message opens the alarm again.
    """
    open_since = select(alarms.c.opened_at).where(
        alarms.c.source == consumer.name, alarms.c.kind == AlarmKind.effect_fails, alarms.c.closed_at.is_(None)
    )
    if (since := connection.scalar(open_since)) is None:
        return
    handled = select(inbox.c.offset).where(
        inbox.c.recorded_at > since, inbox.c.consumer == consumer.name, inbox.c.outcome == Outcome.handled
    )
    has_handled = connection.execute(handled.limit(1)).first() is not None
    if has_handled or (not _waits_for_effect(connection, consumer, since) and _can_load(consumer)):
        close_alarm(connection, consumer.name, AlarmKind.effect_fails)


def _waits_for_effect(connection: Connection, consumer: Consumer, since: datetime) -> bool:
    """Whether a claim is open that may hold failing messages: it failed before, or is older than the alarm."""
    has_failed = select(postponed_ranges.c.claim_id).where(postponed_ranges.c.claim_id == claims.c.id).exists()
    failing = select(claims.c.id).where(
        claims.c.consumer == consumer.name, claims.c.closed_at.is_(None), has_failed | (claims.c.claimed_at <= since)
    )
    return connection.execute(failing.limit(1)).first() is not None


def _can_load(consumer: Consumer) -> bool:
    try:
        consumer.load_effect()
        consumer.load_prepare()
    except FunctionUnusable:
        return False
    return True


class OldMessage(NamedTuple):
    """The coordinates of a message that was read to be handled, and its timestamp."""

    partition: Partition
    offset: int
    written_at: datetime


def older_than_allowed(consumer: Consumer, batch: Sequence[Message]) -> list[OldMessage]:
    """The messages of a batch with a timestamp older than the consumer's `max_age`.

    Args:
        consumer: The consumer of the messages.
        batch: Messages that were read to be handled.
    """
    limit = datetime.now(UTC) - consumer.max_age
    return [
        OldMessage(Partition(message.topic, message.partition), message.offset, message.timestamp)
        for message in batch
        if message.timestamp is not None and message.timestamp < limit
    ]


def watch_handled(consumer: Consumer, old: Sequence[OldMessage], claimed_at: datetime) -> None:
    """Open the alarm about age when messages waited too long to be handled.

    This never closes the alarm: a task does not know which messages wait in other partitions or claims.

    Args:
        consumer: The consumer of the messages.
        old: The messages of one claim that `older_than_allowed` returned. Some may be new on the topic, because a
            device that was offline sends old timestamps. So only the time since they could first be seen counts.
        claimed_at: When they were claimed; they were on the topic at that time.
    """
    if not old:
        return
    now = datetime.now(UTC)
    waited: dict[str, timedelta] = {}
    with begin() as connection:
        ends = _remembered_ends(connection, consumer, {message.partition for message in old})
        for message in old:
            before = [at for end, at in ends.get(message.partition, ()) if end <= message.offset]
            age = now - max(message.written_at, max(before) if before else claimed_at)
            waited[message.partition.topic] = max(age, waited.get(message.partition.topic, age))
        if late := _late(consumer, waited):
            text = f"messages waited too long to be handled ({_by_topic(late)}), limit {consumer.max_age}: {REMEDIES}"
            open_alarm(connection, consumer.name, AlarmKind.age, text)


def watch_transactions(
    connection: Connection,
    source: str,
    current: Mapping[Partition, PartitionOffsets],
    blocked: Mapping[Partition, int],
    max_age: timedelta,
    *,
    is_whole: bool = True,
) -> None:
    """Open or close the alarm about open transactions that block the later messages of their partitions.

    Args:
        connection: A connection in a transaction.
        source: The name of the consumer or connector that is blocked; also the alarm's source.
        current: Offsets from `GroupOffsets.fetch_offsets`: `end` is the last stable offset.
        blocked: {partition: end of its log} where the log continues after the last stable offset.
        max_age: How long a last stable offset may stay the same.
        is_whole: False when a topic or a partition's leader was missing, so that the alarm must not close.
    """
    now = datetime.now(UTC)
    of_source = open_transactions.c.source == source
    rows = connection.execute(select(open_transactions).where(of_source))
    known = {Partition(row.topic, row.partition): row for row in rows}
    since = {
        p: known[p].seen_at if p in known and known[p].stable_offset == current[p].end else now for p in sorted(blocked)
    }
    ended = [p for p in known if p in current and p not in blocked]
    if ended:
        partition_columns = tuple_(open_transactions.c.topic, open_transactions.c.partition)
        connection.execute(delete(open_transactions).where(of_source, partition_columns.in_(ended)))
    if new := [p for p in blocked if since[p] is now]:
        upsert = insert(open_transactions)
        upsert = upsert.on_conflict_do_update(
            constraint="pk_open_transactions",
            set_={"stable_offset": upsert.excluded.stable_offset, "seen_at": upsert.excluded.seen_at},
        )
        columns = {"source": source, "seen_at": now}
        connection.execute(
            upsert,
            [{**columns, "topic": p.topic, "partition": p.number, "stable_offset": current[p].end} for p in new],
        )
    overdue = {p: at for p, at in since.items() if now - at > max_age}
    if overdue:
        named = ", ".join(
            f"{p.topic}-{p.number} at offset {current[p].end} since {at.isoformat(timespec='seconds')}, with "
            f"{blocked[p] - current[p].end} offsets behind it"
            for p, at in list(overdue.items())[:MAX_NAMED]
        )
        text = (
            f"a transaction that does not end blocks {len(overdue)} partitions: {named}. Stop its producer, or abort "
            "it: kafka-transactions --bootstrap-server BROKER abort --topic TOPIC --partition NUMBER --start-offset "
            "OFFSET"
        )
        open_alarm(connection, source, AlarmKind.transaction_open, text)
    elif is_whole:
        close_alarm(connection, source, AlarmKind.transaction_open)


def _watch_rights(connection: Connection, consumer: Consumer, forbidden: Sequence[str]) -> None:
    for topic in forbidden:
        text = (
            f"the user of connection {consumer.conn_id} may not read {topic}: grant it READ and DESCRIBE on the topic. "
            "Its messages wait in Kafka until retention removes them; the consumer's other topics continue"
        )
        open_alarm(connection, consumer.name, AlarmKind.topic_forbidden, text, key=topic)
    close_others(connection, consumer.name, AlarmKind.topic_forbidden, forbidden)


def _watch_left_out(connection: Connection, consumer: Consumer, left_out: Mapping[Partition, str]) -> None:
    if not left_out:
        close_alarm(connection, consumer.name, AlarmKind.partitions_away)
        return
    named = ", ".join(f"{p.topic}-{p.number}: {why}" for p, why in sorted(left_out.items())[:MAX_NAMED])
    text = (
        f"{len(left_out)} partitions do not answer ({named}): restart their broker, or make it reachable from "
        "Airflow's workers and triggerer. Their messages wait in Kafka until retention removes them; the other "
        "partitions continue, but each claim takes some seconds longer"
    )
    open_alarm(connection, consumer.name, AlarmKind.partitions_away, text)


def _watch_foreign_commits(
    connection: Connection, consumer: Consumer, current: Mapping[Partition, PartitionOffsets]
) -> None:
    # Positions are read after the group's offsets, so this consumer's own commits are never ahead of them.
    known = positions_of(connection, consumer.name)
    ahead = {
        partition: (offsets.committed, known[partition][1])
        for partition, offsets in current.items()
        if partition in known
        and is_same_topic(known[partition][0], offsets.topic_id)
        and (offsets.committed or 0) > known[partition][1]
    }
    if ahead:
        open_alarm(connection, consumer.name, AlarmKind.foreign_commits, _foreign_text(consumer.group, ahead))
    else:
        close_alarm(connection, consumer.name, AlarmKind.foreign_commits)


def _foreign_text(group: str, ahead: Mapping[Partition, tuple[int | None, int]]) -> str:
    named = ", ".join(
        f"{p.topic}-{p.number}: {committed}, claimed up to {position}"
        for p, (committed, position) in list(sorted(ahead.items()))[:MAX_NAMED]
    )
    return (
        f"another client has moved the committed offsets of group {group} forward ({named}). No message is skipped: "
        "the consumer uses its own positions. Find out who commits under this name (a tool, or a second deployment "
        "with its own database) and stop it, or rename one of the two consumers"
    )


def watch_waiting(connection: Connection, consumer: WatchedConsumer, status: ConsumerStatus) -> None:
    """Open or close the alarm about messages that wait long to be claimed.

    Args:
        connection: A connection in a transaction.
        consumer: The consumer.
        status: Its state.
    """
    if late := _late(consumer, status.waiting):
        waits = f"messages wait too long to be claimed ({_by_topic(late)}), limit {consumer.max_age}"
        open_alarm(connection, consumer.name, AlarmKind.age, f"{waits}: {_remedies(consumer)}")
        return
    # A claim's messages are at least as old as the claim. While they wait, the alarm stays open.
    ages = [*status.waiting.values(), *([status.oldest_claim] if status.oldest_claim else [])]
    if status.is_whole and all(age <= consumer.max_age / 2 for age in ages):
        close_alarm(connection, consumer.name, AlarmKind.age)


def _read_status(
    consumer: Consumer,
    current: Mapping[Partition, PartitionOffsets],
    group: GroupOffsets,
    oldest_claim: timedelta | None,
    *,
    remembers: bool = True,
) -> tuple[ConsumerStatus, Exception | None]:
    """The consumer's state; and why the oldest message of a partition could not be read, None when all were read.

    If `remembers` is true, the present ends of the logs are stored.
    """
    from confluent_kafka import KafkaException

    behind = dict.fromkeys((topic.name for topic in consumer.topics), 0)
    waiting: dict[str, timedelta] = {}
    next_offsets = _next_offsets(consumer, current)
    now = datetime.now(UTC)
    with begin() as connection:
        if remembers:
            ends = _remember_ends(connection, consumer, current, next_offsets, now)
        else:
            ends = _remembered_ends(connection, consumer, current)
    reader = RangeReader(group.consumer, batch_size=1)
    unread: Exception | None = None
    for partition, offsets in sorted(current.items()):
        start = next_offsets[partition]
        if start >= offsets.end:
            continue
        behind[partition.topic] += offsets.end - start
        unclaimed = OffsetRange(partition.topic, offsets.topic_id, partition.number, start, offsets.end)
        try:
            # None when the rest of the log holds only transaction markers and no record.
            batch = next(reader.read(unclaimed), None)
        except (ReadingStalled, KafkaException) as error:
            log.exception("not read: %s", unclaimed)
            unread = error
            continue
        if batch:
            age = _waiting_time(batch[0], ends.get(partition, ()), now)
            waiting[partition.topic] = max(age, waiting.get(partition.topic, age))
    is_whole = not group.incomplete and group.committed_error is None and unread is None
    return ConsumerStatus(behind, waiting, oldest_claim, is_whole), unread


def _waiting_time(message: Message, ends: Sequence[tuple[int, datetime]], now: datetime) -> timedelta:
    """How long ago the message arrived on the topic.

    Uses the message's timestamp, limited by the stored ends of its log, [(end, when it was seen)]: the message arrived
    after the last check at which the log ended before it, and before the first check at which the log included it. The
    limits are needed because a timestamp may be old (a device that was offline) or lie in the future.
    """
    after = max((at for end, at in ends if end <= message.offset), default=None)
    before = min((at for end, at in ends if end > message.offset), default=now)
    arrived_at = message.timestamp or after or before
    arrived_at = min(arrived_at, before)
    return now - (arrived_at if after is None else max(arrived_at, after))


def waited_at_least(
    connection: Connection,
    consumer: WatchedConsumer,
    current: Mapping[Partition, PartitionOffsets],
    next_offsets: Mapping[Partition, int],
    *,
    remembers: bool = True,
) -> dict[str, timedelta]:
    """How long each topic's oldest unclaimed message has waited at least, without reading the message.

    The time counts from the check that first saw an end after the message. This function records that check, so the
    first call finds no age.

    Args:
        connection: A connection in a transaction.
        consumer: The consumer.
        current: The present ends, by partition.
        next_offsets: The consumer's next offsets, none of them after its partition's end.
        remembers: Whether this check is recorded.

    Returns:
        {topic: age}; only topics with an unclaimed message.
    """
    now = datetime.now(UTC)
    waited: dict[str, timedelta] = {}
    if remembers:
        all_ends = _remember_ends(connection, consumer, current, next_offsets, now)
    else:
        all_ends = _remembered_ends(connection, consumer, current)
    for partition, ends in all_ends.items():
        if partition in current:
            seen_times = [at for end, at in ends if next_offsets[partition] < end <= current[partition].end]
            for age in (now - seen_at for seen_at in seen_times):
                waited[partition.topic] = max(age, waited.get(partition.topic, age))
    return waited


def _remembered_ends(
    connection: Connection, consumer: WatchedConsumer, partitions: Iterable[Partition]
) -> dict[Partition, list[tuple[int, datetime]]]:
    """{partition: [(end of its log, when it was seen)]}."""
    of_topics = select(log_ends).where(
        log_ends.c.consumer == consumer.name, log_ends.c.topic.in_({partition.topic for partition in partitions})
    )
    ends: dict[Partition, list[tuple[int, datetime]]] = {}
    for row in connection.execute(of_topics):
        ends.setdefault(Partition(row.topic, row.partition), []).append((row.end_offset, row.seen_at))
    return ends


def _remember_ends(
    connection: Connection,
    consumer: WatchedConsumer,
    current: Mapping[Partition, PartitionOffsets],
    next_offsets: Mapping[Partition, int],
    now: datetime,
) -> dict[Partition, list[tuple[int, datetime]]]:
    """Store the present ends of the logs; delete ends that are not needed for messages that are not claimed yet."""
    known = _remembered_ends(connection, consumer, current)
    ends: dict[Partition, list[tuple[int, datetime]]] = {}
    for partition, offsets in current.items():
        start = next_offsets[partition]
        before = [seen for seen in known.get(partition, ()) if seen[0] <= start]
        beyond = sorted(seen for seen in known.get(partition, ()) if start < seen[0] <= offsets.end)
        # If this is the first check of this log, the waiting time of its messages starts now.
        passed = max(before) if before else (start, now)
        if offsets.end > max([passed, *beyond])[0] and len(beyond) < MAX_REMEMBERED_ENDS:
            beyond.append((offsets.end, now))
        elif offsets.end == passed[0]:
            # No message waits: the next one arrives after this check.
            passed = (offsets.end, now)
        ends[partition] = [passed, *beyond]
    _store_ends(connection, consumer, known, ends)
    return ends


def _store_ends(
    connection: Connection,
    consumer: WatchedConsumer,
    known: Mapping[Partition, list[tuple[int, datetime]]],
    ends: Mapping[Partition, list[tuple[int, datetime]]],
) -> None:
    outdated = [(*p, end) for p in ends for end, _ in known.get(p, ()) if end not in dict(ends[p])]
    if outdated:
        key = tuple_(log_ends.c.topic, log_ends.c.partition, log_ends.c.end_offset)
        connection.execute(delete(log_ends).where(log_ends.c.consumer == consumer.name, key.in_(outdated)))
    new = [(p, *seen) for p, seen_ends in ends.items() for seen in seen_ends if seen not in known.get(p, ())]
    if new:
        upsert = insert(log_ends)
        upsert = upsert.on_conflict_do_update(constraint="pk_log_ends", set_={"seen_at": upsert.excluded.seen_at})
        connection.execute(
            upsert,
            [
                {"consumer": consumer.name, "topic": p.topic, "partition": p.number, "end_offset": e, "seen_at": at}
                for p, e, at in new
            ],
        )


def _next_offsets(consumer: Consumer, current: Mapping[Partition, PartitionOffsets]) -> dict[Partition, int]:
    """The offset at which the consumer's next claim would start to read, by partition."""
    with begin() as connection:
        known = positions_of(connection, consumer.name)
    starts: dict[Partition, int] = {}
    for partition, offsets in current.items():
        identity, claimed = known.get(partition, (offsets.topic_id, offsets.committed or 0))
        if not is_same_topic(identity, offsets.topic_id):
            # A recreated topic: all of its messages wait.
            claimed = 0
        starts[partition] = max(offsets.low, claimed)
    return starts


def _late(consumer: WatchedConsumer, ages: Mapping[str, timedelta]) -> dict[str, timedelta]:
    return {topic: age for topic, age in ages.items() if age > consumer.max_age}


def _by_topic(numbers: Mapping[str, int] | Mapping[str, timedelta]) -> str:
    """A text with each topic and its number, the largest number first; zeros are left out."""
    ordered = sorted(numbers.items(), key=lambda item: item[1], reverse=True)  # type: ignore[arg-type, return-value]
    return ", ".join(f"{topic}: {_short(number)}" for topic, number in ordered if number)


def _short(number: int | timedelta) -> str:
    return str(timedelta(seconds=int(number.total_seconds()))) if isinstance(number, timedelta) else str(number)
