"""Offsets that a landing table misses, on record in the operational database, and what became of them.

A gap is first *missing*: seen, and since when. It goes when the offsets land after all. Otherwise it ends as
*repaired* (read from Kafka and appended), *no_record* (the log holds no record there: marks of transactions, aborted
messages, compaction) or *lost* (retention had removed the offsets). The last two count as landed from then on: claims
go past them, and they stay on record as long as the table does, because Kafka cannot be asked again.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Identity,
    Index,
    String,
    Table,
    Text,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    text,
)

from include.kafka.offsets import OffsetRange
from include.landing import intervals
from include.landing.intervals import Ranges
from include.operations.database import begin, engine
from include.operations.tables import metadata, now_column

log = logging.getLogger(__name__)


class State(StrEnum):
    """What became of offsets that a landing table does not hold."""

    missing = "missing"
    repaired = "repaired"
    no_record = "no_record"
    lost = "lost"


# Offsets that need no row in the landing table any more.
SETTLED = (State.no_record, State.lost)

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
    # Records that the repair appended.
    Column("records", BigInteger, server_default="0", nullable=False),
    now_column("found_at"),
    CheckConstraint("start_offset < end_offset", name="ordered"),
    CheckConstraint("state in ('missing', 'repaired', 'no_record', 'lost')", name="state"),
    Index("ix_landing_gaps_offsets", "topic_id", "partition", "end_offset"),
)


@dataclass(frozen=True)
class Gap:
    """Missing offsets, and for how long they have been known to be."""

    offsets: OffsetRange
    age: timedelta


def settled(connection: Connection, topic_id: str, starts: Mapping[int, int]) -> dict[int, Ranges]:
    """{partition: offsets from its start on that hold no record, or are lost}; without one, from 0 on."""
    # By the index: a producer with transactions leaves a hole for each, and they stay on record for ever.
    reach = or_(
        landing_gaps.c.partition.not_in(list(starts)),
        *(
            and_(landing_gaps.c.partition == partition, landing_gaps.c.end_offset > start)
            for partition, start in starts.items()
        ),
    )
    mine = (landing_gaps.c.topic_id == topic_id, landing_gaps.c.state.in_(SETTLED))
    rows = connection.execute(select(landing_gaps).where(*mine, reach))
    found: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        found.setdefault(row.partition, []).append((row.start_offset, row.end_offset))
    return {partition: intervals.union(ranges) for partition, ranges in found.items()}


def note(
    connection: Connection, topic: str, topic_id: str, missing: Mapping[int, Ranges], looked_from: Mapping[int, int]
) -> list[Gap]:
    """Record what is missing now in the partitions looked at, and return it with its age; the rest has landed.

    `looked_from`: from which offset on each partition was looked at; gaps before that are left as they are. One look
    after the other: two at once would record a gap twice.
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
        for start, end in left:
            connection.execute(
                insert(landing_gaps).values(
                    topic=topic,
                    topic_id=topic_id,
                    partition=partition,
                    start_offset=start,
                    end_offset=end,
                    state=State.missing,
                )
            )
            gaps.append(Gap(OffsetRange(topic, topic_id, partition, start, end), timedelta()))
    return gaps


def record(topic: str, topic_id: str, partition: int, state: State, ranges: Ranges, records: int = 0) -> None:
    """Record what became of missing offsets. To repeat it changes nothing."""
    with begin() as connection:
        lock(connection, topic_id)
        same = (
            landing_gaps.c.topic_id == topic_id,
            landing_gaps.c.partition == partition,
            landing_gaps.c.state == state,
        )
        rows = connection.execute(select(landing_gaps.c.start_offset, landing_gaps.c.end_offset).where(*same))
        new = intervals.subtract(ranges, intervals.union((row.start_offset, row.end_offset) for row in rows))
        if new:
            values = {"topic": topic, "topic_id": topic_id, "partition": partition, "state": state}
            connection.execute(
                insert(landing_gaps),
                # The number of records stands beside the first of the ranges.
                [
                    {**values, "start_offset": start, "end_offset": end, "records": 0 if number else records}
                    for number, (start, end) in enumerate(new)
                ],
            )


def history(topic_id: str, states: Iterable[State] = tuple(State)) -> list:
    """The topic's gaps, oldest first."""
    with begin() as connection:
        found = select(landing_gaps).where(landing_gaps.c.topic_id == topic_id, landing_gaps.c.state.in_(list(states)))
        return list(connection.execute(found.order_by(landing_gaps.c.id)))


def lock(connection: Connection, topic_id: str) -> None:
    """Wait for everybody else who records gaps of this topic, until the transaction ends."""
    connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"gaps {topic_id}"})


@contextmanager
def repairing(topic_id: str) -> Iterator[None]:
    """Wait for everybody else who repairs this topic's landing table.

    The lock spares work; what keeps a record from being appended twice is the commit (`repair.py`), because a lock goes
    when its connection breaks and its holder may still run.
    """
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = {"name": f"repair {topic_id}"}
        connection.execute(text("select pg_advisory_lock(hashtextextended(:name, 0))"), name)
        try:
            yield
        finally:
            connection.execute(text("select pg_advisory_unlock(hashtextextended(:name, 0))"), name)
