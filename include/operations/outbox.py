"""Outbox: what must leave the database, written with the effect and delivered afterwards, at least once.

The receiver sees the row's id as idempotency key: the same for every delivery of the same row.
"""

import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from include.operations.alarms import close_alarm, open_alarm
from include.operations.database import begin
from include.operations.tables import alarms, outbox

if TYPE_CHECKING:
    from include.contracts import Contract, Topic

log = logging.getLogger(__name__)

# Rows delivered in one transaction: they stay locked meanwhile, and a crash repeats at most these.
ROWS_AT_ONCE = {"message": 500, "request": 1}
# A row that was refused this often is kept as failed. Tries that nobody answered do not count: an outage would use them
# up, and the first refusal behind it would be the last.
MAX_ATTEMPTS = 20
ALARM = "outbox_failed"
PENDING_ALARM = "outbox_pending"
# A receiver that restarts is nobody's concern; one that is away for this long is.
MAX_PENDING = timedelta(hours=1)


class OutboxUndelivered(Exception):
    """Some rows could not be delivered: the task must fail, and its retry delivers them."""


class Refused(Exception):
    """The receiver answered and will not take this row; the rows behind it may still be taken."""


class Skipped(Exception):
    """The destination is not there by choice: the row is kept, and not delivered."""


class Deliver(Protocol):
    """Delivers rows of one destination. Raises Refused or Skipped for what concerns a row, else anything."""

    def __call__(self, destination: str, rows: Sequence[Row], /) -> None: ...


def add_message(connection: Connection, *, consumer: str, topic: "Topic", event: "Contract") -> None:
    """A Kafka message to send once this transaction is committed."""
    key, value = topic.serialize(event)
    row = {"consumer": consumer, "kind": "message", "destination": topic.name, "key": key, "body": value}
    connection.execute(insert(outbox), row)


def add_record(
    connection: Connection,
    *,
    consumer: str,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> None:
    """A raw Kafka record to send once this transaction is committed.

    Args:
        connection: The transaction that the record belongs to.
        consumer: The consumer whose alarms name a record that is not delivered.
        topic: The topic's name.
        key: The record's key; None for none.
        value: The record's value; None for none.
        headers: Names and values in the record's order; a name may occur several times. Delivery adds
            `idempotency-key` behind them.
    """
    kept = json.dumps([[name, None if part is None else b64encode(part).decode()] for name, part in headers])
    row = {"consumer": consumer, "kind": "message", "destination": topic, "key": key, "body": value, "headers": kept}
    connection.execute(insert(outbox), row)


def record_headers(row: Row) -> list[tuple[str, bytes | None]]:
    """The headers that a row of kind `message` is sent with: its own, then its id as `idempotency-key`."""
    own = [(name, None if part is None else b64decode(part)) for name, part in json.loads(row.headers or "[]")]
    return [*own, ("idempotency-key", str(row.id).encode())]


def add_request(connection: Connection, *, consumer: str, conn_id: str, payload: Mapping[str, Any]) -> None:
    """An HTTP POST of JSON to an Airflow HTTP connection, to send once this transaction is committed.

    When the connection is not defined at that time, the row is kept as skipped.
    """
    body = json.dumps(payload, ensure_ascii=False, sort_keys=True, default=str).encode()
    row = {"consumer": consumer, "kind": "request", "destination": conn_id, "key": None, "body": body}
    connection.execute(insert(outbox), row)


def deliver(consumer: str, ways: Mapping[str, Deliver], *, untried_only: bool = False) -> int:
    """Deliver everything pending of the consumer; returns how many rows were.

    `ways` is {kind: how}. A destination that is away does not hold up the others; a row that is refused does not hold
    up those behind it. untried_only: leave rows whose delivery failed before. Raises OutboxUndelivered when something
    is left of what it tried.
    """
    delivered = 0
    troubles: list[str] = []
    for kind, destination in _pending(consumer, untried_only):
        after = 0
        while True:
            with begin() as connection:
                rows = _lock_some(connection, consumer, kind, destination, after, untried_only)
                trouble = _deliver_rows(connection, consumer, destination, rows, ways[kind]) if rows else None
            if not rows:
                break
            after = rows[-1].sequence
            if trouble is None:
                delivered += len(rows)
                continue
            troubles.append(f"{kind} to {destination}: {trouble}")
            if not isinstance(trouble, Refused):
                break
    if troubles:
        raise OutboxUndelivered(f"consumer {consumer}: {len(troubles)} not delivered; {troubles[0]}")
    return delivered


def consumers_with_pending() -> list[str]:
    """Names of the consumers that have something to deliver."""
    names = select(outbox.c.consumer).where(outbox.c.state == "pending").distinct().order_by(outbox.c.consumer)
    with begin() as connection:
        return list(connection.execute(names).scalars())


def close_if_none_failed(connection: Connection, consumer: str) -> None:
    """Close the alarm about failed rows when a person has dealt with the last of them."""
    failed = select(outbox.c.sequence).where(outbox.c.consumer == consumer, outbox.c.state == "failed").limit(1)
    if connection.execute(failed).first() is None:
        close_alarm(connection, consumer, ALARM)


def _pending(consumer: str, untried_only: bool) -> list[tuple[str, str]]:
    columns = outbox.c
    which = select(columns.kind, columns.destination).where(*_wanted(consumer, untried_only))
    with begin() as connection:
        return [(kind, destination) for kind, destination in connection.execute(which.distinct().order_by("kind"))]


def watch_pending() -> None:
    """Open an alarm for each consumer whose oldest pending row is too old; close the alarms whose cause is gone."""
    pending = outbox.c.state == "pending"
    oldest = select(outbox.c.consumer, func.min(outbox.c.created_at), func.count()).where(pending)
    too_old = oldest.group_by(outbox.c.consumer).having(func.min(outbox.c.created_at) < func.now() - MAX_PENDING)
    told = select(alarms.c.source).where(alarms.c.kind == PENDING_ALARM, alarms.c.closed_at.is_(None))
    with begin() as connection:
        waiting = {row[0]: row[1:] for row in connection.execute(too_old)}
        for consumer, (since, number) in waiting.items():
            text = f"{number} rows wait for their receiver, the oldest since {since.isoformat()}"
            open_alarm(connection, consumer, PENDING_ALARM, text)
        for consumer in set(connection.execute(told).scalars()) - set(waiting):
            close_alarm(connection, consumer, PENDING_ALARM)


def _wanted(consumer: str, untried_only: bool) -> list[ColumnElement[bool]]:
    wanted = [outbox.c.consumer == consumer, outbox.c.state == "pending"]
    return [*wanted, outbox.c.last_error.is_(None)] if untried_only else wanted


def _lock_some(
    connection: Connection, consumer: str, kind: str, destination: str, after: int, untried_only: bool
) -> Sequence[Row]:
    # skip locked: another task that delivers at the same time has those rows, and delivers them.
    rows = (
        select(outbox)
        .where(
            *_wanted(consumer, untried_only),
            outbox.c.kind == kind,
            outbox.c.destination == destination,
            outbox.c.sequence > after,
        )
        .order_by(outbox.c.sequence)
        .limit(ROWS_AT_ONCE[kind])
        .with_for_update(skip_locked=True)
    )
    return connection.execute(rows).all()


def _deliver_rows(
    connection: Connection, consumer: str, destination: str, rows: Sequence[Row], way: Deliver
) -> Exception | None:
    """Deliver and record it; None, or what went wrong."""
    these = update(outbox).where(outbox.c.sequence.in_([row.sequence for row in rows]))
    try:
        way(destination, rows)
    except Skipped as reason:
        connection.execute(these.values(state="skipped", last_error=str(reason)))
        log.info("outbox: destination=%s skipped %d rows: %s", destination, len(rows), reason)
        return None
    except Exception as error:
        is_refused = isinstance(error, Refused)
        connection.execute(these.values(last_error=str(error)[:1_000], attempts=outbox.c.attempts + int(is_refused)))
        for row in [row for row in rows if is_refused and row.attempts + 1 >= MAX_ATTEMPTS]:
            connection.execute(update(outbox).where(outbox.c.sequence == row.sequence).values(state="failed"))
            text = f"outbox row {row.id} was refused {row.attempts + 1} times by {destination}: {error}"
            open_alarm(connection, consumer, ALARM, text)
        log.warning("outbox: destination=%s not delivered: %s", destination, error)
        return error
    connection.execute(these.values(state="delivered", delivered_at=func.now(), last_error=None))
    close_if_none_failed(connection, consumer)
    return None
