"""Claims: which Dag run owns which offsets.

A claim is a set of rows in the operational database, written in one short transaction under a lock on the consumer's
row. So two claimers, or a task that Airflow declared dead but still runs, cannot take the same offsets. A run that
claims again, because it was retried or cleared, gets the same ranges again. After the claim, the group's committed
offsets are moved forward, never back, under the same lock. They are for tools that show lag; after the first claim,
claims do not depend on them.

The available offsets are an input: up to the ends of the logs in the event lane, up to the first gap of the landing
table in the standard lane.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sqlalchemy import Connection, Row, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import LogComparison, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.streams.operations.database import begin
from include.streams.operations.tables import claim_ranges, claims, consumers, handled_ranges, positions

log = logging.getLogger(__name__)

Available = Callable[[], Mapping[Partition, PartitionOffsets]]
# Argument: {partition: (log identity, next offset)}.
Commit = Callable[[dict[Partition, tuple[str, int]]], object]
# Argument: {partition: (next offset, leader epoch)}. Returns the partitions whose log was truncated, and those that did
# not answer.
CompareLogs = Callable[[Mapping[Partition, tuple[int, int]]], LogComparison]


class ConsumerStopped(Exception):
    """A log is not the one that was claimed before: a claim on it would skip messages or confuse them with others.

    Attributes:
        stopped: {topic: what happened to it} of all topics that are known to be stopped. The error's text is about the
            first of them.
    """

    def __init__(self, stopped: Mapping[str, str]) -> None:
        super().__init__(stopped[min(stopped)])
        self.stopped = stopped


def stopped_topics(stopped: Mapping[Partition, str]) -> dict[str, str]:
    """{topic: what happened to the first of its stopped partitions}."""
    return {partition.topic: why for partition, why in sorted(stopped.items(), reverse=True)}


def reset_command(consumer: str, topic: str, conn_id: str) -> str:
    """How to reset a stopped consumer: the Dag, then the command at the end, so that it can be copied.

    Args:
        consumer: The consumer's name.
        topic: The stopped topic.
        conn_id: The Airflow connection of the broker.
    """
    command = f"python -m include.streams.kafka reset {consumer} {topic}"
    command = command if conn_id == CONN_ID else f"{command} --conn-id {conn_id}"
    return f"the Dag reset_consumer, or {command}"


@dataclass(frozen=True)
class Claimed:
    """The claim of one run.

    Attributes:
        id: The claim's id.
        ranges: The offsets that the run must handle.
        lost: Claimed offsets that retention had removed before the claim.
        behind: {topic: number of offsets that were available for this claim, including those that it took}; None when
            the run had this claim already.
        stopped: {partition: reason} of partitions that cannot be claimed, because their log is not the one that was
            claimed before.
        foreign: {partition: (committed offset, own position)} where the group's committed offset was ahead of the
            consumer's position: another client commits under this group's name.
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
    stopped: Mapping[Partition, str] = MappingProxyType({}),
    on_new: Callable[[Connection, Claimed], object] | None = None,
) -> Claimed:
    """Return the claim of this run; make a new claim if the run has none.

    Killed before the first transaction commits: nothing was changed. Killed between the two transactions: the claim is
    recorded, and the next claim commits its offsets too.

    Args:
        consumer: The consumer's name.
        run_id: The run that owns the claim.
        available: Returns the available offsets by partition. It is called under the lock, so its answer is not older
            than the claims of other runs.
        commit: Called with the next offset of every partition, also under the lock.
        max_messages: The most offsets in a new claim. A function is called under the lock, so that two concurrent
            claims cannot use the same free capacity.
        compare_logs: Called under the lock with positions that were taken under another leader. Without it, a truncated
            log is detected only while it ends before the claimed offsets.
        stopped: {partition: reason} of partitions that, as the caller knows, have another log than before. A new claim
            leaves them out.
        on_new: Called in the transaction of a new claim, to write rows that must exist together with the claim, such as
            the alarm about a loss.

    Returns:
        The claim. Partitions whose log is not the one that was claimed before have no range and are in `stopped`.

    Raises:
        ConsumerStopped: There are such partitions, and no other partition has messages.
    """
    with begin() as connection:
        lock_consumer(connection, consumer)
        of_run = select(claims.c.id).where(claims.c.consumer == consumer, claims.c.run_id == run_id)
        claim_id = connection.scalar(of_run)
        if claim_id is not None:
            claimed = _read_claim(connection, claim_id)
        else:
            limit = max_messages if isinstance(max_messages, int) else max_messages(connection)
            claimed = _new_claim(connection, consumer, run_id, available(), limit, compare_logs, stopped)
            if on_new is not None:
                on_new(connection, claimed)
    # A second transaction, so that offsets are never committed for a claim that was rolled back: tools that use
    # committed offsets would show its messages as handled.
    with begin() as connection:
        lock_consumer(connection, consumer)
        commit(positions_of(connection, consumer))
    return claimed


def lock_consumer(connection: Connection, consumer: str) -> None:
    """Take the consumer's lock until the transaction ends; waits for other claims, commits and resets of it."""
    connection.execute(upsert(consumers).values(name=consumer).on_conflict_do_nothing())
    connection.execute(select(consumers).where(consumers.c.name == consumer).with_for_update())


def positions_of(
    connection: Connection, consumer: str, topics: Iterable[str] | None = None
) -> dict[Partition, tuple[str, int]]:
    """The consumer's positions: the first offset of each partition that it has not claimed yet.

    Args:
        connection: A connection to the operational database.
        consumer: The consumer's name.
        topics: Only these topics; None for all.

    Returns:
        {partition: (log identity, next offset)}.
    """
    query = select(positions).where(positions.c.consumer == consumer)
    if topics is not None:
        query = query.where(positions.c.topic.in_(sorted(topics)))
    rows = connection.execute(query)
    return {Partition(row.topic, row.partition): (row.topic_id, row.next_offset) for row in rows}


def _new_claim(
    connection: Connection,
    consumer: str,
    run_id: str,
    available: Mapping[Partition, PartitionOffsets],
    max_messages: int,
    compare_logs: CompareLogs | None,
    stopped: Mapping[Partition, str],
) -> Claimed:
    rows = connection.execute(select(positions).where(positions.c.consumer == consumer))
    known = {Partition(row.topic, row.partition): row for row in rows}
    changed, unanswered = find_changed_logs(consumer, known, available, compare_logs)
    stopped = {**stopped, **changed}
    # Partitions that did not answer are left to a later claim: their logs may have been truncated and filled again.
    available = {p: offsets for p, offsets in available.items() if p not in stopped and p not in unanswered}
    started = {partition.topic for partition in known}
    start: dict[Partition, int] = {}
    for partition, offsets in available.items():
        if (position := known.get(partition)) is not None:
            start[partition] = position.next_offset
        elif partition.topic in started:
            # A partition that was added later. A committed offset there is not from this consumer and would skip the
            # messages before it.
            start[partition] = offsets.low
        else:
            # First claim: start at the group's committed offset if there is one and it is not after the log's end, else
            # at the first available offset.
            has_committed = offsets.committed is not None and not offsets.truncated
            start[partition] = offsets.committed if has_committed else offsets.low  # type: ignore[assignment]

    readable = {p: max(start[p], offsets.low) for p, offsets in available.items()}
    wanted = {p: max(0, available[p].end - readable[p]) for p in available}
    if stopped and not any(wanted.values()):
        raise ConsumerStopped(stopped_topics(stopped))
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
        # A row also for a partition without messages: its log identity reveals a recreated topic.
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
    foreign: dict[Partition, tuple[int, int]] = {}
    for partition, offsets in available.items():
        position = known.get(partition)
        if position is not None and offsets.committed is not None and offsets.committed > position.next_offset:
            foreign[partition] = (offsets.committed, position.next_offset)
    return replace(_read_claim(connection, claim_id), behind=behind, stopped=stopped, foreign=foreign)


# Each write is one statement, whatever the number of partitions.
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
    """Insert or update positions; call this under the lock on the consumer's row.

    Args:
        connection: A connection in the transaction that holds the lock.
        consumer: The consumer's name.
        rows: (topic, partition, log identity, next offset, leader epoch or None).
    """
    if rows:
        connection.execute(_WRITE_POSITIONS, {"consumer": consumer, **_columns(_POSITION_COLUMNS, rows)})


def find_changed_logs(
    consumer: str,
    known: Mapping[Partition, Row],
    available: Mapping[Partition, PartitionOffsets],
    compare_logs: CompareLogs | None,
) -> tuple[dict[Partition, str], set[Partition]]:
    """Find partitions whose log is not the one that was claimed before: recreated or truncated.

    Args:
        consumer: The consumer's name, for the text.
        known: The consumer's rows of `positions`.
        available: The offsets that the broker reports now.
        compare_logs: See `claim`. Only positions that were taken under another leader are compared: the log of a
            partition is not truncated while its leader stays the same.

    Returns:
        {partition: what happened}; and the partitions whose log could not be compared. What happened is the same text
        at every check, because an alarm reports each text once.
    """
    changed: dict[Partition, str] = {}
    doubtful: dict[Partition, tuple[int, int]] = {}
    for partition, offsets in sorted(available.items()):
        position = known.get(partition)
        if position is None:
            continue
        if not is_same_topic(position.topic_id, offsets.topic_id):
            changed[partition] = (
                f"consumer {consumer}: topic {partition.topic} was deleted and recreated (its id was "
                f"{position.topic_id} and is {offsets.topic_id})"
            )
        elif offsets.end < position.next_offset:
            changed[partition] = (
                f"consumer {consumer}: the log of topic {partition.topic} was truncated (offsets up to "
                f"{position.next_offset} of partition {partition.number} were claimed, but it now ends before)"
            )
        elif (
            position.next_offset > 0
            and None not in (position.leader_epoch, offsets.leader_epoch)
            and position.leader_epoch != offsets.leader_epoch
        ):
            doubtful[partition] = (position.next_offset, position.leader_epoch)
    compared = compare_logs(doubtful) if compare_logs is not None and doubtful else LogComparison(set(), set())
    for partition in sorted(compared.truncated):
        position = known[partition]
        changed[partition] = (
            f"consumer {consumer}: the log of topic {partition.topic} was truncated and filled again (offsets "
            f"up to {position.next_offset} of partition {partition.number} were claimed under leader epoch "
            f"{position.leader_epoch}; other records have taken their place)"
        )
    return changed, compared.unanswered


def fair_shares(wanted: Mapping[Partition, int], total: int) -> dict[Partition, int]:
    """Split `total` offsets between partitions, so that a partition with a large backlog does not delay the others.

    Every partition gets an equal share. The unused part of a share goes to partitions that want more.

    Args:
        wanted: {partition: number of available offsets}.
        total: The most offsets to distribute.

    Returns:
        {partition: number of offsets}, at most the wanted number for each.
    """
    shares: dict[Partition, int] = {}
    # The smallest demand first, so that its unused share is known when the next partition is served.
    for served, partition in enumerate(sorted(wanted, key=lambda p: (wanted[p], p))):
        # Rounded up: if the total is less than one offset per partition, some get one instead of all getting none.
        share = -(-total // (len(wanted) - served))
        shares[partition] = min(wanted[partition], share)
        total -= shares[partition]
    return shares


def _read_claim(connection: Connection, claim_id: int) -> Claimed:
    of_claim = select(claim_ranges).where(claim_ranges.c.claim_id == claim_id)
    rows = connection.execute(of_claim.order_by(claim_ranges.c.topic, claim_ranges.c.partition)).all()
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
    """Record that every offset of the range is done, and close the claim when its last range is done.

    Two tasks that finish at the same time lock the claim's row one after the other. Otherwise neither would see the
    range of the other, and the claim would stay open.

    Args:
        connection: A connection in a transaction.
        claim_id: The claim.
        done: The range.
        lost: The number of lost offsets in it: all of them, or none.

    Returns:
        Whether every offset of the claim is done.
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
    """Record that every offset of the range is done, and which of them were lost.

    Args:
        connection: A connection in the transaction that also opens the alarm about the loss.
        consumer: The consumer's name.
        claim_id: The claim.
        done: The range.
        gone: Offsets [start, end) that could no longer be read. Among them, offsets with an inbox row and offsets that
            the claim has settled before are not lost: they were handled before retention removed them.

    Returns:
        The ranges of lost offsets.
    """
    inside = [(max(start, done.start), min(end, done.end)) for start, end in gone]
    inside = [(start, end) for start, end in inside if start < end]
    lost: list[OffsetRange] = []
    if inside:
        # Lock before the query, to wait for a task that settles the same offsets at the same time.
        connection.execute(select(claims.c.id).where(claims.c.id == claim_id).with_for_update())
        parameters = {
            "gone": "{" + ",".join(f"[{start},{end})" for start, end in inside) + "}",
            "claim_id": claim_id,
            "consumer": consumer,
            "topic": done.topic,
            "topic_id": done.topic_id,
            "partition": done.partition,
            "start": done.start,
            "end": done.end,
        }
        rows = connection.execute(_NEVER_HANDLED, parameters).all()
        lost = [replace(done, start=start, end=end) for start, end in rows]
    for lost_range in lost:
        mark_handled(connection, claim_id, lost_range, lost=len(lost_range))
    if lost != [done]:
        mark_handled(connection, claim_id, done)
    return tuple(lost)


# Multiranges, because ranges overlap when the chunk size was changed between two tries.
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
    """Count the offsets in the consumer's open claims that are not handled yet.

    Args:
        connection: A connection to the operational database.
        consumer: The consumer's name.

    Returns:
        {topic: number of offsets}; only topics with such offsets.
    """
    return {topic: int(number) for topic, number in connection.execute(_UNHANDLED, {"consumer": consumer})}


def close_if_handled(connection: Connection, claim_id: int) -> bool:
    """Close the claim if all of its readable offsets are handled.

    Args:
        connection: A connection in a transaction.
        claim_id: The claim.

    Returns:
        Whether all are handled.
    """
    closed = bool(connection.scalar(_COVERED, {"claim_id": claim_id}))
    if closed:
        still_open = update(claims).where(claims.c.id == claim_id, claims.c.closed_at.is_(None))
        connection.execute(still_open.values(closed_at=func.now()))
    return closed
