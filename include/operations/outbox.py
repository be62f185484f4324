"""Outbox: what must leave the database, written with the effect and delivered afterwards, at least once.

The receiver sees the row's id as idempotency key: the same for every delivery of the same row.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from include.operations.alarms import close_alarm, open_alarm
from include.operations.database import begin
from include.operations.models import OutboxEntry

if TYPE_CHECKING:
    from include.contracts import Contract, Topic

log = logging.getLogger(__name__)

# Rows delivered in one transaction: they stay locked meanwhile, and a crash repeats at most these.
MESSAGES_AT_ONCE, REQUESTS_AT_ONCE = 500, 1
# A refused row is kept for good after these; with the tasks' retries that is more than six hours.
MAX_ATTEMPTS = 20
ALARM = "outbox_failed"


class OutboxUndelivered(Exception):
    """Some rows could not be delivered: the task must fail, and its retry delivers them."""


class Refused(Exception):
    """The receiver answered and will not take this row; the rows behind it may still be taken."""


class Skipped(Exception):
    """The destination is not there by choice: the row is kept, and not delivered."""


class Deliver(Protocol):
    """Delivers rows of one destination. Raises Refused or Skipped for what concerns a row, else anything."""

    def __call__(self, destination: str, rows: list[OutboxEntry], /) -> None: ...


def add_message(session: Session, *, consumer: str, topic: "Topic", event: "Contract") -> None:
    """A Kafka message to send once this transaction is committed."""
    key, value = topic.serialize(event)
    session.add(OutboxEntry(consumer=consumer, kind="message", destination=topic.name, key=key, body=value, headers={}))


def add_request(session: Session, *, consumer: str, conn_id: str, payload: Mapping[str, Any]) -> None:
    """An HTTP POST of JSON to an Airflow HTTP connection, to send once this transaction is committed.

    When the connection is not defined at that time, the row is kept as skipped.
    """
    body = json.dumps(payload, ensure_ascii=False, sort_keys=True, default=str).encode()
    session.add(OutboxEntry(consumer=consumer, kind="request", destination=conn_id, key=None, body=body, headers={}))


def deliver(consumer: str, ways: Mapping[str, Deliver]) -> int:
    """Deliver everything pending of the consumer; returns how many rows were.

    `ways` is {kind: how}. A destination that is away does not hold up the others; a row that is refused does not hold
    up those behind it. Raises OutboxUndelivered when something is left.
    """
    delivered = 0
    troubles: list[str] = []
    for kind, destination in _pending(consumer):
        at_once = MESSAGES_AT_ONCE if kind == "message" else REQUESTS_AT_ONCE
        after = 0
        while True:
            with begin() as session:
                rows = _lock_some(session, consumer, kind, destination, after, at_once)
                if not rows:
                    break
                after = rows[-1].sequence
                trouble = _deliver_rows(session, consumer, destination, rows, ways[kind])
            if trouble is None:
                delivered += len(rows)
                continue
            error, reachable = trouble
            troubles.append(f"{kind} to {destination}: {error}")
            if not reachable:
                break
    if troubles:
        raise OutboxUndelivered(f"consumer {consumer}: {len(troubles)} not delivered; {troubles[0]}")
    return delivered


def _pending(consumer: str) -> Iterable[tuple[str, str]]:
    with begin() as session:
        which = select(OutboxEntry.kind, OutboxEntry.destination).where(
            OutboxEntry.consumer == consumer, OutboxEntry.state == "pending"
        )
        return [(kind, destination) for kind, destination in session.execute(which.distinct().order_by("kind"))]


def _lock_some(
    session: Session, consumer: str, kind: str, destination: str, after: int, limit: int
) -> list[OutboxEntry]:
    # skip locked: another task that delivers at the same time has those rows, and delivers them.
    rows = (
        select(OutboxEntry)
        .where(
            OutboxEntry.consumer == consumer,
            OutboxEntry.state == "pending",
            OutboxEntry.kind == kind,
            OutboxEntry.destination == destination,
            OutboxEntry.sequence > after,
        )
        .order_by(OutboxEntry.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(rows))


def _deliver_rows(
    session: Session, consumer: str, destination: str, rows: list[OutboxEntry], way: Deliver
) -> tuple[Exception, bool] | None:
    """Deliver and record it; None, or what went wrong and whether the destination can be reached at all."""
    for row in rows:
        row.attempts += 1
    try:
        way(destination, rows)
    except Skipped as reason:
        for row in rows:
            row.state, row.last_error = "skipped", str(reason)
        log.info("outbox: destination=%s skipped %d rows: %s", destination, len(rows), reason)
        return None
    except Exception as error:
        for row in rows:
            row.last_error = str(error)[:1_000]
            if row.attempts >= MAX_ATTEMPTS and isinstance(error, Refused):
                row.state = "failed"
                open_alarm(
                    session,
                    consumer,
                    ALARM,
                    f"outbox row {row.id} was refused {row.attempts} times by {destination}: {error}",
                )
        log.warning("outbox: destination=%s not delivered: %s", destination, error)
        return error, isinstance(error, Refused)
    for row in rows:
        row.state, row.delivered_at, row.last_error = "delivered", func.now(), None
    close_alarm(session, consumer, ALARM)
    return None
