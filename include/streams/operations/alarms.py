"""Alarms: one row for each episode, so that a lasting condition causes one notification.

An alarm is about a source, has a kind (`alarm_kinds.py`), and a key if several of a kind may be open for one source.

When an alarm opens, gets a further message, or closes, a request to the optional connection `alarm_webhook` is added
to the outbox. This module only writes rows: the Dag `deliver_outbox` sends the request within seconds, and
`alarm_delivery.py` sends it at once.
"""

import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, false, func, select, update
from sqlalchemy.dialects.postgresql import insert

from include.streams.operations import outbox
from include.streams.operations.alarm_kinds import KindWithRunbook, runbook_of
from include.streams.operations.database import begin
from include.streams.operations.tables import alarms

log = logging.getLogger(__name__)

WEBHOOK_CONN_ID = "alarm_webhook"
# The consumer's name in outbox rows that are requests about alarms.
SENDER = "alarms"
# The longest text of an open alarm to which further messages are added, in characters.
MAX_MESSAGE_LENGTH = 4_000
MORE = "; and more, which the logs and the webhook's messages name"
# The release before wrote the key behind the kind, `KIND:KEY`. Its tasks that still run do this too, and so does that
# release after a rollback. Without these expressions, nothing would close such an alarm.
_kind = func.split_part(alarms.c.kind, ":", 1)
_key = func.concat(alarms.c.key, func.substring(alarms.c.kind, ":(.*)$"))


def open_alarm(connection: Connection, source: str, kind: KindWithRunbook, message: str, *, key: str = "") -> bool:
    """Open an alarm unless one of this kind and key is open for this source.

    Args:
        connection: A connection in a transaction.
        source: The consumer, table, connector or task that the alarm is about.
        kind: The kind of alarm.
        message: The text for people, with the remedy. The kind's runbook is added unless the text names another one.
        key: What the alarm is about within its source, such as a topic, a file or a claim; "" for the source itself.

    Returns:
        True when the alarm is new.
    """
    message = kind.with_runbook(message)
    row = insert(alarms).values(source=source, kind=kind, key=key, message=message).on_conflict_do_nothing()
    opened_at = connection.execute(row.returning(alarms.c.opened_at)).scalar()
    if opened_at is None:
        return False
    log.error("alarm: %s %s", named(source, kind, key), message)
    _notify(connection, "opened", source, kind, key, message, opened_at)
    return True


def add_to_alarm(connection: Connection, source: str, kind: KindWithRunbook, message: str) -> bool:
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
    return open_alarm(connection, source, kind, message) or _add(connection, source, kind, "", message, false())


def _add(
    connection: Connection, source: str, kind: KindWithRunbook, key: str, message: str, unless: ColumnElement[bool]
) -> bool:
    # One statement, so that two tasks at the same time add both of their messages.
    longer = alarms.c.message + "; " + message
    fits = func.length(longer) <= MAX_MESSAGE_LENGTH
    text = case((fits, longer), (alarms.c.message.endswith(MORE), alarms.c.message), else_=alarms.c.message + MORE)
    statement = update(alarms).where(*_open_of(source, kind), _key == key)
    statement = statement.where(func.strpos(alarms.c.message, message) == 0, ~unless)
    now = connection.execute(statement.values(message=text).returning(func.now())).scalar()
    if now is None:
        # The text already contains the message, or a person has closed the alarm in between.
        return open_alarm(connection, source, kind, message, key=key)
    message = kind.with_runbook(message)
    log.error("alarm, further: %s %s", named(source, kind, key), message)
    _notify(connection, "continued", source, kind, key, message, now)
    return False


def add_lasting(
    connection: Connection, source: str, kind: KindWithRunbook, messages: Sequence[str], *, key: str = ""
) -> None:
    """Open the alarm with all messages, or add those that the open alarm does not contain.

    For conditions that every check finds again while they last, such as stopped partitions. Once the text has no room
    left, no further message is added or delivered: every check would deliver it again.

    Args:
        connection: A connection in a transaction.
        source: The consumer, table, connector or task that the alarm is about.
        kind: The kind of alarm.
        messages: One text for each condition, the same in every check.
        key: What the alarm is about within its source.
    """
    if not open_alarm(connection, source, kind, "; ".join(messages), key=key):
        for message in messages:
            _add(connection, source, kind, key, message, alarms.c.message.endswith(MORE))


def close_alarm(connection: Connection, source: str, kind: str, note: str = "", *, key: str = "") -> bool:
    """Close the open alarm, if there is one.

    Args:
        connection: A connection in a transaction.
        source: The alarm's source.
        kind: The alarm's kind.
        note: Why and by whom it is closed, if its cause may still exist. Added to the alarm's message.
        key: The alarm's key.

    Returns:
        True when an alarm was open.
    """
    return _close(connection, source, kind, _key == key, note)


def close_others(connection: Connection, source: str, kind: str, keys: Collection[str] = ()) -> None:
    """Close all open alarms of a kind of this source, except those with one of these keys.

    Args:
        connection: A connection in a transaction.
        source: The alarms' source.
        kind: The alarms' kind.
        keys: The keys of the alarms that stay open.
    """
    _close(connection, source, kind, _key.not_in(list(keys)))


def _close(connection: Connection, source: str, kind: str, which: ColumnElement[bool], note: str = "") -> bool:
    message = alarms.c.message + f" ({note})" if note else alarms.c.message
    statement = update(alarms).where(*_open_of(source, kind), which).values(closed_at=func.now(), message=message)
    closed = connection.execute(statement.returning(_key.label("key"), alarms.c.message, alarms.c.closed_at)).all()
    for row in closed:
        log.info("alarm closed: %s", named(source, kind, row.key))
        _notify(connection, "closed", source, kind, row.key, row.message, row.closed_at)
    return bool(closed)


def last_closed(connection: Connection, source: str, kind: str, key: str = "") -> datetime | None:
    """When the last episode of this alarm ended; None without a closed alarm.

    Args:
        connection: A connection in a transaction.
        source: The alarm's source.
        kind: The alarm's kind.
        key: The alarm's key.
    """
    conditions = (alarms.c.source == source, _kind == kind, _key == key)
    return connection.scalar(select(func.max(alarms.c.closed_at)).where(*conditions))


def open_alarms(connection: Connection | None = None) -> list[Row]:
    """The open alarms, oldest first.

    Args:
        connection: A connection in a transaction; None for a transaction of its own.

    Returns:
        Rows with `id`, `source`, `kind`, `key`, `message` and `opened_at`.
    """
    if connection is None:
        with begin() as connection:
            return open_alarms(connection)
    columns = (
        alarms.c.id,
        alarms.c.source,
        _kind.label("kind"),
        _key.label("key"),
        alarms.c.message,
        alarms.c.opened_at,
    )
    query = select(*columns).where(alarms.c.closed_at.is_(None)).order_by(alarms.c.opened_at, alarms.c.id)
    return list(connection.execute(query))


def open_keys(connection: Connection, source: str, kind: str) -> dict[str, datetime]:
    """{key: when it was opened} of the source's open alarms of a kind.

    Args:
        connection: A connection in a transaction.
        source: The alarms' source.
        kind: The alarms' kind.
    """
    rows = connection.execute(select(_key, alarms.c.opened_at).where(*_open_of(source, kind)))
    return {key: opened_at for key, opened_at in rows}


def notification(
    event: str, source: str, kind: str, key: str, message: str, at: datetime | None = None
) -> dict[str, Any]:
    """The JSON of a request to the webhook.

    Args:
        event: "opened", "continued" or "closed".
        source: The alarm's source.
        kind: The alarm's kind.
        key: The alarm's key.
        message: The alarm's text, or the further text.
        at: When this happened; None for now.
    """
    return {
        # The field that chat programs display.
        "text": f"alarm {event}: {' '.join(filter(None, (source, kind, key)))}: {message}",
        "event": event,
        "source": source,
        "kind": kind,
        "key": key,
        "message": message,
        "runbook": runbook_of(kind, message),
        "at": (at or datetime.now(UTC)).isoformat(),
    }


def _notify(connection: Connection, event: str, source: str, kind: str, key: str, message: str, at: datetime) -> None:
    if source == SENDER:
        # An alarm about a failed webhook must not create a request to the same webhook.
        return
    payload = notification(event, source, kind, key, message, at)
    outbox.add_request(connection, consumer=SENDER, conn_id=WEBHOOK_CONN_ID, payload=payload)


def _open_of(source: str, kind: str) -> tuple[ColumnElement[bool], ...]:
    return alarms.c.source == source, _kind == kind, alarms.c.closed_at.is_(None)


def named(source: str, kind: str, key: str) -> str:
    """The alarm's source, kind and key as text for the log."""
    return f"source={source} kind={kind}" + (f" key={key}" if key else "")
