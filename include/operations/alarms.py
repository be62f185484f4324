"""Alarms: one row for each episode, so that a condition that lasts is notified once.

An alarm that opens, continues with a further fact, or closes is also a request to the optional connection
`alarm_webhook`, in the outbox: the Dag `deliver_outbox` sends it within seconds.
"""

import logging
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, case, func, select, update
from sqlalchemy.dialects.postgresql import insert

from include.operations.database import begin
from include.operations.tables import alarms

log = logging.getLogger(__name__)

WEBHOOK_CONN_ID = "alarm_webhook"
# The name in the outbox under which requests about alarms are delivered.
SENDER = "alarms"
# Further messages are added to an open alarm up to here.
MAX_MESSAGE_LENGTH = 4_000
MORE = "; and more, which the logs and the webhook's messages name"


def open_alarm(connection: Connection, source: str, kind: str, message: str) -> bool:
    """Open an alarm unless one of this kind is open for this source; True when it is new."""
    row = insert(alarms).values(source=source, kind=kind, message=message).on_conflict_do_nothing()
    new = connection.execute(row.returning(alarms)).first()
    if new is not None:
        log.error("alarm: source=%s kind=%s %s", source, kind, message)
        _tell(connection, "opened", new, new.opened_at)
    return new is not None


def add_to_alarm(connection: Connection, source: str, kind: str, message: str) -> bool:
    """Open the alarm, or add the message to the open one; for facts that each count, such as losses.

    Call it in the transaction that records the fact, where that is possible: what the alarm's text says already is not
    added. What is added is logged and delivered, also when the text has no room left for it.

    Returns:
        True when the alarm is new.
    """
    if open_alarm(connection, source, kind, message):
        return True
    # In one statement: two tasks that add at once add both.
    longer = alarms.c.message + "; " + message
    fits = func.length(longer) <= MAX_MESSAGE_LENGTH
    text = case((fits, longer), (alarms.c.message.endswith(MORE), alarms.c.message), else_=alarms.c.message + MORE)
    mine = update(alarms).where(alarms.c.source == source, alarms.c.kind == kind, alarms.c.closed_at.is_(None))
    mine = mine.where(func.strpos(alarms.c.message, message) == 0)
    changed = connection.execute(mine.values(message=text).returning(alarms, func.now().label("now"))).first()
    if changed is None:
        # It says so already, or a person has closed it in between.
        return open_alarm(connection, source, kind, message)
    log.error("alarm, further: source=%s kind=%s %s", source, kind, message)
    _tell(connection, "continued", changed, changed.now, message)
    return False


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
        found = select(alarms).where(alarms.c.closed_at.is_(None)).order_by(alarms.c.opened_at, alarms.c.id)
        return list(connection.execute(found))


def _tell(connection: Connection, event: str, alarm: Row, at: datetime, message: str | None = None) -> None:
    # Here, because the outbox raises alarms itself.
    from include.operations import outbox

    if alarm.source == SENDER:
        # That people cannot be told is nothing that can be told to them this way.
        return
    message = alarm.message if message is None else message
    payload: dict[str, Any] = {
        # What chat programs show of an incoming request.
        "text": f"alarm {event}: {alarm.source} {alarm.kind}: {message}",
        "event": event,
        "source": alarm.source,
        "kind": alarm.kind,
        "message": message,
        "at": at.isoformat(),
    }
    outbox.add_request(connection, consumer=SENDER, conn_id=WEBHOOK_CONN_ID, payload=payload)


def deliver_alarms() -> int:
    """Deliver requests about alarms at once, for a caller that does not rely on the Dag `deliver_outbox`.

    Returns:
        How many were delivered. A receiver that is away or refuses raises nothing.
    """
    from include.operations import outbox
    from include.operations.webhooks import Requests

    routes = [route for route in outbox.due_routes() if route.consumer == SENDER]
    return sum(outbox.deliver_route(route, Requests()) for route in routes)
