"""Ranges whose effects keep failing: they leave their run, and the Dag `maintain` tries them again.

A run that waits for a retry counts towards `max_active_runs`. If it waited for all of its retries, a few messages that
always fail would stop their consumer for hours: no run could claim the messages behind them.

One run per message: `maintain` emits the key of such a message again, because its run has ended.

If the task is killed before the ranges are recorded, Airflow retries it. If it is killed afterwards, Airflow retries it
as well, and each effect still happens once, because of the inbox.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, case, delete, func, not_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from include.streams.kafka.offsets import OffsetRange
from include.streams.operations.database import begin
from include.streams.operations.tables import Outcome, claim_ranges, claims, inbox, postponed_ranges

# While the effects of other messages succeed, the failing messages are the reason. They stay in their run for this
# long: a deadlock or a restart of a service is over by then.
OTHERS_SUCCEED = timedelta(minutes=1)
# While none succeeds, their common service may be away. Runs that wait for it also keep the consumer from claiming more
# messages, which would fail too.
NONE_SUCCEEDS = timedelta(minutes=30)
# So many failing ranges, and no message handled meanwhile, keep the consumer from claiming more.
MAX_FAILING = 16
# Between two tries of the Dag: doubled each time.
FIRST_WAIT, LAST_WAIT = timedelta(minutes=2), timedelta(minutes=30)
# The `tries` of a range whose effects have failed and whose run still retries; `due_at` is when its first try began.
IN_ITS_RUN = -1


class Postponed(NamedTuple):
    """A range that is to be tried again, with its consumer, its claim and the claim's run."""

    consumer: str
    claim_id: int
    run_id: str
    offsets: OffsetRange


def should_leave(consumer: str, claim_id: int, failing: Sequence[OffsetRange], *, tried: timedelta) -> bool:
    """Whether ranges whose effects fail should leave their run now; never after their first failure.

    The time counts from their first try, not from the claim: with one run per message, many messages wait in Airflow's
    queue until others of their claim have long succeeded, and one deadlock would end their runs without a retry.

    Args:
        consumer: The consumer's name.
        claim_id: The claim.
        failing: The ranges, with the same bounds in each try.
        tried: How long ago this try began.
    """
    keys = [_key(claim_id, part) for part in failing]
    known = [{**key, "tries": IN_ITS_RUN, "due_at": func.now() - tried} for key in keys]
    these = tuple_(*postponed_ranges.primary_key.columns).in_([tuple(key.values()) for key in keys])
    first_try = select(func.min(postponed_ranges.c.due_at)).where(these, postponed_ranges.c.tries == IN_ITS_RUN)
    since = func.greatest(claims.c.claimed_at, first_try.scalar_subquery())
    mine = select(since.label("since"), (func.now() - since).label("age")).where(claims.c.id == claim_id)
    with begin() as connection:
        if connection.execute(select(claims.c.id).where(claims.c.id == claim_id)).first() is None:
            return False
        noted = insert(postponed_ranges).values(known).on_conflict_do_nothing()
        if len(connection.execute(noted.returning(postponed_ranges.c.start_offset)).all()) == len(known):
            return False
        claim = connection.execute(mine).one()
        if claim.age < OTHERS_SUCCEED:
            return False
        others = select(inbox.c.offset).where(
            inbox.c.recorded_at > claim.since, inbox.c.consumer == consumer, inbox.c.outcome == Outcome.handled
        )
        return claim.age >= NONE_SUCCEEDS or connection.execute(others.limit(1)).first() is not None


def all_fail(consumer: str, claim_id: int, failing: Sequence[OffsetRange], messages: int) -> bool:
    """Whether the effects of all messages of the consumer fail now, so that it is not due to one odd message.

    Args:
        consumer: The consumer's name.
        claim_id: The claim.
        failing: The ranges of the claim whose effects fail; none of their messages was handled.
        messages: How many messages have failed in them.
    """
    handled = select(inbox.c.offset).where(inbox.c.consumer == consumer, inbox.c.outcome == Outcome.handled).limit(1)
    key = postponed_ranges.primary_key.columns
    these = tuple_(*key).in_([tuple(_key(claim_id, part).values()) for part in failing])
    # When the last other range has failed.
    failed_at = case(
        (postponed_ranges.c.tries == IN_ITS_RUN, postponed_ranges.c.due_at),
        else_=postponed_ranges.c.due_at - _wait(postponed_ranges.c.tries),
    )
    others = select(func.max(failed_at)).join(claims, claims.c.id == postponed_ranges.c.claim_id)
    others = others.where(claims.c.consumer == consumer, claims.c.closed_at.is_(None), not_(these))
    with begin() as connection:
        if connection.execute(handled).first() is None:
            return True
        if messages > 1:
            since = connection.scalar(select(claims.c.claimed_at).where(claims.c.id == claim_id))
        else:
            since = connection.scalar(others)
        return since is not None and connection.execute(handled.where(inbox.c.recorded_at > since)).first() is None


def holds_back(connection: Connection, consumer: str) -> bool:
    """Whether the consumer should claim nothing now, because further messages would fail too.

    Ranges that fail at once leave their runs at once, and no longer keep the consumer from claiming. Without this, an
    effect that always fails would take the whole topic apart, and its messages would be handled out of order later.
    After NONE_SUCCEEDS, new messages are tried again.

    Args:
        connection: A connection in the transaction of the claim.
        consumer: The consumer's name.
    """
    failing = (
        select(func.count(), func.min(claims.c.claimed_at))
        .join(claims, claims.c.id == postponed_ranges.c.claim_id)
        .where(claims.c.consumer == consumer, claims.c.closed_at.is_(None))
        .where(claims.c.claimed_at > func.now() - NONE_SUCCEEDS, postponed_ranges.c.tries != IN_ITS_RUN)
    )
    number, since = connection.execute(failing).one()
    if number < MAX_FAILING:
        return False
    handled = select(inbox.c.offset).where(
        inbox.c.recorded_at > since, inbox.c.consumer == consumer, inbox.c.outcome == Outcome.handled
    )
    return connection.execute(handled.limit(1)).first() is None


def postpone(claim_id: int, ranges: Sequence[OffsetRange]) -> None:
    """Record ranges that the Dag `maintain` is to try again, after a wait that doubles with each of its tries.

    Args:
        claim_id: The claim.
        ranges: Ranges of the claim.
    """
    rows = [{**_key(claim_id, part), "due_at": func.now() + FIRST_WAIT} for part in ranges]
    record = insert(postponed_ranges).values(rows)
    tries = func.greatest(postponed_ranges.c.tries, 0)
    record = record.on_conflict_do_update(
        constraint=postponed_ranges.primary_key, set_={"tries": tries, "due_at": func.now() + _wait(tries)}
    )
    with begin() as connection:
        connection.execute(record)


def take(consumers: Collection[str], *, unless_heard: timedelta | None = None) -> Postponed | None:
    """The range of these consumers that has been due for longest; None if none is due.

    It is due again only after its next wait, also if the caller is killed: one range that always takes long must not
    keep the others from their turns.

    Args:
        consumers: The names of consumers.
        unless_heard: When it is due again if nothing is heard of this try; None for its next wait.
    """
    of_claim = claims.c.id == postponed_ranges.c.claim_id
    key = postponed_ranges.primary_key.columns
    due = (
        select(*key)
        .join(claims, of_claim)
        .where(claims.c.consumer.in_(consumers), claims.c.closed_at.is_(None))
        .where(postponed_ranges.c.due_at <= func.now(), postponed_ranges.c.tries != IN_ITS_RUN)
        .order_by(postponed_ranges.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=postponed_ranges)
    )
    tries = postponed_ranges.c.tries + 1
    wait = _wait(tries) if unless_heard is None else unless_heard
    with begin() as connection:
        # A run that was cleared, or a reset of the consumer, has settled them.
        connection.execute(delete(postponed_ranges).where(of_claim, claims.c.closed_at.is_not(None)))
        found = connection.execute(due).one_or_none()
        if found is None:
            return None
        this = tuple_(*key) == tuple_(*found)
        connection.execute(update(postponed_ranges).where(this).values(tries=tries, due_at=func.now() + wait))
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


def forget(connection: Connection, claim_id: int, done: OffsetRange) -> None:
    """Forget a range whose messages are handled.

    Args:
        connection: A connection in the transaction that settles the range.
        claim_id: The claim.
        done: The range, with the bounds in which it was tried.
    """
    this = (postponed_ranges.c[name] == value for name, value in _key(claim_id, done).items())
    connection.execute(delete(postponed_ranges).where(*this))


def _wait(tries: ColumnElement[int]) -> ColumnElement[timedelta]:
    return func.least(FIRST_WAIT * func.pow(2, func.least(tries, 16)), LAST_WAIT)


def _key(claim_id: int, part: OffsetRange) -> dict[str, Any]:
    """The primary key of a range's row."""
    return {
        "claim_id": claim_id,
        "topic": part.topic,
        "partition": part.partition,
        "start_offset": part.start,
        "end_offset": part.end,
    }
