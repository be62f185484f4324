"""Let a stopped consumer go on: the one place where its offsets may move back."""

from sqlalchemy import delete, select

from include.kafka.claims import lock_consumer, mark_handled
from include.kafka.connection import CONN_ID
from include.kafka.offsets import GroupOffsets, OffsetRange, Partition
from include.operations.alarms import close_alarm, open_alarm
from include.operations.database import begin
from include.operations.tables import claim_ranges, claims, positions


class NothingToReset(Exception):
    """The consumer has never claimed anything of that topic."""


def reset_consumer(consumer: str, topic: str, *, conn_id: str = CONN_ID) -> list[str]:
    """Forget the consumer's positions in the topic and start at the beginning of what is there now.

    The offsets of open claims that are gone are marked as lost. Returns what changed, in words. Harmless to run
    again: messages that were handled under the topic's present id are known to the inbox.

    Raises NothingToReset when the consumer has no position in the topic, ValueError while a partition has no leader.
    """
    changes: list[str] = []
    with GroupOffsets(consumer, conn_id) as group, begin() as connection:
        lock_consumer(connection, consumer)
        now = group.look_now([topic])
        if now and group.incomplete:
            # Its partitions without a leader would keep their old positions.
            raise ValueError(f"topic {topic}: not every partition has a leader now; try again in a moment")
        known = delete(positions).where(positions.c.consumer == consumer, positions.c.topic == topic)
        if not connection.execute(known.returning(positions.c.partition)).all():
            raise NothingToReset(f"consumer {consumer} has claimed nothing of topic {topic}")
        open_ranges = connection.execute(
            select(claim_ranges)
            .join(claims, claims.c.id == claim_ranges.c.claim_id)
            .where(claims.c.consumer == consumer, claims.c.closed_at.is_(None), claim_ranges.c.topic == topic)
        ).all()
        for row in open_ranges:
            offsets = now.get(Partition(topic, row.partition))
            if offsets is not None and offsets.topic_id == row.topic_id and offsets.end >= row.end_offset:
                continue
            gone = OffsetRange(topic, row.topic_id, row.partition, row.readable_from, row.end_offset)
            mark_handled(connection, row.claim_id, gone, lost=len(gone))
            changes.append(f"{gone}: given up, what was not handled of it is lost")
        if changes:
            open_alarm(connection, consumer, "messages_lost", "; ".join(changes))
        starts = {partition: offsets.low for partition, offsets in now.items()}
        # Under the lock: no claim can commit in between.
        group.commit(starts)
        changes += [f"{p.topic}-{p.number}: starts at offset {low}" for p, low in sorted(starts.items())]
        close_alarm(connection, consumer, "consumer_stopped")
    return changes
