"""Samples for the Streams page: the lag of consumers, the state of landed topics, and the numbers of outcomes.

The maintenance Dags write them. A check that was killed or has failed leaves a hole in a curve and no wrong number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, literal, select
from sqlalchemy.dialects.postgresql import insert

from include.streams.operations.database import begin
from include.streams.operations.tables import (
    consumer_samples,
    inbox,
    landing_samples,
    outcome_counts,
    outcome_intervals,
)

log = logging.getLogger(__name__)

INTERVAL = timedelta(minutes=15)
# An inbox row has the time at which its transaction began. Rows that become visible later than this are not counted.
SETTLING = timedelta(minutes=5)
# How far back intervals are counted at the first call, and after a pause of the Dag.
COUNTED = timedelta(days=1)
# How long samples and counts are kept.
KEPT = timedelta(days=2)


def record_lag(
    connection: Connection, consumer: str, behind: Mapping[str, int], waiting: Mapping[str, timedelta]
) -> None:
    """Record the lag of a consumer.

    Args:
        connection: A connection in a transaction.
        consumer: The consumer's name.
        behind: {topic: messages that are not claimed}.
        waiting: {topic: how long the oldest of them has waited}.
    """
    rows = [
        {"consumer": consumer, "topic": topic, "lag": lag, "age_seconds": _seconds(waiting.get(topic))}
        for topic, lag in behind.items()
    ]
    if rows:
        connection.execute(insert(consumer_samples).on_conflict_do_nothing(), rows)


def _seconds(age: timedelta | None) -> int | None:
    return None if age is None else round(age.total_seconds())


def record_landing(connection: Connection, topic: str, **columns: Any) -> None:
    """Record the state of a landed topic.

    Args:
        connection: A connection in a transaction.
        topic: The topic's name.
        columns: Columns of `landing_samples` that the check knows.
    """
    connection.execute(insert(landing_samples).values(topic=topic, **columns).on_conflict_do_nothing())


def interval_of(moment: datetime) -> datetime:
    """The start of the interval that holds the moment, in UTC."""
    seconds = int(moment.timestamp() // INTERVAL.total_seconds() * INTERVAL.total_seconds())
    return datetime.fromtimestamp(seconds, UTC)


def count_outcomes(*, seconds: float, now: datetime | None = None) -> int:
    """Count the inbox rows of intervals that have ended and are not counted yet, the latest interval first.

    Each interval is counted in one transaction, together with the row that marks it as counted: killed before the
    commit, the next call counts it; two processes at once count it once.

    Args:
        seconds: No further interval is started after this time.
        now: The present time.

    Returns:
        The number of intervals.
    """
    until = time.monotonic() + seconds
    now = now or datetime.now(UTC)
    last = interval_of(now - SETTLING) - INTERVAL
    with begin() as connection:
        done = set(connection.execute(select(outcome_intervals.c.starts_at)).scalars())
    wanted = [start for n in range(COUNTED // INTERVAL) if (start := last - n * INTERVAL) not in done]
    number = 0
    for start in wanted:
        if time.monotonic() > until:
            break
        with begin() as connection:
            number += _count(connection, start)
    log.info("counted: intervals=%d left=%d", number, len(wanted) - number)
    return number


def _count(connection: Connection, start: datetime) -> bool:
    mark = insert(outcome_intervals).values(starts_at=start).on_conflict_do_nothing()
    is_new = connection.execute(mark.returning(outcome_intervals.c.starts_at)).first() is not None
    if is_new:
        columns = (inbox.c.consumer, inbox.c.topic, inbox.c.outcome, func.coalesce(inbox.c.reason, ""))
        counted = (
            select(literal(start, outcome_counts.c.starts_at.type), *columns, func.count())
            .where(inbox.c.recorded_at >= start, inbox.c.recorded_at < start + INTERVAL)
            .group_by(*columns)
        )
        names = ["starts_at", "consumer", "topic", "outcome", "reason", "messages"]
        connection.execute(insert(outcome_counts).from_select(names, counted).on_conflict_do_nothing())
    return is_new
