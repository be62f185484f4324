"""Realistic data of a report, created from a seed."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta

from include.water.dashboards.report.data import (
    Balance,
    Day,
    District,
    Leak,
    Model,
    Night,
    Quality,
    ReportData,
    Suite,
)
from include.water.leaks.unusual import Episode
from include.water.sites import DISTRICTS

LAST_DAY = date(2026, 11, 21)
NIGHTS = 28
# {district: (nights before the last on which the leak began, liters per hour, nights before the last on which it was
# repaired; None: it still runs)}.
LEAKS = {"riverbend": (9, 2_150.0, None), "valley": (4, 940.0, None), "old-town": (22, 1_480.0, 13)}
# (district, days before LAST_DAY and UTC hour of the beginning, hours, unusual hours, liters, usual liters).
UNUSUAL = (
    ("riverbend", 9, 10, 227, 203, 2_640.0, 388.0),
    ("valley", 4, 6, 111, 104, 1_420.0, 431.0),
    ("lakeview", 2, 17, 5, 5, 640.0, 7_912.0),
    ("hillside", 6, 9, 3, 3, 1_348.0, 307.0),
    ("old-town", 22, 11, 224, 187, 2_105.0, 655.0),
)


def sample(seed: int = 7) -> ReportData:
    chance = random.Random(seed)
    days = [LAST_DAY - timedelta(days=n) for n in reversed(range(NIGHTS))]
    districts, totals = [], {day: [0.0, 0.0] for day in days}
    for district in DISTRICTS.values():
        use = district.meters * chance.uniform(330, 420)
        background = district.meters * chance.uniform(0.7, 1.9)
        nights, daily = [], []
        for n, day in enumerate(days):
            left = NIGHTS - 1 - n
            leak = _leak_on(district.district_id, left)
            metered = use * (1.08 if day.weekday() >= 5 else 1.0) * chance.uniform(0.96, 1.04)
            loss_lph = background * chance.uniform(0.88, 1.12) + leak * chance.uniform(0.93, 1.07)
            complete = not (district.district_id == "westshore" and left in (5, 6))
            nights.append(Night(day, loss_lph if left != 17 else None, complete))
            inlet = metered * 1.018 + 24 * loss_lph * 0.94
            daily.append((inlet, metered))
            totals[day][0] += inlet
            totals[day][1] += metered
        districts.append(
            District(
                district.district_id,
                district.name,
                _mean(daily[-7:], district.meters, 168 if district.district_id != "westshore" else 159),
                _mean(daily[-14:-7], district.meters, 168),
                tuple(nights),
            )
        )
    expected = 24 * len(DISTRICTS)
    known = {day: expected for day in days} | {days[-6]: expected - 5, days[-7]: expected - 4}
    today = LAST_DAY + timedelta(days=1)
    all_days = [Day(day, *totals[day], known[day], expected) for day in days]
    all_days.append(Day(today, totals[days[-1]][0] * 0.55, totals[days[-1]][1] * 0.55, 13 * len(DISTRICTS), expected))
    return ReportData(
        computed_at=datetime(2026, 11, 22, 21, 6, tzinfo=UTC),
        timezone="America/Los_Angeles",
        data_up_to=datetime(2026, 11, 22, 21, 0, tzinfo=UTC),
        period=(LAST_DAY - timedelta(days=6), LAST_DAY),
        days=tuple(all_days),
        districts=tuple(districts),
        leaks=tuple(_leak(name, chance) for name in LEAKS),
        unusual=tuple(_episode(*row) for row in UNUSUAL),
        quality=Quality(
            since=datetime(2026, 11, 15, 8, 0, tzinfo=UTC),
            landed=482_133,
            clean=480_027,
            dead_lettered=214,
            duplicates=1_892,
            reasons=(("schema", 131), ("not_json", 52), ("out_of_range", 23), ("future_time", 8)),
            missing_readings=1_306,
            suites=(
                Suite("meter_readings", True, datetime(2026, 11, 22, 21, 3, tzinfo=UTC), 9),
                Suite("site_register", True, datetime(2026, 11, 20, 6, 0, tzinfo=UTC), 6),
            ),
        ),
        model=Model(
            "leaks-20261121-3f9a1c",
            datetime(2026, 11, 21, 14, 20, tzinfo=UTC),
            (
                ("Kind", "Isolation of unusual nights, gradient boosting"),
                ("Nights it learned from", "1,344, of 8 districts"),
                ("Leaks found in the test nights", "92% (fixed threshold: 71%)"),
                ("False alarms in the test nights", "3% (fixed threshold: 9%)"),
            ),
        ),
    )


def _leak_on(district_id: str, left: int) -> float:
    began, size, repaired = LEAKS.get(district_id, (-1, 0.0, None))
    return size if (repaired or 0) <= left <= began else 0.0


def _leak(district_id: str, chance: random.Random) -> Leak:
    began, size, repaired = LEAKS[district_id]
    return Leak(
        DISTRICTS[district_id].name,
        LAST_DAY - timedelta(days=began),
        LAST_DAY - timedelta(days=repaired or 0),
        began - (repaired or 0) + 1,
        size,
        chance.uniform(0.8, 0.99),
        repaired is None,
        "critical" if size > 1_500 else "major",
        datetime(2026, 11, 22, 13, 0, tzinfo=UTC) - timedelta(days=began),
        1 if size > 1_000 else 0,
    )


def _episode(name: str, days: int, hour: int, length: int, hours: int, litres: float, usual: float) -> Episode:
    start = datetime(LAST_DAY.year, LAST_DAY.month, LAST_DAY.day, hour, tzinfo=UTC) - timedelta(days=days)
    return Episode(name, start, start + timedelta(hours=length), litres > usual, hours, litres, usual)


def _mean(daily: list[tuple[float, float]], meters: int, known_hours: int) -> Balance:
    inlet, metered = (sum(values) / len(daily) for values in zip(*daily, strict=True))
    return Balance(inlet, metered, known_hours, 168, meters)
