"""Ranges whose effects keep failing: they leave their run, and the Dag `maintain` tries them again.

A run that waits for a retry counts towards `max_active_runs`. If it waited for all of its retries, a few messages that
always fail would stop their consumer for hours: no run could claim the messages behind them.

If the task is killed before the ranges are recorded, Airflow retries it. If it is killed afterwards, Airflow retries it
as well, and each effect still happens once, because of the inbox.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from include.kafka.offsets import OffsetRange
from include.operations.database import begin
from include.operations.tables import Outcome, claim_ranges, claims, inbox, postponed_ranges

# While the effects of other messages succeed, the failing messages are the reason. They stay in their run for this
# long: a deadlock or a restart of a service is over by then.
OTHERS_SUCCEED = timedelta(minutes=1)
# While none succeeds, their common service may be away. Runs that wait for it also keep the consumer from claiming more
# messages, which would fail too.
NONE_SUCCEEDS = timedelta(minutes=30)
# Between two tries of the Dag: doubled each time.
FIRST_WAIT, LAST_WAIT = timedelta(minutes=2), timedelta(minutes=30)


class Postponed(NamedTuple):
    """A range that is to be tried again, with its consumer, its claim and the claim's run."""

    consumer: str
    claim_id: int
    run_id: str
    offsets: OffsetRange


def should_leave(consumer: str, claim_id: int) -> bool:
    """Whether messages of this claim whose effects fail should leave their run now.

    Args:
        consumer: The consumer's name.
        claim_id: The claim.
    """
    mine = select(claims.c.claimed_at, (func.now() - claims.c.claimed_at).label("age")).where(claims.c.id == claim_id)
    with begin() as connection:
        claim = connection.execute(mine).one_or_none()
        if claim is None or claim.age < OTHERS_SUCCEED:
            return False
        others = select(inbox.c.offset).where(
            inbox.c.recorded_at > claim.claimed_at, inbox.c.consumer == consumer, inbox.c.outcome == Outcome.handled
        )
        return claim.age >= NONE_SUCCEEDS or connection.execute(others.limit(1)).first() is not None


def postpone(claim_id: int, ranges: Sequence[OffsetRange]) -> None:
    """Record ranges that the Dag `maintain` is to try again; those that are on record already keep their time.

    Args:
        claim_id: The claim.
        ranges: Ranges of the claim.
    """
    rows = [{**_key(claim_id, part), "due_at": func.now() + FIRST_WAIT} for part in ranges]
    with begin() as connection:
        connection.execute(insert(postponed_ranges).values(rows).on_conflict_do_nothing())


def take(consumers: Collection[str]) -> Postponed | None:
    """The range of these consumers that has been due for longest; None if none is due.

    It is due again only after its next wait, also if the caller is killed: one range that always takes long must not
    keep the others from their turns.

    Args:
        consumers: The names of consumers.
    """
    of_claim = claims.c.id == postponed_ranges.c.claim_id
    key = postponed_ranges.primary_key.columns
    due = (
        select(*key)
        .join(claims, of_claim)
        .where(claims.c.consumer.in_(consumers), claims.c.closed_at.is_(None), postponed_ranges.c.due_at <= func.now())
        .order_by(postponed_ranges.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=postponed_ranges)
    )
    doublings = func.least(postponed_ranges.c.tries + 1, 16)
    wait = func.least(FIRST_WAIT * func.pow(2, doublings), LAST_WAIT)
    with begin() as connection:
        # A run that was cleared, or a reset of the consumer, has settled them.
        connection.execute(delete(postponed_ranges).where(of_claim, claims.c.closed_at.is_not(None)))
        found = connection.execute(due).one_or_none()
        if found is None:
            return None
        this = tuple_(*key) == tuple_(*found)
        connection.execute(
            update(postponed_ranges).where(this).values(tries=postponed_ranges.c.tries + 1, due_at=func.now() + wait)
        )
        claim = connection.execute(
            select(claims.c.consumer, claims.c.run_id, claim_ranges.c.topic_id)
            .join(claim_ranges, claim_ranges.c.claim_id == claims.c.id)
            .where(
                claims.c.id == found.claim_id,
                claim_ranges.c.topic == found.topic,
                claim_ranges.c.partition == found.partition,
            )
        ).one()
    offsets = OffsetRange(found.topic, claim.topic_id, found.partition, found.start_offset, found.end_offset)
    return Postponed(claim.consumer, found.claim_id, claim.run_id, offsets)


def remove(done: Postponed) -> None:
    """Forget a range whose messages are handled."""
    mine = _key(done.claim_id, done.offsets)
    with begin() as connection:
        connection.execute(
            delete(postponed_ranges).where(*(postponed_ranges.c[name] == value for name, value in mine.items()))
        )


def _key(claim_id: int, part: OffsetRange) -> dict[str, Any]:
    """The primary key of a range's row."""
    return {
        "claim_id": claim_id,
        "topic": part.topic,
        "partition": part.partition,
        "start_offset": part.start,
        "end_offset": part.end,
    }
