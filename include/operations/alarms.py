"""Alarms: one row an episode, so that a condition that lasts is told once.

An alarm that opens or closes is also a request to the optional connection `alarm_webhook`, in the outbox: whoever runs
next delivers it (the consumer's own run, or the Dag `maintain`).
"""

import logging
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert

from include.operations.database import begin
from include.operations.tables import alarms

log = logging.getLogger(__name__)

WEBHOOK_CONN_ID = "alarm_webhook"
# The name in the outbox under which requests about alarms are delivered.
SENDER = "alarms"


def open_alarm(connection: Connection, source: str, kind: str, message: str) -> bool:
    """Open an alarm unless one of this kind is open for this source; True when it is new."""
    row = insert(alarms).values(source=source, kind=kind, message=message).on_conflict_do_nothing()
    new = connection.execute(row.returning(alarms)).first()
    if new is not None:
        log.error("alarm: source=%s kind=%s %s", source, kind, message)
        _tell(connection, "opened", new, new.opened_at)
    return new is not None


def close_alarm(connection: Connection, source: str, kind: str, note: str = "") -> bool:
    """End the episode, if there is one; True when there was.

    note: who has closed it, and why, when it was a person; kept behind the alarm's message.
    """
    mine = update(alarms).where(alarms.c.source == source, alarms.c.kind == kind, alarms.c.closed_at.is_(None))
    message = alarms.c.message + f" ({note})" if note else alarms.c.message
    closed = connection.execute(mine.values(closed_at=func.now(), message=message).returning(alarms)).first()
    if closed is not None:
        log.info("alarm closed: source=%s kind=%s", source, kind)
        _tell(connection, "closed", closed, closed.closed_at)
    return closed is not None


def last_closed(connection: Connection, source: str, kind: str) -> datetime | None:
    """When the last episode of this alarm ended."""
    mine = (alarms.c.source == source, alarms.c.kind == kind)
    return connection.scalar(select(func.max(alarms.c.closed_at)).where(*mine))


def open_alarms() -> list[Row]:
    """The alarms that are open, oldest first."""
    with begin() as connection:
        found = select(alarms).where(alarms.c.closed_at.is_(None)).order_by(alarms.c.opened_at)
        return list(connection.execute(found))


def _tell(connection: Connection, event: str, alarm: Row, at: datetime) -> None:
    # Here, because the outbox raises alarms itself.
    from include.operations import outbox

    if alarm.source == SENDER:
        # That people cannot be told is nothing that can be told to them this way.
        return
    payload: dict[str, Any] = {
        # What chat programs show of an incoming request.
        "text": f"alarm {event}: {alarm.source} {alarm.kind}: {alarm.message}",
        "event": event,
        "source": alarm.source,
        "kind": alarm.kind,
        "message": alarm.message,
        "at": at.isoformat(),
    }
    outbox.add_request(connection, consumer=SENDER, conn_id=WEBHOOK_CONN_ID, payload=payload)


def deliver_alarms(*, untried_only: bool = False) -> int:
    """Deliver requests about alarms; returns how many were, and never raises for a receiver that is away or refuses.

    untried_only: leave those that failed before to somebody else, so that a receiver that is away costs a consumer's
    runs nothing.
    """
    from include.operations import outbox, webhooks

    try:
        return outbox.deliver(SENDER, {"request": webhooks.post}, untried_only=untried_only)
    except outbox.OutboxUndelivered as trouble:
        log.warning("alarms were not told to anybody yet: %s", trouble)
        return 0
