"""Nights with a leak become leaks of the report."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from include.water.dashboards.report.leaks import Alert, LeakNight, leak_of, nights_by_leak


def leak_night(district: str, day: int, litres: float = 500.0, number: int = 1, reported_as: str = "") -> LeakNight:
    night = date(2026, 11, day)
    return LeakNight(f"{district}/{night}/{number}", district, night, litres, 0.9, reported_as or district)


def test_nights_reported_as_one_leak_are_one_in_any_order():
    nights = [
        leak_night("valley", 3),
        leak_night("harbour", 2),
        leak_night("valley", 1),
        leak_night("valley", 2),
        leak_night("harbour", 4),
    ]
    assert [[night.night.day for night in leak] for leak in nights_by_leak(nights)] == [[2, 4], [1, 2, 3]]
    nights = [leak_night("valley", 1), *(leak_night("valley", day, reported_as="another") for day in (2, 3))]
    assert [len(leak) for leak in nights_by_leak(nights)] == [1, 2]
    assert nights_by_leak([]) == []


@pytest.mark.parametrize(("judged", "active"), [(5, True), (6, False), (4, True)])
def test_a_leak_is_active_until_a_later_night_is_judged_without_it(judged: int, active: bool):
    leak = leak_of([leak_night("valley", 4), leak_night("valley", 5)], {}, {"valley": date(2026, 11, judged)}, 0)
    assert leak.active is active
    assert (leak.district, leak.nights, leak.severity, leak.raised_at) == ("Valley", 2, None, None)


def test_a_leak_has_its_worst_severity_and_its_last_loss():
    nights = [
        leak_night("nowhere", 4, 9000.0),
        leak_night("nowhere", 5, 300.0),
        leak_night("nowhere", 5, 40.0, number=2),
    ]
    first, second = datetime(2026, 11, 5, tzinfo=UTC), datetime(2026, 11, 6, tzinfo=UTC)
    raised = {nights[0].leak_key: Alert("critical", 2, first), nights[1].leak_key: Alert("minor", 0, second)}
    leak = leak_of(nights, raised, {}, 3)
    assert (leak.severity, leak.raised_at, leak.litres_per_hour) == ("critical", first, 340.0)
    assert (leak.district, leak.nights, leak.work_orders) == ("nowhere", 2, 3)
