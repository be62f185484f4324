"""A minimum interval between publications that follow frequent events."""

from __future__ import annotations

from datetime import datetime, timedelta


def next_publish_time(last: datetime | None, asked_at: datetime, interval: timedelta, now: datetime) -> datetime | None:
    """When a run may publish.

    Airflow starts a run for every event, also while other runs wait. A run whose request is covered by a later
    publication gets None and is skipped; otherwise the waiting runs would all publish, one after the other.

    Args:
        last: When the last publication started; None: never.
        asked_at: When this run was requested.
        interval: The least time between two publications.
        now: The current time.

    Returns:
        The time; None when something was published after the request.
    """
    if last is None:
        return now
    if last > asked_at:
        return None
    # At most an interval from now, even if `last` is in the future because a clock was wrong.
    return min(max(now, last + interval), now + interval)
