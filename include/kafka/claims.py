"""Claims: which Dag run owns which offsets.

A claim is made of rows in the operational database, in one short transaction under a lock on the consumer's row: two
claimers, or a task that was given up and still runs, cannot take the same offsets. A run that asks again, because it
was retried or cleared, gets the ranges it had. The group's committed offsets follow, forward only, under the same
lock; they are what the trigger sees, never what decides.

What is available is an input: log ends in the event lane, what has landed without a gap in the standard lane.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Row, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from include.kafka.connection import CONN_ID
from include.kafka.offsets import OffsetRange, Partition, PartitionOffsets
from include.operations.database import begin
from include.operations.tables import claim_ranges, claims, consumers, handled_ranges, positions

log = logging.getLogger(__name__)

Available = Callable[[], Mapping[Partition, PartitionOffsets]]
# Given {partition: (topic id, next offset)}.
Commit = Callable[[dict[Partition, tuple[str, int]]], object]


class ConsumerStopped(Exception):
    """The topic is not the one that was claimed before: going on would skip messages or mistake them for others."""

    def __init__(self, topic: str, text: str) -> None:
        super().__init__(text)
        self.topic = topic


def reset_command(consumer: str, topic: str, conn_id: str) -> str:
    """The command that lets a stopped consumer go on."""
    command = f"python -m include.kafka reset {consumer} {topic}"
    return command if conn_id == CONN_ID else f"{command} --conn-id {conn_id}"


@dataclass(frozen=True)
class Claimed:
    """The ranges of one run.

    `lost` is what retention had removed before they were claimed. `behind` is how many offsets of each topic could be
    claimed at that moment, these included; None when the run only asked again.
    """

    id: int
    ranges: tuple[OffsetRange, ...]
    lost: tuple[OffsetRange, ...]
    behind: Mapping[str, int] | None


def claim(consumer: str, run_id: str, available: Available, commit: Commit, *, max_messages: int) -> Claimed:
    """The offset ranges of this run: the ones it has, else new ones, at most `max_messages` offsets.

    `available` is asked under the lock, so what it says is not older than what others have claimed. `commit` is
    given the next offset of every partition, under the lock too.

    Killed before the first transaction ends: nothing happened. Between the two: the claim stands, committed offsets
    lag behind, so the trigger starts another run, whose commit includes this one's. Raises ConsumerStopped when a
    topic was deleted and made again, or has lost its end.
    """
    with begin() as connection:
        lock_consumer(connection, consumer)
        mine = select(claims.c.id).where(claims.c.consumer == consumer, claims.c.run_id == run_id)
        claim_id, behind = connection.scalar(mine), None
        if claim_id is None:
            claim_id, behind = _new_claim(connection, consumer, run_id, available(), max_messages)
        claimed = _ranges(connection, claim_id, behind)
    # A second transaction, so that offsets are never committed for a claim that was rolled back: nobody would look
    # at its messages until the next one arrived.
    with begin() as connection:
        lock_consumer(connection, consumer)
        rows = connection.execute(select(positions).where(positions.c.consumer == consumer))
        commit({Partition(row.topic, row.partition): (row.topic_id, row.next_offset) for row in rows})
    return claimed


def lock_consumer(connection: Connection, consumer: str) -> None:
    """Wait for everyone else who claims, commits or resets for this consumer, until the transaction ends."""
    connection.execute(upsert(consumers).values(name=consumer).on_conflict_do_nothing())
    connection.execute(select(consumers).where(consumers.c.name == consumer).with_for_update())


def _new_claim(
    connection: Connection,
    consumer: str,
    run_id: str,
    available: Mapping[Partition, PartitionOffsets],
    max_messages: int,
) -> tuple[int, dict[str, int]]:
    rows = connection.execute(select(positions).where(positions.c.consumer == consumer))
    known = {Partition(row.topic, row.partition): row for row in rows}
    start: dict[Partition, int] = {}
    for partition, offsets in available.items():
        if (position := known.get(partition)) is not None:
            _check_same_topic(consumer, partition, position, offsets)
            start[partition] = position.next_offset
        else:
            # Never claimed: where the group stands, if somebody has set it and it can be, else the beginning.
            set_before = offsets.committed is not None and not offsets.truncated
            start[partition] = offsets.committed if set_before else offsets.low  # type: ignore[assignment]

    new = insert(claims).values(consumer=consumer, run_id=run_id).returning(claims.c.id)
    claim_id = connection.execute(new).scalar_one()
    readable = {p: max(start[p], offsets.low) for p, offsets in available.items()}
    wanted = {p: max(0, available[p].end - readable[p]) for p in available}
    share = fair_shares(wanted, max_messages)
    for partition, offsets in sorted(available.items()):
        end = readable[partition] + share[partition]
        if end > start[partition]:
            connection.execute(
                insert(claim_ranges).values(
                    claim_id=claim_id,
                    topic=partition.topic,
                    topic_id=offsets.topic_id,
                    partition=partition.number,
                    start_offset=start[partition],
                    readable_from=readable[partition],
                    end_offset=end,
                )
            )
        # A row also for a partition without messages: its topic's id is what tells a topic made again.
        position = upsert(positions).values(
            consumer=consumer,
            topic=partition.topic,
            partition=partition.number,
            topic_id=offsets.topic_id,
            next_offset=max(end, start[partition]),
        )
        connection.execute(
            position.on_conflict_do_update(
                constraint="pk_positions", set_={"next_offset": position.excluded.next_offset}
            )
        )
    close_if_handled(connection, claim_id)
    behind: dict[str, int] = {}
    for partition, offsets_behind in wanted.items():
        behind[partition.topic] = behind.get(partition.topic, 0) + offsets_behind
    return claim_id, behind


def _check_same_topic(consumer: str, partition: Partition, position: Row, offsets: PartitionOffsets) -> None:
    claimed = f"offsets up to {position.next_offset} of partition {partition.number} were claimed"
    if position.topic_id != offsets.topic_id:
        raise ConsumerStopped(
            partition.topic,
            f"consumer {consumer}: topic {partition.topic} was deleted and made again (its id was "
            f"{position.topic_id} and is {offsets.topic_id}; {claimed})",
        )
    if offsets.end < position.next_offset:
        raise ConsumerStopped(
            partition.topic,
            f"consumer {consumer}: topic {partition.topic} has lost the end of its log ({claimed}, and it ends at "
            f"{offsets.end})",
        )


def fair_shares(wanted: Mapping[Partition, int], total: int) -> dict[Partition, int]:
    """Split `total` so that a partition with much to do cannot keep the others waiting.

    Everyone gets an equal share; what some do not need goes to those that want more.
    """
    shares: dict[Partition, int] = {}
    # The smallest first, so that what each leaves over is known when the next is served.
    for served, partition in enumerate(sorted(wanted, key=lambda p: (wanted[p], p))):
        # Rounded up: one message for each, as far as the total goes, rather than none for all.
        share = -(-total // (len(wanted) - served))
        shares[partition] = min(wanted[partition], share)
        total -= shares[partition]
    return shares


def _ranges(connection: Connection, claim_id: int, behind: Mapping[str, int] | None) -> Claimed:
    of_this = select(claim_ranges).where(claim_ranges.c.claim_id == claim_id)
    rows = connection.execute(of_this.order_by(claim_ranges.c.topic, claim_ranges.c.partition)).all()
    readable = [
        OffsetRange(r.topic, r.topic_id, r.partition, r.readable_from, r.end_offset)
        for r in rows
        if r.end_offset > r.readable_from
    ]
    lost = [
        OffsetRange(r.topic, r.topic_id, r.partition, r.start_offset, r.readable_from)
        for r in rows
        if r.readable_from > r.start_offset
    ]
    return Claimed(claim_id, tuple(readable), tuple(lost), behind)


def mark_handled(connection: Connection, claim_id: int, done: OffsetRange, *, lost: int = 0) -> bool:
    """Record that every offset of the range is done; close the claim with the last one. True when it is closed.

    Two tasks that finish at once wait for each other at the claim's row: else neither would see the other's range,
    and the claim would stay open for ever.
    """
    connection.execute(select(claims.c.id).where(claims.c.id == claim_id).with_for_update())
    row = upsert(handled_ranges).values(
        claim_id=claim_id,
        topic=done.topic,
        partition=done.partition,
        start_offset=done.start,
        end_offset=done.end,
        lost=lost,
    )
    connection.execute(row.on_conflict_do_nothing())
    return close_if_handled(connection, claim_id)


# Multiranges, because a chunk size that was changed between two tries leaves ranges that overlap.
_COVERED = text(
    """
    select coalesce(bool_and(coalesce(handled.offsets, '{}'::int8multirange) @> claimed.offsets), true)
    from (
        select topic, partition, range_agg(int8range(readable_from, end_offset)) as offsets
        from claim_ranges where claim_id = :claim_id group by topic, partition
    ) claimed
    left join (
        select topic, partition, range_agg(int8range(start_offset, end_offset)) as offsets
        from handled_ranges where claim_id = :claim_id group by topic, partition
    ) handled using (topic, partition)
    """
)


def close_if_handled(connection: Connection, claim_id: int) -> bool:
    """Close the claim if every offset that it could read is handled."""
    closed = bool(connection.scalar(_COVERED, {"claim_id": claim_id}))
    if closed:
        still_open = update(claims).where(claims.c.id == claim_id, claims.c.closed_at.is_(None))
        connection.execute(still_open.values(closed_at=func.now()))
    return closed
