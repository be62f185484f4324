"""The gaps of a landing table (offsets that it lacks) and their outcomes, recorded in the operational database.

A gap is first *missing*: the record says since when. If the offsets land later, its row is deleted. Otherwise it ends
as *repaired* (read from Kafka and appended), *no_record* (the log holds no record there: transaction markers, aborted
messages, compaction) or *lost* (retention had removed the offsets). From then on *no_record* and *lost* count as
landed: claims go past them. These rows stay as long as the table, because Kafka cannot be asked again.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Identity,
    Index,
    Row,
    String,
    Table,
    Text,
    and_,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, MultiRange, Range

from include.kafka.offsets import OffsetRange
from include.landing import intervals
from include.landing.intervals import Ranges
from include.operations.database import WHOLE_TASK, begin
from include.operations.tables import metadata, now_column

log = logging.getLogger(__name__)


class State(StrEnum):
    """The outcome of offsets that a landing table does not hold."""

    missing = "missing"
    repaired = "repaired"
    no_record = "no_record"
    lost = "lost"


# Offsets with these outcomes need no row in the landing table.
SETTLED = (State.no_record, State.lost)
# Ranges in one row, of some 16 bytes each.
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
    # Which ranges of [start_offset, end_offset) the row means; null: all of it. Each transaction of a producer leaves a
    # hole. With one row per hole, this table would soon be larger than the rest of the database.
    Column("ranges", INT8MULTIRANGE),
    now_column("found_at"),
    CheckConstraint("start_offset < end_offset", name="ordered"),
    CheckConstraint("state in ('missing', 'repaired', 'no_record', 'lost')", name="state"),
    Index("ix_landing_gaps_offsets", "topic_id", "partition", "end_offset"),
    Index("ix_landing_gaps_missing", "topic_id", "found_at", postgresql_where=text("state = 'missing'")),
)


@dataclass(frozen=True)
class Gap:
    """Missing offsets, and for how long they have been known to be missing."""

    offsets: OffsetRange
    age: timedelta


def settled(connection: Connection, topic_id: str, starts: Mapping[int, int]) -> dict[int, Ranges]:
    """The offsets that need no row in the landing table, because they hold no record or are lost.

    Args:
        connection: A connection to the operational database.
        topic_id: The landing table's topic id.
        starts: {partition: the offset from which on to look}.

    Returns:
        {partition: offsets}, without partitions that have none.
    """
    # The index keeps rows before the starts from being loaded: these rows stay forever.
    reach = [
        and_(landing_gaps.c.partition == partition, landing_gaps.c.end_offset > start)
        for partition, start in starts.items()
    ]
    mine = (landing_gaps.c.topic_id == topic_id, landing_gaps.c.state.in_(SETTLED))
    found: dict[int, list[tuple[int, int]]] = {}
    for row in connection.execute(select(landing_gaps).where(*mine, or_(false(), *reach))):
        start = starts[row.partition]
        found.setdefault(row.partition, []).extend(part for part in _ranges_of(row) if part[1] > start)
    return {partition: intervals.union(ranges) for partition, ranges in found.items()}


def _ranges_of(row: Row) -> Ranges:
    if row.ranges is None:
        return [(row.start_offset, row.end_offset)]
    return [(part.lower, part.upper) for part in row.ranges]


def note(
    connection: Connection, topic: str, topic_id: str, missing: Mapping[int, Ranges], looked_from: Mapping[int, int]
) -> list[Gap]:
    """Record which offsets are missing now, and delete the gaps that have landed in the meantime.

    Calls are serialized by a lock: two at once would record a gap twice.

    Args:
        connection: A connection to the operational database, in a transaction.
        topic: The topic's name.
        topic_id: The landing table's topic id.
        missing: {partition: the offsets that are missing now}.
        looked_from: {partition: the first offset that was checked}. Gaps before it stay as they are.

    Returns:
        The missing offsets with their age.
    """
    lock(connection, topic_id)
    mine = (landing_gaps.c.topic_id == topic_id, landing_gaps.c.state == State.missing)
    age = (func.now() - landing_gaps.c.found_at).label("age")
    known: dict[int, list] = {}
    for row in connection.execute(select(landing_gaps, age).where(*mine).order_by(landing_gaps.c.found_at)).all():
        now = intervals.intersect([(row.start_offset, row.end_offset)], missing.get(row.partition, []))
        if now:
            known.setdefault(row.partition, []).append((now, row.age))
        elif row.start_offset >= looked_from.get(row.partition, row.end_offset):
            connection.execute(delete(landing_gaps).where(landing_gaps.c.id == row.id))
            log.info(
                "landed after all: topic=%s partition=%d offsets=[%d, %d)",
                topic, row.partition, row.start_offset, row.end_offset,
            )  # fmt: skip
    gaps: list[Gap] = []
    for partition, ranges in sorted(missing.items()):
        left = ranges
        for now, age_of_row in known.get(partition, ()):
            mine_now = intervals.intersect(left, now)
            left = intervals.subtract(left, mine_now)
            gaps += [Gap(OffsetRange(topic, topic_id, partition, *r), age_of_row) for r in mine_now]
        if left:
            values = {"topic": topic, "topic_id": topic_id, "partition": partition, "state": State.missing}
            new = [{**values, "start_offset": start, "end_offset": end} for start, end in left]
            connection.execute(insert(landing_gaps), new)
        gaps += [Gap(OffsetRange(topic, topic_id, partition, *r), timedelta()) for r in left]
    return gaps


def record(topic: str, topic_id: str, partition: int, state: State, ranges: Ranges, records: int = 0) -> None:
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
        # Rows that end before the first range cannot contain any of the ranges. The last row is read too, because the
        # ranges may be added to it.
        last = select(func.max(landing_gaps.c.end_offset)).where(*same).scalar_subquery()
        from_here = landing_gaps.c.end_offset >= func.least(ranges[0][0], last)
        rows = connection.execute(select(landing_gaps).where(*same, from_here).order_by(landing_gaps.c.id)).all()
        new = intervals.subtract(ranges, intervals.union(part for row in rows for part in _ranges_of(row)))
        if not new:
            return
        joined = _ranges_of(rows[-1]) if rows else []
        if not joined or len(joined) + len(new) > MAX_RANGES:
            values = {"topic": topic, "topic_id": topic_id, "partition": partition, "state": state, "records": records}
            connection.execute(insert(landing_gaps).values(**values, **_columns_of(new)))
        else:
            values = {"records": landing_gaps.c.records + records, **_columns_of(intervals.union([*joined, *new]))}
            connection.execute(update(landing_gaps).where(landing_gaps.c.id == rows[-1].id).values(values))


def _columns_of(ranges: Ranges) -> dict[str, Any]:
    whole = len(ranges) == 1
    many = None if whole else MultiRange(Range(start, end, bounds="[)") for start, end in ranges)
    return {"start_offset": ranges[0][0], "end_offset": ranges[-1][1], "ranges": many}


class Recorded(NamedTuple):
    """One recorded range of offsets.

    `records` counts all ranges of the database row; it is set on the row's first range and 0 on the others.
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
        found = select(landing_gaps).where(landing_gaps.c.topic_id == topic_id, landing_gaps.c.state.in_(list(states)))
        rows = connection.execute(found.order_by(landing_gaps.c.id)).all()
    return [
        Recorded(row.partition, start, end, row.state, 0 if number else row.records)
        for row in rows
        for number, (start, end) in enumerate(_ranges_of(row))
    ]


def lock(connection: Connection, topic_id: str) -> None:
    """Wait for every other process that records gaps of this topic; the lock lasts until the transaction ends."""
    connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"gaps {topic_id}"})


@contextmanager
def repairing(topic_id: str) -> Iterator[None]:
    """Wait for every other process that repairs this topic's landing table.

    The transaction stays open during the whole repair. It holds no snapshot between statements, so vacuum is not
    blocked. The lock only saves work: it is lost when its connection breaks, while its holder may still run. The commit
    is what prevents appending a record twice (`repair.py`).
    """
    with begin(patience=WHOLE_TASK) as connection:
        name = {"name": f"repair {topic_id}"}
        connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), name)
        yield
