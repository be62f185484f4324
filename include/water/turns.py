"""When a product that follows the flows may be made again."""

from __future__ import annotations

from datetime import datetime, timedelta


def next_turn(last: datetime | None, asked_at: datetime, interval: timedelta, now: datetime) -> datetime | None:
    """When the product that was asked for may be made; None when one was made since then.

    last: when it was made last. Airflow starts a run for every event, also while others wait: without None they would
    wait one after the other.
    """
    if last is None:
        return now
    if last > asked_at:
        return None
    # Never later than that from now, should a clock have been wrong.
    return min(max(now, last + interval), now + interval)
