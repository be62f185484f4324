"""Alarms: one row for each episode, so that a lasting condition causes one notification.

When an alarm opens, gets a further message, or closes, a request to the optional connection `alarm_webhook` is added
to the outbox. This module only writes rows: the Dag `deliver_outbox` sends the request within seconds, and
`alarm_delivery.py` sends it at once.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, false, func, select, update
from sqlalchemy.dialects.postgresql import insert

from include.streams.operations import outbox
from include.streams.operations.database import begin
from include.streams.operations.tables import alarms

log = logging.getLogger(__name__)

WEBHOOK_CONN_ID = "alarm_webhook"
# The consumer's name in outbox rows that are requests about alarms.
SENDER = "alarms"
# The longest text of an open alarm to which further messages are added, in characters.
MAX_MESSAGE_LENGTH = 4_000
MORE = "; and more, which the logs and the webhook's messages name"


def open_alarm(connection: Connection, source: str, kind: str, message: str) -> bool:
    """Open an alarm unless one of this kind is open for this source.

    Args:
        connection: A connection in a transaction.
        source: The consumer, table, connector or task that the alarm is about.
        kind: The kind of alarm, such as "messages_lost".
        message: The text for people, with the remedy.

    Returns:
        True when the alarm is new.
    """
    row = insert(alarms).values(source=source, kind=kind, message=message).on_conflict_do_nothing()
    new = connection.execute(row.returning(alarms)).first()
    if new is not None:
        log.error("alarm: source=%s kind=%s %s", source, kind, message)
        _tell(connection, "opened", new, new.opened_at)
    return new is not None


def add_to_alarm(connection: Connection, source: str, kind: str, message: str) -> bool:
    """Open the alarm, or add the message to the open alarm; for facts that each matter, such as losses.

    If possible, call it in the transaction that records the fact. A message that the alarm's text already contains is
    not added again. An added message is logged and delivered even when the text has no room left for it.

    Args:
        connection: A connection in a transaction.
        source: The consumer, table, connector or task that the alarm is about.
        kind: The kind of alarm.
        message: The text for people.

    Returns:
        True when the alarm is new.
    """
    return open_alarm(connection, source, kind, message) or _add(connection, source, kind, message, message, false())


def _add(
    connection: Connection, source: str, kind: str, known_by: str, message: str, unless: ColumnElement[bool]
) -> bool:
    # One statement, so that two tasks at the same time add both of their messages.
    longer = alarms.c.message + "; " + message
    fits = func.length(longer) <= MAX_MESSAGE_LENGTH
    text = case((fits, longer), (alarms.c.message.endswith(MORE), alarms.c.message), else_=alarms.c.message + MORE)
    mine = update(alarms).where(alarms.c.source == source, alarms.c.kind == kind, alarms.c.closed_at.is_(None))
    mine = mine.where(func.strpos(alarms.c.message, known_by) == 0, ~unless)
    changed = connection.execute(mine.values(message=text).returning(alarms, func.now().label("now"))).first()
    if changed is None:
        # The text already contains the message, or a person has closed the alarm in between.
        return open_alarm(connection, source, kind, message)
    log.error("alarm, further: source=%s kind=%s %s", source, kind, message)
    _tell(connection, "continued", changed, changed.now, message)
    return False


def add_lasting(connection: Connection, source: str, kind: str, messages: Sequence[str] | Mapping[str, str]) -> None:
    """Open the alarm with all messages, or add those that the open alarm does not contain.

    For conditions that are found again at every look while they last, such as topics that are stopped. Once the text
    has no room left, no further message is added or delivered: it would be a new one at every look.

    Args:
        connection: A connection in a transaction.
        source: The consumer, table, connector or task that the alarm is about.
        kind: The kind of alarm.
        messages: One text for each condition, the same at every look. Or {part of the text: text}, if only this part
            is the same at every look, because the text has counts.
    """
    texts = messages if isinstance(messages, Mapping) else {message: message for message in messages}
    if not open_alarm(connection, source, kind, "; ".join(texts.values())):
        for known_by, message in texts.items():
            _add(connection, source, kind, known_by, message, alarms.c.message.endswith(MORE))


def close_alarm(connection: Connection, source: str, kind: str, note: str = "") -> bool:
    """Close the open alarm, if there is one.

    Args:
        connection: A connection in a transaction.
        source: The alarm's source.
        kind: The alarm's kind.
        note: Why it is closed, and by whom, if its cause may not be gone. Added to the alarm's message.

    Returns:
        True when an alarm was open.
    """
    mine = update(alarms).where(alarms.c.source == source, alarms.c.kind == kind, alarms.c.closed_at.is_(None))
    message = alarms.c.message + f" ({note})" if note else alarms.c.message
    closed = connection.execute(mine.values(closed_at=func.now(), message=message).returning(alarms)).first()
    if closed is not None:
        log.info("alarm closed: source=%s kind=%s", source, kind)
        _tell(connection, "closed", closed, closed.closed_at)
    return closed is not None


def last_closed(connection: Connection, source: str, kind: str) -> datetime | None:
    """When the last episode of this alarm ended; None without a closed alarm."""
    mine = (alarms.c.source == source, alarms.c.kind == kind)
    return connection.scalar(select(func.max(alarms.c.closed_at)).where(*mine))


def open_text(connection: Connection, source: str, kind: str) -> str | None:
    """The text of the open alarm; None when none is open."""
    mine = (alarms.c.source == source, alarms.c.kind == kind, alarms.c.closed_at.is_(None))
    return connection.scalar(select(alarms.c.message).where(*mine))


def open_alarms() -> list[Row]:
    """The open alarms, oldest first."""
    with begin() as connection:
        found = select(alarms).where(alarms.c.closed_at.is_(None)).order_by(alarms.c.opened_at, alarms.c.id)
        return list(connection.execute(found))


def _tell(connection: Connection, event: str, alarm: Row, at: datetime, message: str | None = None) -> None:
    if alarm.source == SENDER:
        # An alarm about a failed webhook must not create a request to the same webhook.
        return
    message = alarm.message if message is None else message
    payload: dict[str, Any] = {
        # The field that chat programs display.
        "text": f"alarm {event}: {alarm.source} {alarm.kind}: {message}",
        "event": event,
        "source": alarm.source,
        "kind": alarm.kind,
        "message": message,
        "at": at.isoformat(),
    }
    outbox.add_request(connection, consumer=SENDER, conn_id=WEBHOOK_CONN_ID, payload=payload)
