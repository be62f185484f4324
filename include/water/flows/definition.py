"""The numbers and names that define the flows. What they mean is in `sql/`."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

# Days, nights and office hours of the utility.
TIME_ZONE = ZoneInfo("America/Los_Angeles")

# Between two readings further apart than this the flow is unknown.
MAX_GAP = timedelta(hours=3)
# What the utility asks of its meters, per hour.
EXPECTED_READINGS = 1
# A meter that has been silent for longer is no longer counted as one of the district's: it was removed.
KNOWN_DAYS = 7
# A district's loss is unknown while the flow of more than one in twenty of its meters is.
MIN_COVERAGE_PERCENT = 95

# Local hours in which people use least: what flows then, leaks. [first, end)
NIGHT_FIRST_HOUR, NIGHT_END_HOUR = 1, 5


def night_of(hour: datetime) -> date | None:
    """The night (the day on which it began) to whose window an hour belongs; None for an hour of no window."""
    local = hour.astimezone(TIME_ZONE)
    if not NIGHT_FIRST_HOUR <= local.hour < NIGHT_END_HOUR:
        return None
    return local.date() - timedelta(days=1)
