"""The clock that time windows depend on. It never uses the newest reading, whose meter may be years ahead."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from include.water.flows.definition import TIME_ZONE

# The clocks of meters and machines differ a little, and an hour is computed as soon as its first reading has arrived.
TOLERANCE = timedelta(hours=1)


def horizon(now: datetime | None = None) -> datetime:
    """Readings after this time are ahead of the clock: they are left out until the clock has reached them.

    Args:
        now: The clock; by default the current time.
    """
    return (now or datetime.now(UTC)) + TOLERANCE


def today(now: datetime | None = None) -> date:
    """The local day of the horizon.

    Args:
        now: The clock; by default the current time.
    """
    return horizon(now).astimezone(TIME_ZONE).date()
