"""Days of a time zone as time spans: 24 hours, or 23 or 25 when the clocks change."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The beginning of the day, in UTC."""
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def hours_of(day: date, zone: ZoneInfo) -> int:
    """How many hours the day has."""
    return round((midnight(day + timedelta(days=1), zone) - midnight(day, zone)) / timedelta(hours=1))
