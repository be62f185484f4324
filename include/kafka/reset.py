"""Let a stopped consumer go on: the one place where its offsets may move back."""

import asyncio

from sqlalchemy import delete, select

from include.kafka.claims import lock_consumer, mark_handled
from include.kafka.connection import CONN_ID, admin_config
from include.kafka.offsets import OffsetRange, Partition, alter_committed, partition_offsets
from include.operations.alarms import close_alarm, open_alarm
from include.operations.database import begin
from include.operations.models import Claim, ClaimRange, Position


class NothingToReset(Exception):
    """The consumer has never claimed anything of that topic."""


def reset_consumer(consumer: str, topic: str, *, conn_id: str = CONN_ID) -> list[str]:
    """Forget the consumer's positions in the topic and start at the beginning of what is there now.

    The offsets of open claims that are gone are marked as lost. Returns what changed, in words. Harmless to run
    again: messages that were handled under the topic's present id are known to the inbox.

    Raises NothingToReset when the consumer has no position in the topic.
    """
    from confluent_kafka.admin import AdminClient

    admin = AdminClient(admin_config(conn_id))
    changes: list[str] = []
    with begin() as session:
        lock_consumer(session, consumer)
        now = asyncio.run(partition_offsets(admin, [topic], consumer))
        known = delete(Position).where(Position.consumer == consumer, Position.topic == topic)
        if not session.execute(known.returning(Position.partition)).all():
            raise NothingToReset(f"consumer {consumer} has claimed nothing of topic {topic}")
        open_ranges = session.scalars(
            select(ClaimRange)
            .join(Claim, Claim.id == ClaimRange.claim_id)
            .where(Claim.consumer == consumer, Claim.closed_at.is_(None), ClaimRange.topic == topic)
        ).all()
        for row in open_ranges:
            offsets = now.get(Partition(topic, row.partition))
            if offsets is not None and offsets.topic_id == row.topic_id and offsets.end >= row.end_offset:
                continue
            gone = OffsetRange(topic, row.topic_id, row.partition, row.readable_from, row.end_offset)
            mark_handled(session, row.claim_id, gone, lost=len(gone))
            changes.append(f"{gone}: given up, what was not handled of it is lost")
        if changes:
            open_alarm(session, consumer, "messages_lost", "; ".join(changes))
        starts = {partition: offsets.low for partition, offsets in now.items()}
        # Under the lock: no claim can commit in between.
        alter_committed(admin, consumer, starts)
        changes += [f"{p.topic}-{p.number}: starts at offset {low}" for p, low in sorted(starts.items())]
        close_alarm(session, consumer, "consumer_stopped")
    return changes
