"""Alarms: one row an episode, so that a condition that lasts is told once."""

import logging

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from include.operations.models import Alarm

log = logging.getLogger(__name__)


def open_alarm(session: Session, source: str, kind: str, message: str) -> bool:
    """Open an alarm unless one of this kind is open for this source; True when it is new."""
    row = insert(Alarm).values(source=source, kind=kind, message=message).on_conflict_do_nothing()
    is_new = session.execute(row.returning(Alarm.id)).first() is not None
    if is_new:
        log.error("alarm: source=%s kind=%s %s", source, kind, message)
    return is_new


def close_alarm(session: Session, source: str, kind: str) -> None:
    """End the episode, if there is one."""
    mine = update(Alarm).where(Alarm.source == source, Alarm.kind == kind, Alarm.closed_at.is_(None))
    session.execute(mine.values(closed_at=func.now()))
