"""Claims: which Dag run owns which offsets.

A claim is made of rows in the operational database, in one short transaction under a lock on the consumer's row: two
claimers, or a task that was given up and still runs, cannot take the same offsets. A run that asks again, because it
was retried or cleared, gets the ranges it had. The group's committed offsets follow, forward only, under the same
lock, for tools that show lag; they decide nothing after the first claim.

What is available is an input: log ends in the event lane, what has landed without a gap in the standard lane.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, Row, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from include.kafka.connection import CONN_ID
from include.kafka.offsets import OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.operations.database import begin
from include.operations.tables import claim_ranges, claims, consumers, handled_ranges, positions

log = logging.getLogger(__name__)

Available = Callable[[], Mapping[Partition, PartitionOffsets]]
# Given {partition: (log identity, next offset)}.
Commit = Callable[[dict[Partition, tuple[str, int]]], object]
# Given {partition: (next offset, leader epoch)}; returns the partitions whose log has lost its end.
CompareLogs = Callable[[Mapping[Partition, tuple[int, int]]], set[Partition]]


class ConsumerStopped(Exception):
    """The log is not the one that was claimed before: going on would skip messages or mistake them for others."""

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
    claimed at that moment, these included; None when the run only asked again. `stopped` says of partitions why nothing
    is claimed of them. `foreign` holds the partitions where the group's committed offset was ahead of the consumer's
    own position, as (committed, position): somebody else commits under this group's name.
    """

    id: int
    ranges: tuple[OffsetRange, ...]
    lost: tuple[OffsetRange, ...]
    behind: Mapping[str, int] | None
    stopped: Mapping[Partition, str] = field(default_factory=dict)
    foreign: Mapping[Partition, tuple[int, int]] = field(default_factory=dict)


def claim(
    consumer: str,
    run_id: str,
    available: Available,
    commit: Commit,
    *,
    max_messages: int | Callable[[Connection], int],
    compare_logs: CompareLogs | None = None,
    on_new: Callable[[Connection, Claimed], object] | None = None,
) -> Claimed:
    """The offset ranges of this run: the ones it has, else new ones, at most `max_messages` offsets.

    Args:
        consumer: whose claim it is.
        run_id: the run that owns it.
        available: asked under the lock, so its answer is not older than what others have claimed.
        commit: given the next offset of every partition, under the lock too.
        max_messages: how many offsets a new claim holds at most; a function is asked under the lock, so that two
            claimers cannot both take the same room.
        compare_logs: asked under the lock about positions that were taken under another leader; without it, a log that
            lost its end is noticed only while it is shorter than what was claimed.
        on_new: called in the transaction that makes a new claim, for what must be on record with it, such as a loss.

    Returns:
        The claim. Partitions whose log is not the one that was claimed before are left out, and named in it.

    Raises:
        ConsumerStopped: nothing else than such partitions has messages.

    Killed before the first transaction ends: nothing happened. Between the two: the claim stands, and the committed
    offsets follow with the next claim.
    """
    with begin() as connection:
        lock_consumer(connection, consumer)
        mine = select(claims.c.id).where(claims.c.consumer == consumer, claims.c.run_id == run_id)
        claim_id = connection.scalar(mine)
        if claim_id is not None:
            claimed = _ranges(connection, claim_id)
        else:
            room = max_messages if isinstance(max_messages, int) else max_messages(connection)
            claimed = _new_claim(connection, consumer, run_id, available(), room, compare_logs)
            if on_new is not None:
                on_new(connection, claimed)
    # A second transaction, so that offsets are never committed for a claim that was rolled back: tools that go by
    # committed offsets would take its messages for handled.
    with begin() as connection:
        lock_consumer(connection, consumer)
        commit(positions_of(connection, consumer))
    return claimed


def lock_consumer(connection: Connection, consumer: str) -> None:
    """Wait for everyone else who claims, commits or resets for this consumer, until the transaction ends."""
    connection.execute(upsert(consumers).values(name=consumer).on_conflict_do_nothing())
    connection.execute(select(consumers).where(consumers.c.name == consumer).with_for_update())


def positions_of(
    connection: Connection, consumer: str, topics: Iterable[str] | None = None
) -> dict[Partition, tuple[str, int]]:
    """{partition: (log identity, next offset)}: what the consumer has not claimed yet begins there.

    topics: only of these.
    """
    mine = select(positions).where(positions.c.consumer == consumer)
    rows = connection.execute(mine if topics is None else mine.where(positions.c.topic.in_(sorted(topics))))
    return {Partition(row.topic, row.partition): (row.topic_id, row.next_offset) for row in rows}


def _new_claim(
    connection: Connection,
    consumer: str,
    run_id: str,
    available: Mapping[Partition, PartitionOffsets],
    max_messages: int,
    compare_logs: CompareLogs | None,
) -> Claimed:
    rows = connection.execute(select(positions).where(positions.c.consumer == consumer))
    known = {Partition(row.topic, row.partition): row for row in rows}
    stopped = lost_logs(consumer, known, available, compare_logs)
    available = {partition: offsets for partition, offsets in available.items() if partition not in stopped}
    started = {partition.topic for partition in known}
    start: dict[Partition, int] = {}
    for partition, offsets in available.items():
        if (position := known.get(partition)) is not None:
            start[partition] = position.next_offset
        elif partition.topic in started:
            # Added later. A committed offset is not this consumer's: it would skip what lies before it.
            start[partition] = offsets.low
        else:
            # Never claimed: where the group stands, if somebody has set it and it can be, else the beginning.
            set_before = offsets.committed is not None and not offsets.truncated
            start[partition] = offsets.committed if set_before else offsets.low  # type: ignore[assignment]

    readable = {p: max(start[p], offsets.low) for p, offsets in available.items()}
    wanted = {p: max(0, available[p].end - readable[p]) for p in available}
    if stopped and not any(wanted.values()):
        partition, why = next(iter(stopped.items()))
        raise ConsumerStopped(partition.topic, why)
    share = fair_shares(wanted, max_messages)
    new = insert(claims).values(consumer=consumer, run_id=run_id).returning(claims.c.id)
    claim_id = connection.execute(new).scalar_one()
    ranges: list[tuple] = []
    moved: list[tuple] = []
    for partition, offsets in sorted(available.items()):
        position = known.get(partition)
        identity = position.topic_id if position is not None else offsets.topic_id
        end = readable[partition] + share[partition]
        if end > start[partition]:
            ranges.append((partition.topic, partition.number, identity, start[partition], readable[partition], end))
        # A row also for a partition without messages: by the identity of its log, a recreated topic is noticed.
        after = (identity, max(end, start[partition]), offsets.leader_epoch)
        if position is None or after != (position.topic_id, position.next_offset, position.leader_epoch):
            moved.append((partition.topic, partition.number, *after))
    if ranges:
        connection.execute(_INSERT_RANGES, {"claim_id": claim_id, **_columns(_RANGE_COLUMNS, ranges)})
    write_positions(connection, consumer, moved)
    close_if_handled(connection, claim_id)
    behind: dict[str, int] = {}
    for partition, offsets_behind in wanted.items():
        behind[partition.topic] = behind.get(partition.topic, 0) + offsets_behind
    foreign = {p: (available[p].committed, known[p].next_offset) for p in available if p in known}
    ahead = {p: both for p, both in foreign.items() if (both[0] or 0) > both[1]}
    return replace(_ranges(connection, claim_id), behind=behind, stopped=stopped, foreign=ahead)  # type: ignore[arg-type]


# One statement each, however many partitions a topic has.
_RANGE_COLUMNS = ("topics", "partitions", "topic_ids", "starts", "readable", "ends")
_INSERT_RANGES = text(
    """
    insert into claim_ranges (claim_id, topic, partition, topic_id, start_offset, readable_from, end_offset)
    select :claim_id, new.* from unnest(
        cast(:topics as text[]), cast(:partitions as bigint[]), cast(:topic_ids as text[]),
        cast(:starts as bigint[]), cast(:readable as bigint[]), cast(:ends as bigint[])
    ) as new
    """
)
_POSITION_COLUMNS = ("topics", "partitions", "topic_ids", "next_offsets", "epochs")
_WRITE_POSITIONS = text(
    """
    insert into positions (consumer, topic, partition, topic_id, next_offset, leader_epoch)
    select :consumer, new.* from unnest(
        cast(:topics as text[]), cast(:partitions as bigint[]), cast(:topic_ids as text[]),
        cast(:next_offsets as bigint[]), cast(:epochs as bigint[])
    ) as new
    on conflict on constraint pk_positions do update set
        topic_id = excluded.topic_id, next_offset = excluded.next_offset, leader_epoch = excluded.leader_epoch
    """
)


def _columns(names: Iterable[str], rows: Iterable[tuple]) -> dict[str, list]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def write_positions(connection: Connection, consumer: str, rows: list[tuple]) -> None:
    """Set positions, given as (topic, partition, log identity, next offset, leader epoch or None).

    Call it under the lock on the consumer's row.
    """
    if rows:
        connection.execute(_WRITE_POSITIONS, {"consumer": consumer, **_columns(_POSITION_COLUMNS, rows)})


def lost_logs(
    consumer: str,
    known: Mapping[Partition, Row],
    available: Mapping[Partition, PartitionOffsets],
    compare_logs: CompareLogs | None,
) -> dict[Partition, str]:
    """{partition: what happened} where the log is not the one that was claimed before.

    Args:
        consumer: for the text.
        known: the consumer's rows of `positions`.
        available: what the broker says now.
        compare_logs: see `claim`. Only positions that were taken under another leader are compared: while a leader
            leads, its log does not lose its end.
    """
    stopped: dict[Partition, str] = {}
    doubtful: dict[Partition, tuple[int, int]] = {}
    for partition, offsets in sorted(available.items()):
        position = known.get(partition)
        if position is None:
            continue
        claimed = f"offsets up to {position.next_offset} of partition {partition.number} were claimed"
        if not is_same_topic(position.topic_id, offsets.topic_id):
            stopped[partition] = (
                f"consumer {consumer}: topic {partition.topic} was deleted and recreated (its id was "
                f"{position.topic_id} and is {offsets.topic_id}; {claimed})"
            )
        elif offsets.end < position.next_offset:
            stopped[partition] = (
                f"consumer {consumer}: topic {partition.topic} has lost the end of its log ({claimed}, and it ends at "
                f"{offsets.end})"
            )
        elif (
            position.next_offset > 0
            and None not in (position.leader_epoch, offsets.leader_epoch)
            and position.leader_epoch != offsets.leader_epoch
        ):
            doubtful[partition] = (position.next_offset, position.leader_epoch)
    for partition in sorted(compare_logs(doubtful) if compare_logs is not None and doubtful else ()):
        position = known[partition]
        stopped[partition] = (
            f"consumer {consumer}: topic {partition.topic} has lost the end of its log and was filled again (offsets "
            f"up to {position.next_offset} of partition {partition.number} were claimed under leader epoch "
            f"{position.leader_epoch}; other records have taken their place)"
        )
    return stopped


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


def _ranges(connection: Connection, claim_id: int) -> Claimed:
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
    return Claimed(claim_id, tuple(readable), tuple(lost), None)


def mark_handled(connection: Connection, claim_id: int, done: OffsetRange, *, lost: int = 0) -> bool:
    """Record that every offset of the range is done; close the claim with the last one. True when it is closed.

    lost: all of the range's offsets, or none. Two tasks that finish at once wait for each other at the claim's row:
    else neither would see the other's range, and the claim would stay open.
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


_NEVER_HANDLED = text(
    """
    select lower(gone), upper(gone) from unnest(
        cast(:gone as int8multirange)
        - coalesce((
            select range_agg(int8range(start_offset, end_offset)) from handled_ranges
            where claim_id = :claim_id and topic = :topic and partition = :partition
        ), '{}')
        - coalesce((
            select range_agg(int8range("offset", "offset" + 1)) from inbox
            where consumer = :consumer and topic_id = :topic_id and partition = :partition
            and "offset" >= :start and "offset" < :end
        ), '{}')
    ) as gone
    """
)


def settle(
    connection: Connection, consumer: str, claim_id: int, done: OffsetRange, gone: Iterable[tuple[int, int]]
) -> tuple[OffsetRange, ...]:
    """Record that every offset of the range is done, and which of them were lost; returns those.

    Args:
        connection: in the transaction that also states the loss.
        consumer: whose claim it is.
        claim_id: the claim.
        done: the range.
        gone: offsets that could not be read any more. What the inbox knows of them, or the claim has settled before,
            is no loss: a run that is cleared after retention has passed finds none of its messages.
    """
    inside = [(max(start, done.start), min(end, done.end)) for start, end in gone]
    inside = [(start, end) for start, end in inside if start < end]
    lost: list[OffsetRange] = []
    if inside:
        # Before the question: a task that settles the same offsets at the same time is waited for.
        connection.execute(select(claims.c.id).where(claims.c.id == claim_id).with_for_update())
        asked = {
            "gone": "{" + ",".join(f"[{start},{end})" for start, end in inside) + "}",
            "claim_id": claim_id,
            "consumer": consumer,
            "topic": done.topic,
            "topic_id": done.topic_id,
            "partition": done.partition,
            "start": done.start,
            "end": done.end,
        }
        found = connection.execute(_NEVER_HANDLED, asked).all()
        lost = [replace(done, start=start, end=end) for start, end in found]
    for whole in lost:
        mark_handled(connection, claim_id, whole, lost=len(whole))
    if lost != [done]:
        mark_handled(connection, claim_id, done)
    return tuple(lost)


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


_UNHANDLED = text(
    """
    select topic, sum(upper(waiting) - lower(waiting)) from (
        select claimed.topic, unnest(claimed.offsets - coalesce(handled.offsets, '{}')) as waiting
        from (
            select claim_id, topic, partition, range_agg(int8range(readable_from, end_offset)) as offsets
            from claim_ranges join claims on id = claim_id
            where consumer = :consumer and closed_at is null group by 1, 2, 3
        ) claimed
        left join (
            select claim_id, topic, partition, range_agg(int8range(start_offset, end_offset)) as offsets
            from handled_ranges join claims on id = claim_id
            where consumer = :consumer and closed_at is null group by 1, 2, 3
        ) handled using (claim_id, topic, partition)
    ) as left_over
    group by topic
    """
)


def claimed_unhandled(connection: Connection, consumer: str) -> dict[str, int]:
    """{topic: offsets} of the consumer's open claims that are not handled yet."""
    return {topic: int(number) for topic, number in connection.execute(_UNHANDLED, {"consumer": consumer})}


def close_if_handled(connection: Connection, claim_id: int) -> bool:
    """Close the claim if every offset that it could read is handled."""
    closed = bool(connection.scalar(_COVERED, {"claim_id": claim_id}))
    if closed:
        still_open = update(claims).where(claims.c.id == claim_id, claims.c.closed_at.is_(None))
        connection.execute(still_open.values(closed_at=func.now()))
    return closed
