"""A product that follows the flows is made once for what was asked, and not more often than its interval."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from include.water.turns import next_turn

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTERVAL = timedelta(minutes=10)


def minutes(number: int) -> datetime:
    return NOW + timedelta(minutes=number)


@pytest.mark.parametrize(
    ("last", "asked_at", "turn"),
    [
        (None, minutes(-1), NOW),
        (minutes(-30), minutes(-1), NOW),
        (minutes(-4), minutes(-1), minutes(6)),
        (minutes(-4), minutes(-4), minutes(6)),
        (minutes(-1), minutes(-4), None),
    ],
    ids=["never made", "long ago", "a moment ago", "at the very moment", "made since it was asked for"],
)
def test_the_next_turn(last, asked_at, turn):
    assert next_turn(last, asked_at, INTERVAL, NOW) == turn


def test_a_clock_that_was_wrong_delays_it_by_no_more_than_the_interval():
    assert next_turn(minutes(600), minutes(601), INTERVAL, NOW) == NOW + INTERVAL
