"""Deliver the rows of the outbox, each at least once.

The task that wrote rows makes one bounded attempt to deliver them after its commit. The Dag `deliver_outbox` delivers
all other rows. The rows of one consumer to one destination are a route. A route with an unavailable receiver backs off,
1 s doubling to 60 s, and does not affect other routes. If a receiver refuses a row, or answers other rows but not this
one, only this row backs off. If a partition of a topic is unavailable, only its records wait; records for the topic's
other partitions are delivered.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Uuid,
    any_,
    case,
    delete,
    func,
    literal,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql

from include.streams.compat.connections import LookUpFailed
from include.streams.operations import metrics
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.operations.outbox import Route
from include.streams.operations.tables import alarms, outbox, outbox_routes

log = logging.getLogger(__name__)

# A row that was refused this often is kept as failed: its 19 delays of 5 s doubling to 30 min are nearly six hours in
# total. An attempt without an answer counts only if the receiver answers other rows in the same turn, or has answered
# since the previous attempt. Otherwise an outage would use up all attempts.
MAX_ATTEMPTS = 20
REFUSED_FIRST_SECONDS, REFUSED_LAST_SECONDS = 5, 1_800
# Between two attempts on a route with an unavailable receiver.
AWAY_FIRST_SECONDS, AWAY_LAST_SECONDS = 1, 60
# Rows of one route that are in memory at once. Held dead letters may have 1 MB each, and several routes are delivered
# at the same time.
MAX_BYTES = 4_000_000
# A request is skipped when its connection was undefined in two checks, at least this far apart: Airflow gives the same
# answer while its database or its secrets backend fails.
UNDEFINED_SECONDS = 60
# How long a task tries to deliver to a topic of which some partitions are known to be unavailable. The records for the
# other partitions are acknowledged within this time. The Dag tries the rest.
PARTLY_AWAY_SECONDS = 2.0
# The wait when another process has locked all due rows of a route. Without it, the Dag would query for these rows
# without a pause.
LOCKED_SECONDS = 1
# A process that leased a route and was killed blocks the route for this long.
LEASE_SECONDS = 60
# The time that a process spends on one route before it looks for other work.
TURN_SECONDS = 20.0
# The alarm opens after this time, so that a receiver that restarts does not open it.
MAX_PENDING = timedelta(hours=1)


class Answer(StrEnum):
    """The answer of a receiver for one row."""

    delivered = "delivered"
    # The receiver refuses this row; it may accept others.
    refused = "refused"
    # No answer, or an answer that asks for a later retry.
    none = "none"


@dataclass
class Attempt:
    """The result of an attempt to deliver rows.

    Attributes:
        answers: {sequence of a row: (answer, error text)}. Rows that are not in it were not tried.
        away: Why the receiver is unavailable. None when it is available, or when too few rows were tried to decide.
    """

    answers: dict[int, tuple[Answer, str]] = field(default_factory=dict)
    away: str | None = None


class Transport(Protocol):
    """The delivery method for rows of one kind."""

    # Rows per transaction: they stay locked during the delivery, and a crash repeats at most this many.
    rows_at_once: int
    # Whether one receiver answers all rows. If so, a row that gets no answer while other rows get one is a bad row. If
    # not (each partition of a topic has its own leader), such a row waits for its partition and never becomes failed.
    is_one_receiver: bool

    def why_skipped(self, destination: str) -> str | None:
        """Why rows for this destination are skipped on purpose; None when they are delivered.

        Raises:
            LookUpFailed: The connection cannot be looked up now; the rows wait.
        """
        ...

    def deliver(self, destination: str, rows: Sequence[Row], until: float) -> Attempt:
        """Try to deliver rows.

        Args:
            destination: A topic's name, or the id of an Airflow HTTP connection.
            rows: Rows of the outbox.
            until: No further row is started after this time of `time.monotonic`.
        """
        ...


def deliver_written(
    written: Mapping[Route, Sequence[UUID]], transports: Mapping[str, Transport], *, seconds: float
) -> None:
    """Make one attempt to deliver rows that the caller's own transactions have written.

    Routes with a receiver that is known to be unavailable are left to the Dag, and their rows become due at once.

    Args:
        written: Ids by route, from `gathered`.
        transports: {kind of a row: its delivery method}.
        seconds: After this time no further row is tried.
    """
    end = time.monotonic() + seconds
    known = _known(written) if written else {}
    left: list[UUID] = []
    for route, ids in written.items():
        route_row = known.get(route)
        if route_row is not None and route_row.failures > 0:
            left += ids
            continue
        transport = transports[route.kind]
        reason, away_now = _why_not(route, transport)
        if reason:
            _skip(route, reason, outbox.c.id == any_(literal(list(ids), ARRAY(Uuid))))
            continue
        if route_row is not None and route_row.undefined_since is not None and away_now is None:
            # The connection is defined now. If the old time stayed, one wrong answer in a later outage would skip
            # requests.
            with begin() as connection:
                forgotten = update(outbox_routes).where(*_is(outbox_routes, route)).values(undefined_since=None)
                connection.execute(forgotten)
        is_partly_away = not transport.is_one_receiver and route_row is not None and route_row.last_error is not None
        until = min(end, time.monotonic() + PARTLY_AWAY_SECONDS) if is_partly_away else end
        for start in range(0, len(ids), transport.rows_at_once):
            if away_now is not None or time.monotonic() >= until:
                break
            batch = list(ids[start : start + transport.rows_at_once])
            turn = _deliver_some(route, transport, outbox.c.id == any_(literal(batch, ARRAY(Uuid))), until)
            away_now = turn.away
            is_partly_away = is_partly_away or (turn.unanswered is not None and not transport.is_one_receiver)
            if turn.is_answered and route_row is not None and route_row.last_error and transport.is_one_receiver:
                with begin() as connection:
                    # Not `retry_at`, which may be the lease of another process.
                    back = update(outbox_routes).where(*_is(outbox_routes, route))
                    connection.execute(back.values(failures=0, last_error=None))
        if away_now is not None or is_partly_away:
            left += ids
        if away_now is not None:
            with begin() as connection:
                _note_away(connection, route, away_now, only_if_unknown=True)
    if left:
        # Due now: otherwise the rows would wait for WRITER_SECONDS, even if the receiver is back within a second.
        with begin() as connection:
            untried = (outbox.c.state == "pending", outbox.c.last_error.is_(None))
            are_left = outbox.c.id == any_(literal(left, ARRAY(Uuid)))
            connection.execute(update(outbox).where(are_left, *untried).values(due_at=func.now()))


# Skips from route to route through the index, so the cost grows with the number of routes, not of rows.
_PENDING_ROUTES = """
with recursive found (consumer, kind, destination, due_at) as (
    (select consumer, kind, destination, due_at from outbox where state = 'pending'
     order by consumer, kind, destination, due_at limit 1)
    union all
    select following.* from found cross join lateral (
        select consumer, kind, destination, due_at from outbox
        where state = 'pending' and (consumer, kind, destination) > (found.consumer, found.kind, found.destination)
        order by consumer, kind, destination, due_at limit 1) as following)
"""
_DUE = text(f"""{_PENDING_ROUTES}
select consumer, kind, destination from found left join outbox_routes using (consumer, kind, destination)
where due_at <= now() and coalesce(retry_at <= now(), true)
order by due_at
""")
_UNDELIVERED = text(f"""{_PENDING_ROUTES}
select destination, consumer from found where kind = 'message' and destination like :pattern
union
select destination, consumer from outbox where state = 'failed' and kind = 'message' and destination like :pattern
order by destination, consumer
""")


def due_routes() -> list[Route]:
    """Routes with rows that are due now and that no process has leased; the longest due first."""
    with begin() as connection:
        return [Route(*row) for row in connection.execute(_DUE)]


def undelivered_messages(connection: Connection, suffix: str) -> dict[str, list[str]]:
    """Topics for which messages are pending or failed.

    Args:
        connection: A connection in a transaction.
        suffix: Only topics whose name ends with it; without characters that `like` knows.

    Returns:
        {topic: consumers that wrote the messages}.
    """
    consumers: dict[str, list[str]] = {}
    for topic, consumer in connection.execute(_UNDELIVERED, {"pattern": f"%{suffix}"}):
        consumers.setdefault(topic, []).append(consumer)
    return consumers


def deliver_route(route: Route, transport: Transport) -> int:
    """Deliver the due rows of one route for at most TURN_SECONDS, unless another process delivers them.

    Args:
        route: A route from `due_routes`.
        transport: The delivery method for its kind.

    Returns:
        How many rows were delivered.
    """
    if (taken := _take(route)) is None:
        return 0
    due = outbox.c.due_at <= func.now()
    delivered, is_answered, is_answering, turn = 0, False, taken.last_error is None, None
    reason, away = _why_not(route, transport)
    if reason:
        _skip(route, reason, due)
    elif away is None:
        until = time.monotonic() + TURN_SECONDS
        while time.monotonic() < until:
            turn = _deliver_some(route, transport, due, until, is_answering=is_answering)
            delivered, away, is_answering = delivered + turn.delivered, turn.away, turn.unanswered is None
            is_answered = is_answered or turn.is_answered
            if away is not None or turn.found < transport.rows_at_once:
                break
            with begin() as connection:
                connection.execute(update(outbox_routes).where(*_is(outbox_routes, route)).values(retry_at=_leased()))
    unanswered = turn.unanswered if turn is not None else None
    with begin() as connection:
        if turn is not None and not transport.is_one_receiver:
            # Includes rows that are not due now: until they are answered, tasks must not wait long for their
            # partitions.
            unanswered = connection.scalar(select(outbox.c.last_error).where(*_waiting(route)).limit(1))
        if away is not None:
            _note_away(connection, route, away, is_new=turn is None or turn.is_new)
        elif turn is not None and turn.found == 0 and _has_rows(connection, route, due):
            # Nothing was tried, so the recorded state of the receiver stays.
            locked = {"retry_at": func.clock_timestamp() + timedelta(seconds=LOCKED_SECONDS)}
            connection.execute(update(outbox_routes).where(*_is(outbox_routes, route)).values(locked))
        elif unanswered is not None and taken.failures > 0 and not is_answered:
            # Only bad rows were tried: they do not show that the receiver is back.
            _note_away(connection, route, unanswered, is_new=False)
        elif unanswered is not None:
            # `last_error` records that the receiver has answered nothing since. So the row's next attempt does not
            # count if there is an outage.
            free = {"retry_at": func.now(), "failures": 0, "last_error": unanswered[:1_000], "undefined_since": None}
            connection.execute(update(outbox_routes).where(*_is(outbox_routes, route)).values(free))
        elif reason:
            # Only the lease ends; `undefined_since` stays.
            free = {"retry_at": func.now(), "failures": 0, "last_error": None}
            connection.execute(update(outbox_routes).where(*_is(outbox_routes, route)).values(free))
        elif (back := connection.execute(delete(outbox_routes).where(*_is(outbox_routes, route)).returning(
            outbox_routes.c.failures
        )).scalar()):  # fmt: skip
            log.info("outbox: %s is back after %d failed attempts", _name(route), back)
    return delivered


def watch() -> None:
    """Open alarms for each consumer with failed rows, or with a pending row older than MAX_PENDING; close the others.

    The alarm about failed rows already opens when a row fails. It is opened here again, because a person may have
    closed it, or a check that did not see the row of a delivery that was not committed yet.
    """
    columns = (outbox.c.consumer, func.min(outbox.c.created_at), func.count(), func.max(outbox.c.last_error))
    of_consumers = select(*columns).group_by(outbox.c.consumer)
    all_failed = of_consumers.where(outbox.c.state == "failed")
    is_old = func.min(outbox.c.created_at) < func.now() - MAX_PENDING
    too_old = of_consumers.where(outbox.c.state == "pending").having(is_old)
    is_open = (alarms.c.kind.in_([AlarmKind.outbox_failed, AlarmKind.outbox_pending]), alarms.c.closed_at.is_(None))
    with begin() as connection:
        known = connection.execute(select(alarms.c.source, alarms.c.kind).where(*is_open)).all()
        waiting = {row[0]: row[1:] for row in connection.execute(too_old)}
        failed = {row[0]: row[1:] for row in connection.execute(all_failed)}
        for consumer, (since, number, error) in failed.items():
            message = f"{number} rows are failed, the oldest was written at {since.isoformat()} ({error})"
            open_alarm(connection, consumer, AlarmKind.outbox_failed, message)
        for consumer, (since, number, error) in waiting.items():
            routes = select(outbox_routes).where(outbox_routes.c.consumer == consumer, outbox_routes.c.failures > 0)
            away = "; ".join(f"{row.destination}: {row.last_error}" for row in connection.execute(routes).all())
            message = (
                f"{number} rows wait to be delivered, the oldest since {since.isoformat()}"
                f" ({away or error or 'no receiver is known to be unavailable: is the Dag deliver_outbox paused?'})"
            )
            open_alarm(connection, consumer, AlarmKind.outbox_pending, message)
        for source, kind in known:
            if source not in (failed if kind == AlarmKind.outbox_failed else waiting):
                close_alarm(connection, source, kind)


@dataclass
class _Turn:
    """The result of one batch.

    Attributes:
        found: How many rows there were.
        delivered: How many were delivered.
        is_answered: Whether the receiver has delivered or refused any.
        away: Why the receiver is unavailable; None when it is available.
        unanswered: The error of a row without an answer; None when all rows that were tried last were answered.
        is_new: False when only one row was not answered, and it was not answered before either: then the row may be
            bad, and not the receiver.
    """

    found: int
    delivered: int = 0
    is_answered: bool = False
    away: str | None = None
    unanswered: str | None = None
    is_new: bool = True


def _deliver_some(
    route: Route, transport: Transport, which: ColumnElement[bool], until: float, *, is_answering: bool = False
) -> _Turn:
    """Deliver one batch and record the answers, in one transaction; a few large rows at a time are in memory.

    is_answering: Whether the receiver has answered any row since it last left a row of this route without an answer.
    """
    sizes = [func.coalesce(func.octet_length(column), 0) for column in (outbox.c.key, outbox.c.body, outbox.c.headers)]
    rows = (
        select(outbox.c.sequence, sum(sizes[1:], sizes[0]))
        .where(*_pending(route), which)
        .order_by(outbox.c.due_at, outbox.c.sequence)
        .limit(transport.rows_at_once)
        # Locked rows are being delivered by another task.
        .with_for_update(skip_locked=True)
    )
    with begin() as connection:
        sizes_by_row = connection.execute(rows).all()
        turn = _Turn(len(sizes_by_row))
        for sequences in _portions(sizes_by_row):
            if turn.away is not None or time.monotonic() >= until:
                break
            these = outbox.c.sequence == any_(literal(sequences, ARRAY(BigInteger)))
            portion = connection.execute(select(outbox).where(these).order_by(outbox.c.due_at, outbox.c.sequence)).all()
            attempt = transport.deliver(route.destination, portion, until)
            if transport.is_one_receiver:
                bad = _judge(turn, portion, attempt, is_answering=is_answering or turn.is_answered)
                turn.delivered += _record(connection, route, attempt, bad)
            else:
                _judge_partitions(turn, portion, attempt)
                turn.delivered += _record(connection, route, attempt, set(), is_partly_away=attempt.away is None)
                if attempt.away is None and _none_is_back(portion, attempt):
                    _postpone_waiting(connection, route)
    if route.kind == "message":
        metrics.SENT.add(turn.delivered, route.consumer, route.destination)
    return turn


def _judge(turn: _Turn, rows: Sequence[Row], attempt: Attempt, *, is_answering: bool) -> set[int]:
    """Update the turn with an attempt at a single receiver; returns the unanswered rows that are bad.

    If the receiver answers other rows, one unanswered row is not an outage. If it counted as an outage, this row would
    make its route back off each time, and delay every later row of the route.
    """
    unanswered = _note_unanswered(turn, rows, attempt)
    answers_others = len(attempt.answers) > len(unanswered)
    turn.is_answered = turn.is_answered or answers_others
    if attempt.away is not None or not unanswered:
        return set()
    if answers_others:
        return {row.sequence for row in unanswered}
    bad = {row.sequence for row in unanswered if is_answering and row.last_error is not None}
    # Rows with attempts were found to be bad before, so they say nothing about the receiver.
    if any(row.sequence not in bad and row.attempts == 0 for row in unanswered):
        turn.away = turn.unanswered
        return set()
    return bad


def _judge_partitions(turn: _Turn, rows: Sequence[Row], attempt: Attempt) -> None:
    """Update the turn with an attempt at a topic, whose partitions have different leaders."""
    _note_unanswered(turn, rows, attempt)
    turn.is_answered = turn.is_answered or (attempt.away is None and bool(attempt.answers))


def _note_unanswered(turn: _Turn, rows: Sequence[Row], attempt: Attempt) -> list[Row]:
    """Add the rows without an answer to the turn, and return them."""
    unanswered = [row for row in rows if attempt.answers.get(row.sequence, (None,))[0] is Answer.none]
    turn.away = attempt.away
    turn.unanswered = attempt.answers[unanswered[-1].sequence][1] if unanswered else None
    turn.is_new = len(unanswered) != 1 or unanswered[0].last_error is None
    return unanswered


def _none_is_back(rows: Sequence[Row], attempt: Attempt) -> bool:
    """Whether rows were tried that had waited for their partitions, and all of them must wait again."""
    waited = [row for row in rows if row.last_error is not None and row.attempts == 0]
    answers = [attempt.answers.get(row.sequence, (Answer.none, ""))[0] for row in waited]
    return bool(waited) and all(answer is Answer.none for answer in answers)


def _portions(rows: Sequence[Row]) -> Iterator[list[int]]:
    """The sequences of rows of (sequence, size in bytes), in portions of at most MAX_BYTES or one larger row."""
    portion, total = [], 0
    for sequence, size in rows:
        if portion and total + size > MAX_BYTES:
            yield portion
            portion, total = [], 0
        portion.append(sequence)
        total += size
    if portion:
        yield portion


def _record(
    connection: Connection, route: Route, attempt: Attempt, bad: set[int], *, is_partly_away: bool = False
) -> int:
    by_answer: dict[tuple[Answer, str, bool], list[int]] = {}
    for sequence, (answer, error) in attempt.answers.items():
        by_answer.setdefault((answer, error, answer is Answer.refused or sequence in bad), []).append(sequence)
    delivered = 0
    for (answer, error, counts), sequences in by_answer.items():
        these = update(outbox).where(outbox.c.sequence == any_(literal(sequences, ARRAY(BigInteger))))
        # Not now(), which is the start of the transaction: the delivery may have taken long.
        now = func.clock_timestamp()
        if answer is Answer.delivered:
            connection.execute(these.values(state="delivered", delivered_at=now, last_error=None))
            delivered = len(sequences)
        elif counts:
            done = "refused" if answer is Answer.refused else "not answered"
            seconds = func.least(REFUSED_LAST_SECONDS, REFUSED_FIRST_SECONDS * func.pow(2, outbox.c.attempts))
            changed = these.values(
                attempts=outbox.c.attempts + 1,
                last_error=error[:1_000],
                due_at=now + func.make_interval(0, 0, 0, 0, 0, 0, seconds),
                state=case((outbox.c.attempts + 1 >= MAX_ATTEMPTS, "failed"), else_="pending"),
            ).returning(outbox.c.id, outbox.c.attempts, outbox.c.state)
            failed = [row for row in connection.execute(changed) if row.state == "failed"]
            log.warning("outbox: %s %d rows were %s: %s", _name(route), len(sequences), done, error)
            if failed:
                message = (
                    f"{len(failed)} rows were {done} {failed[0].attempts} times by {route.destination}, the first "
                    f"is {failed[0].id}: {error}"
                )
                open_alarm(connection, route.consumer, AlarmKind.outbox_failed, message)
        elif is_partly_away:
            connection.execute(these.values(last_error=error[:1_000], due_at=_next_attempt_at(connection, route)))
        else:
            connection.execute(these.values(last_error=error[:1_000], due_at=now + _delay(now - outbox.c.created_at)))
    return delivered


def _delay(age: ColumnElement[timedelta]) -> ColumnElement[timedelta]:
    """How long a row of this age waits for an unavailable receiver: half of its age, at least 1 s and at most 60 s."""
    first, last = (timedelta(seconds=seconds) for seconds in (AWAY_FIRST_SECONDS, AWAY_LAST_SECONDS))
    return func.least(func.greatest(age / 2, first), last)


def _next_attempt_at(connection: Connection, route: Route) -> datetime:
    """When the rows of unavailable partitions are tried again: all at the same time, and in their order.

    If each row had its own time, thousands of such rows would keep the route busy, and a row would often overtake an
    earlier row with the same key. The age of the oldest row decides.
    """
    now = func.clock_timestamp()
    planned = func.min(outbox.c.due_at).filter(outbox.c.due_at > now)
    query = select(func.coalesce(planned, now + _delay(now - func.min(outbox.c.created_at)))).where(*_waiting(route))
    return connection.execute(query).scalar_one()


def _postpone_waiting(connection: Connection, route: Route) -> None:
    """Postpone all due rows that wait for their partitions to the next attempt, without a try.

    Thousands of such rows, in batches that each wait for answers, would delay the rows of the other partitions.
    """
    due = select(outbox.c.sequence).where(*_waiting(route), outbox.c.due_at <= func.now())
    these = outbox.c.sequence.in_(due.with_for_update(skip_locked=True))
    connection.execute(update(outbox).where(these).values(due_at=_next_attempt_at(connection, route)))


def _waiting(route: Route) -> list[ColumnElement[bool]]:
    """The condition for rows of a topic that wait because their partitions are unavailable."""
    return [*_pending(route), outbox.c.last_error.is_not(None), outbox.c.attempts == 0]


def _why_not(route: Route, transport: Transport) -> tuple[str | None, str | None]:
    """Why the route's rows are skipped, and why they wait."""
    try:
        return transport.why_skipped(route.destination), None
    except LookUpFailed as error:
        return None, str(error)


def _skip(route: Route, reason: str, which: ColumnElement[bool]) -> None:
    """Skip the rows if the route's connection was undefined before; otherwise let them wait for a second check.

    `undefined_since` records when the connection was first found to be undefined. So only the first rows for such a
    connection wait for a minute; later rows are skipped at once.
    """
    route_row = postgresql.insert(outbox_routes).values(**route._asdict(), undefined_since=func.now())
    since = func.coalesce(outbox_routes.c.undefined_since, func.now())
    route_row = route_row.on_conflict_do_update(constraint=outbox_routes.primary_key, set_={"undefined_since": since})
    again_at = outbox_routes.c.undefined_since + timedelta(seconds=UNDEFINED_SECONDS)
    with begin() as connection:
        returned = route_row.returning(again_at.label("again_at"), (again_at <= func.now()).label("is_second"))
        check = connection.execute(returned).one()
        values = {"state": "skipped"} if check.is_second else {"due_at": check.again_at}
        rows = update(outbox).where(*_pending(route), which).values(last_error=reason, **values)
        count = connection.execute(rows).rowcount
    log.debug("outbox: %s %d rows %s: %s", _name(route), count, "skipped" if check.is_second else "wait", reason)


def _take(route: Route) -> Row | None:
    """Lease the route; None when another process has a lease, or the route is backing off."""
    lease = postgresql.insert(outbox_routes).values(**route._asdict(), retry_at=_leased())
    lease = lease.on_conflict_do_update(
        constraint=outbox_routes.primary_key,
        set_={"retry_at": lease.excluded.retry_at},
        where=outbox_routes.c.retry_at <= func.now(),
    )
    with begin() as connection:
        return connection.execute(lease.returning(outbox_routes.c.failures, outbox_routes.c.last_error)).first()


def _leased() -> ColumnElement:
    return func.clock_timestamp() + timedelta(seconds=LEASE_SECONDS)


def _note_away(
    connection: Connection, route: Route, reason: str, *, only_if_unknown: bool = False, is_new: bool = True
) -> None:
    """Count a failed attempt and let the route back off.

    only_if_unknown: Do nothing if the route backs off already. So if several tasks find the receiver unavailable at the
    same time, only one attempt counts.
    is_new: False to repeat the previous wait instead of doubling it. Otherwise a single row that is never answered
    would make a later row wait for a minute.
    """
    failures = func.greatest(outbox_routes.c.failures + int(is_new), 1)
    doublings = func.least(failures - 1, 16)
    seconds = func.least(AWAY_LAST_SECONDS, AWAY_FIRST_SECONDS * func.pow(2, doublings))
    first = func.clock_timestamp() + timedelta(seconds=AWAY_FIRST_SECONDS)
    values = {"failures": 1, "retry_at": first, "last_error": reason[:1_000]}
    upsert = postgresql.insert(outbox_routes).values(**route._asdict(), **values)
    upsert = upsert.on_conflict_do_update(
        constraint=outbox_routes.primary_key,
        set_={
            "failures": failures,
            "retry_at": func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds),
            "last_error": reason[:1_000],
            "undefined_since": None,
        },
        where=outbox_routes.c.retry_at <= func.now() if only_if_unknown else None,
    ).returning(outbox_routes.c.failures)
    if connection.execute(upsert).scalar() == 1 and is_new:
        log.warning("outbox: %s is unavailable, its rows wait: %s", _name(route), reason)


def _known(routes: Mapping[Route, Any]) -> dict[Route, Row]:
    """The recorded states of these routes."""
    columns = (outbox_routes.c.consumer, outbox_routes.c.kind, outbox_routes.c.destination)
    rows = select(outbox_routes).where(tuple_(*columns).in_(list(routes)))
    with begin() as connection:
        return {Route(row.consumer, row.kind, row.destination): row for row in connection.execute(rows)}


def _pending(route: Route) -> list[ColumnElement[bool]]:
    return [*_is(outbox, route), outbox.c.state == "pending"]


def _has_rows(connection: Connection, route: Route, which: ColumnElement[bool]) -> bool:
    """Whether the route has pending rows that meet the condition, locked or not."""
    return connection.execute(select(outbox.c.sequence).where(*_pending(route), which).limit(1)).first() is not None


def _is(table: Any, route: Route) -> list[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in route._asdict().items()]


def _name(route: Route) -> str:
    return f"consumer={route.consumer} destination={route.destination}"
