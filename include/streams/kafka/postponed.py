"""Postponed ranges: ranges whose effects keep failing leave their run, and the Dag `maintain` tries them again.

A run that waits for a retry counts towards `max_active_runs`. If it waited for all of its retries, a few messages that
always fail would stop their consumer for hours: no run could claim the messages after them.

With one run per message, `maintain` emits the key of such a message again, because its run has ended.

If the task is killed before or after it records the ranges, Airflow retries it. Each effect still happens once, because
of the inbox.
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
# While no effect succeeds, their common service may be unavailable. The failing messages stay in their run for this
# long: runs that wait also prevent the consumer from claiming more messages, which would fail too.
NONE_SUCCEEDS = timedelta(minutes=30)
# After so many failing ranges with no message handled meanwhile, the consumer claims nothing.
MAX_FAILING = 16
# The first and the longest wait between two tries of the Dag; the wait doubles each time.
FIRST_WAIT, LAST_WAIT = timedelta(minutes=2), timedelta(minutes=30)
# The value of `tries` for a range whose effects have failed and whose run still retries. Then `due_at` is the start of
# its first try.
IN_ITS_RUN = -1


class Postponed(NamedTuple):
    """A range to try again, with its consumer, its claim and the claim's run."""

    consumer: str
    claim_id: int
    run_id: str
    offsets: OffsetRange


def should_postpone(consumer: str, claim_id: int, failing: Sequence[OffsetRange], *, tried: timedelta) -> bool:
    """Whether ranges whose effects fail should leave their run now. They never do at their first failure.

    The time counts from their first try, not from the claim. With one run per message, many messages wait in Airflow's
    queue, and other messages of their claim succeed meanwhile. If the time counted from the claim, one deadlock would
    end the run of such a message without a retry.

    Args:
        consumer: The consumer's name.
        claim_id: The claim.
        failing: The ranges, with the same bounds in each try.
        tried: How long ago this try began.
    """
    keys = [_key(claim_id, part) for part in failing]
    rows = [{**key, "tries": IN_ITS_RUN, "due_at": func.now() - tried} for key in keys]
    is_failing = tuple_(*postponed_ranges.primary_key.columns).in_([tuple(key.values()) for key in keys])
    first_try = select(func.min(postponed_ranges.c.due_at)).where(is_failing, postponed_ranges.c.tries == IN_ITS_RUN)
    since = func.greatest(claims.c.claimed_at, first_try.scalar_subquery())
    time_failing = select(since.label("since"), (func.now() - since).label("age")).where(claims.c.id == claim_id)
    with begin() as connection:
        if connection.execute(select(claims.c.id).where(claims.c.id == claim_id)).first() is None:
            return False
        record = insert(postponed_ranges).values(rows).on_conflict_do_nothing()
        new = connection.execute(record.returning(postponed_ranges.c.start_offset)).all()
        if len(new) == len(rows):
            # The first failure of all these ranges.
            return False
        failing_since, age = connection.execute(time_failing).one()
        if age < OTHERS_SUCCEED:
            return False
        others = select(inbox.c.offset).where(
            inbox.c.recorded_at > failing_since, inbox.c.consumer == consumer, inbox.c.outcome == Outcome.handled
        )
        return age >= NONE_SUCCEEDS or connection.execute(others.limit(1)).first() is not None


def all_fail(consumer: str, claim_id: int, failing: Sequence[OffsetRange], messages: int) -> bool:
    """Whether the effects of all messages of the consumer fail now, so that the cause is not one odd message.

    Args:
        consumer: The consumer's name.
        claim_id: The claim.
        failing: The ranges of the claim whose effects fail; none of their messages was handled.
        messages: The number of messages in them that have failed.
    """
    handled = select(inbox.c.offset).where(inbox.c.consumer == consumer, inbox.c.outcome == Outcome.handled).limit(1)
    key = postponed_ranges.primary_key.columns
    is_failing = tuple_(*key).in_([tuple(_key(claim_id, part).values()) for part in failing])
    # When the last other range has failed.
    failed_at = case(
        (postponed_ranges.c.tries == IN_ITS_RUN, postponed_ranges.c.due_at),
        else_=postponed_ranges.c.due_at - _wait(postponed_ranges.c.tries),
    )
    others = select(func.max(failed_at)).join(claims, claims.c.id == postponed_ranges.c.claim_id)
    others = others.where(claims.c.consumer == consumer, claims.c.closed_at.is_(None), not_(is_failing))
    with begin() as connection:
        if connection.execute(handled).first() is None:
            return True
        if messages > 1:
            since = connection.scalar(select(claims.c.claimed_at).where(claims.c.id == claim_id))
        else:
            since = connection.scalar(others)
        return since is not None and connection.execute(handled.where(inbox.c.recorded_at > since)).first() is None


def blocks_claims(connection: Connection, consumer: str) -> bool:
    """Whether the consumer should claim nothing now, because further messages would fail too.

    Ranges that fail with a programming error leave their runs at once, so no waiting run prevents further claims.
    Without this check, an effect that always fails would postpone the whole topic range by range, and its messages
    would be handled out of order later. After NONE_SUCCEEDS, new messages are claimed again.

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
    """Record ranges that the Dag `maintain` will try again, after a wait that doubles with each of its tries.

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


def take_due(consumers: Collection[str], *, due_again_after: timedelta | None = None) -> Postponed | None:
    """Take the range of these consumers that has been due for longest.

    The range is due again only after its next wait, even if the caller is killed. Otherwise one range that always takes
    long would prevent tries of the others.

    Args:
        consumers: The names of consumers.
        due_again_after: After how long the range is due again if this try records no result; None for its next wait.

    Returns:
        The range; None if no range is due.
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
    wait = _wait(tries) if due_again_after is None else due_again_after
    with begin() as connection:
        # The ranges of closed claims: a cleared run, or a reset of the consumer, has settled them.
        connection.execute(delete(postponed_ranges).where(of_claim, claims.c.closed_at.is_not(None)))
        row = connection.execute(due).one_or_none()
        if row is None:
            return None
        is_row = tuple_(*key) == tuple_(*row)
        connection.execute(update(postponed_ranges).where(is_row).values(tries=tries, due_at=func.now() + wait))
        claim = connection.execute(
            select(claims.c.consumer, claims.c.run_id, claim_ranges.c.topic_id)
            .join(claim_ranges, claim_ranges.c.claim_id == claims.c.id)
            .where(
                claims.c.id == row.claim_id,
                claim_ranges.c.topic == row.topic,
                claim_ranges.c.partition == row.partition,
            )
        ).one()
    offsets = OffsetRange(row.topic, claim.topic_id, row.partition, row.start_offset, row.end_offset)
    return Postponed(claim.consumer, row.claim_id, claim.run_id, offsets)


def remove(connection: Connection, claim_id: int, done: OffsetRange) -> None:
    """Delete the row of a range whose messages are handled.

    Args:
        connection: A connection in the transaction that settles the range.
        claim_id: The claim.
        done: The range, with the bounds in which it was tried.
    """
    is_range = (postponed_ranges.c[name] == value for name, value in _key(claim_id, done).items())
    connection.execute(delete(postponed_ranges).where(*is_range))


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
