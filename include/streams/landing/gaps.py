"""The gaps of a landing table (missing offsets) and their outcomes, recorded in the operational database.

A gap is first *missing*, with the time of its first check. If the offsets land later, its row is deleted. Otherwise it
becomes *repaired* (read from Kafka and appended), *no_record* (the log holds no record there: transaction markers,
aborted messages, compaction) or *lost* (retention had removed the offsets). *no_record* and *lost* then count as
landed, so that claims continue after them. Their rows are kept as long as the table, because Kafka may no longer have
the information.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Identity,
    Index,
    Row,
    String,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    false,
    func,
    insert,
    not_,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, MultiRange, Range

from include.streams.kafka.offsets import OffsetRange
from include.streams.landing import intervals
from include.streams.landing.intervals import Ranges
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.database import begin
from include.streams.operations.tables import metadata, now_column

log = logging.getLogger(__name__)


class State(StrEnum):
    """The outcome of offsets that a landing table does not hold."""

    missing = "missing"
    repaired = "repaired"
    no_record = "no_record"
    lost = "lost"


RUNBOOK = AlarmKind.landing_gap.runbook
# Offsets with these outcomes need no row in the landing table.
SETTLED = (State.no_record, State.lost)
# The most ranges in one row; each takes some 16 bytes.
MAX_RANGES = 1_000

landing_gaps = Table(
    "landing_gaps",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("topic", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("partition", BigInteger, nullable=False),
    Column("start_offset", BigInteger, nullable=False),
    Column("end_offset", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    # How many records the repair appended.
    Column("records", BigInteger, server_default="0", nullable=False),
    # The ranges of [start_offset, end_offset) that belong to the row; null for the whole range. Each transaction of a
    # producer leaves a hole. With one row per hole, this table would soon be larger than the rest of the database.
    Column("ranges", INT8MULTIRANGE),
    now_column("found_at"),
    CheckConstraint("start_offset < end_offset", name="ordered"),
    CheckConstraint("state in ('missing', 'repaired', 'no_record', 'lost')", name="state"),
    Index("ix_landing_gaps_offsets", "topic_id", "partition", "end_offset"),
    Index("ix_landing_gaps_missing", "topic_id", "found_at", postgresql_where=text("state = 'missing'")),
)


@dataclass(frozen=True)
class Gap:
    """Missing offsets, and the time since a check first found them missing."""

    offsets: OffsetRange
    age: timedelta


def settled(
    connection: Connection,
    topic_id: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int] | None = None,
    states: Sequence[State] = SETTLED,
) -> dict[int, Ranges]:
    """The offsets that need no row in the landing table, because they hold no record or are lost.

    Args:
        connection: A connection to the operational database.
        topic_id: The landing table's topic id.
        starts: {partition: the first offset}.
        ends: {partition: the end, exclusive}; no end for partitions that are not in it, or if it is None.
        states: Only offsets with these outcomes.

    Returns:
        {partition: offsets}, without partitions that have none. A range may begin before the start.
    """
    # With this condition on the index, rows before the starts are not read. These rows are kept forever.
    conditions = (landing_gaps.c.topic_id == topic_id, landing_gaps.c.state.in_(states), _reach(starts, ends or {}))
    by_partition: dict[int, list[tuple[int, int]]] = {}
    for row in connection.execute(select(landing_gaps).where(*conditions)):
        start, end = starts[row.partition], (ends or {}).get(row.partition)
        parts = (part for part in _ranges_of(row) if part[1] > start and (end is None or part[0] < end))
        by_partition.setdefault(row.partition, []).extend(parts)
    return {partition: intervals.union(ranges) for partition, ranges in by_partition.items() if ranges}


def _reach(starts: Mapping[int, int], ends: Mapping[int, int]) -> ColumnElement[bool]:
    """The condition for rows that may have offsets in these parts of the partitions."""
    parts = (
        and_(
            landing_gaps.c.partition == partition,
            landing_gaps.c.end_offset > start,
            *([landing_gaps.c.start_offset < ends[partition]] if partition in ends else []),
        )
        for partition, start in starts.items()
    )
    return or_(false(), *parts)


def _ranges_of(row: Row) -> Ranges:
    if row.ranges is None:
        return [(row.start_offset, row.end_offset)]
    return [(part.lower, part.upper) for part in row.ranges]


def record_missing(
    connection: Connection,
    topic: str,
    topic_id: str,
    missing: Mapping[int, Ranges],
    checked: Mapping[int, tuple[int, int]],
    age: timedelta = timedelta(),
) -> list[Gap]:
    """Record which offsets are missing now, and delete the records of offsets that are no longer missing.

    Calls are serialized by a lock, because two at once would record a gap twice. If an offset is settled after a
    caller's check and before its call, the caller records it as missing again; its next check deletes that record.

    Args:
        connection: A connection to the operational database, in a transaction.
        topic: The topic's name.
        topic_id: The landing table's topic id.
        missing: {partition: the offsets that are missing now}, as `intervals.union` returns them.
        checked: {partition: (start, end) of the offsets that were checked}. Other offsets stay as they are.
        age: The age with which new missing offsets are recorded.

    Returns:
        The missing offsets with their age.
    """
    lock(connection, topic_id)
    starts, ends = ({partition: both[n] for partition, both in checked.items()} for n in (0, 1))
    conditions = (landing_gaps.c.topic_id == topic_id, landing_gaps.c.state == State.missing, _reach(starts, ends))
    known_for = (func.now() - landing_gaps.c.found_at).label("age")
    known: dict[int, list[tuple[Ranges, timedelta]]] = {}
    ended_by_partition: dict[int, Ranges] = {}
    done: list[dict[str, int]] = []
    for row in connection.execute(
        select(landing_gaps, known_for).where(*conditions).order_by(landing_gaps.c.found_at)
    ).all():
        ranges_before = _ranges_of(row)
        # Only this row's part of the missing offsets: otherwise the time would grow with the square of the holes.
        missing_still = intervals.intersect(
            ranges_before, intervals.between(missing.get(row.partition, []), row.start_offset, row.end_offset)
        )
        known.setdefault(row.partition, []).append((missing_still, row.age))
        if not (ended := intervals.subtract(intervals.between(ranges_before, *checked[row.partition]), missing_still)):
            continue
        ended_by_partition.setdefault(row.partition, []).extend(ended)
        if left := intervals.subtract(ranges_before, ended):
            connection.execute(update(landing_gaps).where(landing_gaps.c.id == row.id).values(_columns_of(left)))
        else:
            done.append({"of": row.id})
    if done:
        connection.execute(delete(landing_gaps).where(landing_gaps.c.id == bindparam("of")), done)
    for partition, ended in sorted(ended_by_partition.items()):
        log.info("no longer missing: topic=%s partition=%d %s", topic, partition, intervals.text(ended))
    gaps: list[Gap] = []
    for partition, ranges in sorted(missing.items()):
        old = known.get(partition, [])
        gaps += [
            Gap(OffsetRange(topic, topic_id, partition, *r), since)
            for missing_still, since in old
            for r in missing_still
        ]
        new = intervals.subtract(ranges, intervals.union(r for missing_still, _ in old for r in missing_still))
        values = {"topic": topic, "topic_id": topic_id, "partition": partition, "state": State.missing}
        _add(connection, new, age, **values)
        gaps += [Gap(OffsetRange(topic, topic_id, partition, *r), age) for r in new]
    return gaps


def has_missing_outside(
    connection: Connection, topic_id: str, checked: Mapping[int, tuple[int, int]], begins: Mapping[int, int]
) -> bool:
    """Whether offsets outside of a check are recorded as missing.

    Args:
        connection: A connection to the operational database.
        topic_id: The landing table's topic id.
        checked: {partition: (start, end) of the offsets that were checked}.
        begins: {partition: where the table begins}. Offsets below it were removed on purpose and are not missing.
    """
    column = landing_gaps.c
    inside = (
        and_(
            column.partition == partition,
            or_(
                column.end_offset <= begins.get(partition, 0),
                and_(column.start_offset >= start, column.end_offset <= end),
            ),
        )
        for partition, (start, end) in checked.items()
    )
    conditions = (column.topic_id == topic_id, column.state == State.missing, not_(or_(false(), *inside)))
    return connection.execute(select(column.id).where(*conditions).limit(1)).first() is not None


def record_outcome(topic: str, topic_id: str, partition: int, state: State, ranges: Ranges, records: int = 0) -> None:
    """Record the outcome of missing offsets. Repeating the call changes nothing.

    The ranges are added to the last row of the same state, as long as it then has at most MAX_RANGES ranges.

    Args:
        topic: The topic's name.
        topic_id: The landing table's topic id.
        partition: The Kafka partition.
        state: The outcome.
        ranges: The offsets.
        records: How many records the repair appended.
    """
    if not ranges:
        return
    with begin() as connection:
        lock(connection, topic_id)
        same = (
            landing_gaps.c.topic_id == topic_id,
            landing_gaps.c.partition == partition,
            landing_gaps.c.state == state,
        )
        # Rows that overlap or touch the ranges.
        adjacent = (landing_gaps.c.end_offset >= ranges[0][0], landing_gaps.c.start_offset <= ranges[-1][1])
        rows = connection.execute(select(landing_gaps).where(*same, *adjacent)).all()
        new = intervals.subtract(ranges, intervals.union(part for row in rows for part in _ranges_of(row)))
        if not new:
            return
        ordered = select(landing_gaps).where(*same).order_by(landing_gaps.c.end_offset.desc(), landing_gaps.c.id.desc())
        last = connection.execute(ordered.limit(1)).first()
        joined = _ranges_of(last) if last is not None else []
        if last is None or len(joined) + len(new) > MAX_RANGES:
            values = {"topic": topic, "topic_id": topic_id, "partition": partition, "state": state, "records": records}
            _add(connection, new, **values)
        else:
            values = {"records": landing_gaps.c.records + records, **_columns_of(intervals.union([*joined, *new]))}
            connection.execute(update(landing_gaps).where(landing_gaps.c.id == last.id).values(values))


def delete_outcome(connection: Connection, topic_id: str, partition: int, state: State, ranges: Ranges) -> Ranges:
    """Delete the recorded outcome of offsets that have landed after all.

    Args:
        connection: A connection to the operational database, in a transaction.
        topic_id: The landing table's topic id.
        partition: The Kafka partition.
        state: The recorded outcome.
        ranges: The offsets, as `intervals.union` returns them.

    Returns:
        The offsets whose record was deleted; of two calls at once, the second returns none.
    """
    lock(connection, topic_id)
    of_state = (landing_gaps.c.topic_id == topic_id, landing_gaps.c.state == state)
    reach = _reach({partition: ranges[0][0]}, {partition: ranges[-1][1]})
    gone: list[tuple[int, int]] = []
    for row in connection.execute(select(landing_gaps).where(*of_state, reach)).all():
        of_row, is_row = _ranges_of(row), landing_gaps.c.id == row.id
        gone += intervals.intersect(of_row, ranges)
        if left := intervals.subtract(of_row, ranges):
            connection.execute(update(landing_gaps).where(is_row).values(_columns_of(left)))
        else:
            connection.execute(delete(landing_gaps).where(is_row))
    return intervals.union(gone)


def _add(connection: Connection, ranges: Ranges, age: timedelta = timedelta(), **values: Any) -> None:
    """Insert rows for the ranges, with this age; `records` is stored in the first row."""
    parts = [ranges[first : first + MAX_RANGES] for first in range(0, len(ranges), MAX_RANGES)]
    rows = [{**values, **_columns_of(part)} for part in parts]
    if "records" in values:
        rows[1:] = [{**row, "records": 0} for row in rows[1:]]
    if rows:
        connection.execute(insert(landing_gaps).values(found_at=func.now() - age), rows)


def _columns_of(ranges: Ranges) -> dict[str, Any]:
    whole = len(ranges) == 1
    many = None if whole else MultiRange(Range(start, end, bounds="[)") for start, end in ranges)
    return {"start_offset": ranges[0][0], "end_offset": ranges[-1][1], "ranges": many}


class Recorded(NamedTuple):
    """One recorded range of offsets.

    `records` is the count of the whole database row: set on the row's first range, 0 on its other ranges.
    """

    partition: int
    start_offset: int
    end_offset: int
    state: str
    records: int


def history(topic_id: str, states: Iterable[State] = tuple(State)) -> list[Recorded]:
    """The topic's recorded gaps, oldest row first; adjacent ranges of a row are one gap.

    Args:
        topic_id: The landing table's topic id.
        states: Only gaps in these states.
    """
    with begin() as connection:
        query = select(landing_gaps).where(landing_gaps.c.topic_id == topic_id, landing_gaps.c.state.in_(list(states)))
        rows = connection.execute(query.order_by(landing_gaps.c.id)).all()
    return [
        Recorded(row.partition, start, end, row.state, 0 if number else row.records)
        for row in rows
        for number, (start, end) in enumerate(_ranges_of(row))
    ]


def missing_offsets(connection: Connection) -> dict[tuple[str, str], int]:
    """Count the missing offsets of all landing tables.

    Args:
        connection: A connection to the operational database.

    Returns:
        {(topic, topic id): number of offsets}; only topics with missing offsets.
    """
    # A row may hold many ranges.
    query = text("""
        select topic, topic_id, sum(coalesce(
            (select sum(upper(part) - lower(part)) from unnest(ranges) as part), end_offset - start_offset))
        from landing_gaps where state = 'missing' group by topic, topic_id
    """)
    return {(topic, topic_id): int(number) for topic, topic_id, number in connection.execute(query)}


def lock(connection: Connection, topic_id: str) -> None:
    """Wait for every other process that records gaps of this topic; the lock lasts until the transaction ends."""
    connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"gaps {topic_id}"})
