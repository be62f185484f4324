"""A requested publication happens once, and at most once per interval."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from include.water.throttle import next_publish_time

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTERVAL = timedelta(minutes=10)


def minutes(number: int) -> datetime:
    return NOW + timedelta(minutes=number)


@pytest.mark.parametrize(
    ("last", "asked_at", "expected"),
    [
        (None, minutes(-1), NOW),
        (minutes(-30), minutes(-1), NOW),
        (minutes(-4), minutes(-1), minutes(6)),
        (minutes(-4), minutes(-4), minutes(6)),
        (minutes(-1), minutes(-4), None),
    ],
    ids=["never published", "long ago", "less than an interval ago", "at the time of the request", "after the request"],
)
def test_the_next_publish_time(last, asked_at, expected):
    assert next_publish_time(last, asked_at, INTERVAL, NOW) == expected


def test_a_wrong_clock_delays_a_publication_by_at_most_the_interval():
    assert next_publish_time(minutes(600), minutes(601), INTERVAL, NOW) == NOW + INTERVAL
