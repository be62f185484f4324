"""The time at which a product that follows the flows may be made again."""

from __future__ import annotations

from datetime import datetime, timedelta


def next_turn(last: datetime | None, asked_at: datetime, interval: timedelta, now: datetime) -> datetime | None:
    """When the requested product may be made.

    Airflow starts a run for every event, even while others wait. Without the result None they would wait one after the
    other.

    Args:
        last: When the product was last made; None: never.
        asked_at: When it was requested.
        interval: The least time between two products.
        now: The current time.

    Returns:
        The time; None when a product was made after the request.
    """
    if last is None:
        return now
    if last > asked_at:
        return None
    # Never later than an interval from now, in case a clock was wrong.
    return min(max(now, last + interval), now + interval)
