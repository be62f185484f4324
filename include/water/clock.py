"""The clock that windows of time hang on: never the newest reading, whose meter may be years ahead."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from include.water.flows.definition import TIME_ZONE

# Clocks of meters and machines differ a little; and an hour is computed when its first reading has come.
TOLERANCE = timedelta(hours=1)


def horizon(now: datetime | None = None) -> datetime:
    """The time behind which readings lie ahead of the clock: they are left out until it has come."""
    return (now or datetime.now(UTC)) + TOLERANCE


def today(now: datetime | None = None) -> date:
    """The local day of the horizon."""
    return horizon(now).astimezone(TIME_ZONE).date()
