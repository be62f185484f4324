"""Reset a stopped consumer. Only this module may move the consumer's offsets back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, select

from include.streams.kafka.claims import find_changed_logs, lock_consumer, settle, write_positions
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, is_same_topic, next_generation
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm, close_alarm
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, repair_rows
from include.streams.operations.database import begin
from include.streams.operations.tables import claim_ranges, claims, positions

if TYPE_CHECKING:
    from collections.abc import Callable


class NothingToReset(Refused):
    """The consumer has no position in the topic."""


class ResetConsumer(RepairParams):
    """The parameters of `reset`.

    Attributes:
        consumer: The consumer's name.
        topic: The topic's name.
    """

    consumer: str
    topic: str


def reset(params: ResetConsumer, by: Actor, *, conn_id: str = CONN_ID) -> RepairReport:
    """Reset a stopped consumer, see `reset_consumer`; recorded as a repair.

    Args:
        params: The consumer and the topic.
        by: Who resets it.
        conn_id: The Airflow connection of the broker.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, or the consumer has no position in the topic.
        ValueError: A partition has no leader now, or its leader does not answer; a later try may succeed.
        KafkaException: The broker did not answer.
    """
    consumer, topic, dry_run = params["consumer"], params["topic"], params["dry_run"]
    with GroupOffsets(consumer, conn_id, **CONSUMER_SETTINGS) as group:

        def work(connection: Connection) -> list[str]:
            return _reset(connection, group, consumer, topic, None if dry_run else group.commit)

        return repair_rows("reset_consumer", params, by, work)


def reset_consumer(consumer: str, topic: str, *, conn_id: str = CONN_ID) -> list[str]:
    """Delete the consumer's positions in the topic and start at the first available offset of each partition.

    A partition keeps its log identity if its log is proved to be the one that was claimed before; the inbox then still
    knows which messages were handled. Any other partition gets a new log identity, for which the inbox holds no
    message: records at offsets that were used before count as new. Open claims on the old log are settled as lost.

    The command can be repeated without harm. A message that is read again has its effect once, because the inbox knows
    its event id.

    Args:
        consumer: The consumer's name, which is also its consumer group.
        topic: The topic's name.
        conn_id: The Airflow connection of the broker.

    Returns:
        One text for each change.

    Raises:
        NothingToReset: The consumer has no position in the topic.
        ValueError: A partition has no leader now, or its leader does not answer.
        KafkaException: The broker did not answer.
    """
    with GroupOffsets(consumer, conn_id, **CONSUMER_SETTINGS) as group, begin() as connection:
        return _reset(connection, group, consumer, topic, group.commit)


def _reset(
    connection: Connection,
    group: GroupOffsets,
    consumer: str,
    topic: str,
    commit: Callable[[dict[Partition, int]], object] | None,
) -> list[str]:
    """Reset the consumer in this transaction, which also gets the consumer's lock.

    Args:
        connection: A connection in a transaction.
        group: The consumer's group.
        consumer: The consumer's name.
        topic: The topic's name.
        commit: Commits the group's offsets; None to commit nothing.

    Returns:
        One text for each change.
    """
    from confluent_kafka import KafkaException

    lock_consumer(connection, consumer)
    current = group.fetch_offsets_sync([topic], needs_committed=False)
    _check_complete(topic, group)
    is_position = (positions.c.consumer == consumer, positions.c.topic == topic)
    rows = connection.execute(select(positions).where(*is_position))
    known = {Partition(topic, row.partition): row for row in rows}
    if not known:
        raise NothingToReset(f"consumer {consumer} has claimed nothing of topic {topic}")
    changed, _ = find_changed_logs(consumer, known, current, group.find_truncated_logs)
    _check_complete(topic, group)
    identities: dict[Partition, str] = {}
    for partition, offsets in current.items():
        old = known.get(partition)
        if old is None or not is_same_topic(old.topic_id, offsets.topic_id):
            identities[partition] = offsets.topic_id
        elif partition in changed or None in (old.leader_epoch, offsets.leader_epoch):
            # Without leader epochs, a log that was truncated and refilled beyond the position looks like the old
            # log.
            identities[partition] = next_generation(old.topic_id)
        else:
            identities[partition] = old.topic_id
    changes = _settle_as_lost(connection, consumer, topic, identities)
    if changes:
        add_to_alarm(connection, consumer, AlarmKind.messages_lost, "; ".join(changes))
    connection.execute(delete(positions).where(*is_position))
    new_rows = [
        (topic, p.number, identities[p], offsets.low, offsets.leader_epoch) for p, offsets in sorted(current.items())
    ]
    if not current:
        # The topic does not exist. If the broker gives no topic ids, the next log of this name must not get the
        # identity of the old log.
        new_rows = [
            (topic, p.number, next_generation(old.topic_id), 0, None)
            for p, old in sorted(known.items())
            if is_same_topic(old.topic_id, topic)
        ]
    write_positions(connection, consumer, new_rows)
    changes += [f"{topic}-{p.number}: starts at offset {offsets.low}" for p, offsets in sorted(current.items())]
    try:
        if commit is not None:
            # Under the consumer's lock, so that no claim commits offsets at the same time.
            commit({partition: offsets.low for partition, offsets in current.items()})
    except KafkaException as error:
        changes.append(
            f"the committed offsets of group {consumer} stay where they are ({error.args[0].str()}); claims do not "
            "depend on them"
        )
    close_alarm(connection, consumer, AlarmKind.consumer_stopped, key=topic)
    return changes


def _check_complete(topic: str, group: GroupOffsets) -> None:
    """Raise ValueError if a partition was left out: the reset would delete its position and write no new one."""
    if group.left_out:
        named = ", ".join(f"{p.number} ({why})" for p, why in sorted(group.left_out.items()))
        raise ValueError(f"topic {topic}: not every partition answers now: {named}; try again when its broker is back")


def _settle_as_lost(connection: Connection, consumer: str, topic: str, identities: dict[Partition, str]) -> list[str]:
    """Settle ranges of open claims on logs that no longer exist as lost; returns one text for each lost range."""
    open_ranges = connection.execute(
        select(claim_ranges)
        .join(claims, claims.c.id == claim_ranges.c.claim_id)
        .where(claims.c.consumer == consumer, claims.c.closed_at.is_(None), claim_ranges.c.topic == topic)
    ).all()
    texts: list[str] = []
    for row in open_ranges:
        if identities.get(Partition(topic, row.partition)) == row.topic_id:
            continue
        gone = OffsetRange(topic, row.topic_id, row.partition, row.readable_from, row.end_offset)
        lost = settle(connection, consumer, row.claim_id, gone, [(gone.start, gone.end)])
        texts += [f"{part}: given up, {len(part)} messages are lost" for part in lost]
    return texts
