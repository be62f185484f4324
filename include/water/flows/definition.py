"""The constants that define the flows. The SQL files in `sql/` use them."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

# Days, nights and office hours of the utility.
TIME_ZONE = ZoneInfo("America/Los_Angeles")

# The flow between two readings is unknown if they are further apart than this.
MAX_GAP = timedelta(hours=3)
# Readings that the utility expects of each meter per hour.
EXPECTED_READINGS = 1
# A meter that has been silent for longer counts as removed from its district.
KNOWN_DAYS = 7
# A district's loss is unknown if the flow of more than 5% of its meters is unknown.
MIN_COVERAGE_PERCENT = 95

# The local hours in which people use least, so that most of the flow is leakage: [first, end).
NIGHT_FIRST_HOUR, NIGHT_END_HOUR = 1, 5


def night_of(hour: datetime) -> date | None:
    """The night whose window contains the hour, as the day on which the night began; None if no window contains it."""
    local = hour.astimezone(TIME_ZONE)
    if not NIGHT_FIRST_HOUR <= local.hour < NIGHT_END_HOUR:
        return None
    return local.date() - timedelta(days=1)
