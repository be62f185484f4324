"""Alarms: one row an episode, so that a condition that lasts is told once."""

import logging

from sqlalchemy import Connection, func, update
from sqlalchemy.dialects.postgresql import insert

from include.operations.tables import alarms

log = logging.getLogger(__name__)


def open_alarm(connection: Connection, source: str, kind: str, message: str) -> bool:
    """Open an alarm unless one of this kind is open for this source; True when it is new."""
    row = insert(alarms).values(source=source, kind=kind, message=message).on_conflict_do_nothing()
    is_new = connection.execute(row.returning(alarms.c.id)).first() is not None
    if is_new:
        log.error("alarm: source=%s kind=%s %s", source, kind, message)
    return is_new


def close_alarm(connection: Connection, source: str, kind: str) -> None:
    """End the episode, if there is one."""
    mine = update(alarms).where(alarms.c.source == source, alarms.c.kind == kind, alarms.c.closed_at.is_(None))
    connection.execute(mine.values(closed_at=func.now()))
