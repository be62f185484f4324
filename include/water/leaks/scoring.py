"""How good a detector is: which leaks it finds, how soon, and with how many false alarms.

Leaks are rare, so the share of correct answers is useless: a detector that never alarms is right nine nights in ten.
Crews can go out for a limited number of false alarms per year. At that number, detectors are compared by the water that
they save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from include.water.leaks.frames import DataFrame, Series

# Alarms with at most this many nights without an alarm between them are about one leak.
QUIET_NIGHTS = 2
# A leak that is not reported within a week is found by other means, or is not worth digging for.
FIRST_NIGHTS = 7
# The budget of a district: a crew may search in vain twice a year.
FALSE_ALARMS_PER_YEAR = 2.0


@dataclass(frozen=True, order=True)
class LeakPeriod:
    """Nights of one district, first to last, both included: of a confirmed leak, or of alarms that belong together."""

    district_id: str
    first_night: date
    last_night: date


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
        saved: The part of a leak's first week that comes after the alarm, averaged over all leaks; 0 to 1.
        found: The share of leaks with an alarm in their first week; 0 to 1.
        false_alarms: Per district and year.
        leaks: How many leaks were evaluated.
        saved_by_district: `saved` of each district that has leaks.
    """

    saved: float
    found: float
    false_alarms: float
    leaks: int
    saved_by_district: dict[str, float]


def alarm_periods(alarms: DataFrame) -> list[LeakPeriod]:
    """Join alarms to periods; each period is one leak that is reported once.

    Args:
        alarms: `district_id` and `night`, a row for each alarm.

    Returns:
        The periods, sorted by district and first night.
    """
    periods: list[LeakPeriod] = []
    for district_id, night in sorted(zip(alarms["district_id"], alarms["night"].dt.date, strict=True)):
        last = periods[-1] if periods else None
        if last and last.district_id == district_id and night - last.last_night <= timedelta(days=QUIET_NIGHTS + 1):
            periods[-1] = LeakPeriod(district_id, last.first_night, night)
        else:
            periods.append(LeakPeriod(district_id, night, night))
    return periods


def evaluate(nights: DataFrame, alarm: Series, leaks: Sequence[LeakPeriod]) -> Result:
    """Compare alarms with confirmed leaks.

    A leak that began before the first night counts neither as missed nor as found, because its first week is not in the
    data. Alarms during this leak are not false.

    Args:
        nights: `district_id` and `night`.
        alarm: Whether each night has an alarm, in the same order.
        leaks: The confirmed leaks.
    """
    alarms = nights[alarm.to_numpy()]
    first, last = nights["night"].min().date(), nights["night"].max().date()
    known = set(zip(nights["district_id"], nights["night"].dt.date, strict=True))
    by_district: dict[str, set[date]] = {}
    for district_id, night in zip(alarms["district_id"], alarms["night"].dt.date, strict=True):
        by_district.setdefault(district_id, set()).add(night)
    saved: dict[str, list[float]] = {}
    found = 0
    for leak in leaks:
        week = [
            night
            for n in range(FIRST_NIGHTS)
            if (night := leak.first_night + timedelta(days=n)) <= leak.last_night and (leak.district_id, night) in known
        ]
        if not first <= leak.first_night <= last or not week:
            continue
        alarmed = [n for n, night in enumerate(week) if night in by_district.get(leak.district_id, ())]
        saved.setdefault(leak.district_id, []).append(1 - alarmed[0] / len(week) if alarmed else 0.0)
        found += bool(alarmed)
    all_saved = [part for parts in saved.values() for part in parts]
    # Alarms outside of leaks. Each leak is extended by a night on either side: a leak starts or is repaired during a
    # night, so an alarm in that night is not false.
    outside = alarms
    for leak in leaks:
        first_night, last_night = (leak.first_night - timedelta(days=1), leak.last_night + timedelta(days=1))
        within = outside["night"].dt.date.between(first_night, last_night)
        outside = outside[~((outside["district_id"] == leak.district_id) & within)]
    # A false alarm is counted again every week, because a crew goes out again. Otherwise an alarm that never ends would
    # count once, and would find every leak.
    lengths = ((period.last_night - period.first_night).days + 1 for period in alarm_periods(outside))
    false = sum(-(-length // FIRST_NIGHTS) for length in lengths)
    years = len(nights) / 365.25
    return Result(
        sum(all_saved) / len(all_saved) if all_saved else 0.0,
        found / len(all_saved) if all_saved else 0.0,
        false / years if years else 0.0,
        len(all_saved),
        {district: sum(parts) / len(parts) for district, parts in sorted(saved.items())},
    )


def threshold_for(
    nights: DataFrame, score: Series, leaks: Sequence[LeakPeriod], false_alarms: float = FALSE_ALARMS_PER_YEAR
) -> float:
    """The lowest threshold that causes at most `false_alarms` per district and year.

    One false alarm is always allowed: otherwise, in a few weeks of data, a single flushed main would set the threshold.

    Args:
        nights: `district_id` and `night`.
        score: The score of each night.
        leaks: The confirmed leaks.
        false_alarms: The budget, per district and year.

    Returns:
        The score from which to alarm; infinity when no score keeps the budget.
    """
    import numpy as np

    false_alarms = max(false_alarms, 365.25 / len(nights) if len(nights) else 0)

    candidates = np.unique(score.dropna())[::-1]
    low, high = 0, len(candidates) - 1
    # Lower thresholds give more alarms, but sometimes fewer periods, because two become one. The number of false alarms
    # is sorted well enough for a binary search to find a threshold that keeps the budget.
    best = float("inf")
    while low <= high:
        middle = (low + high) // 2
        if evaluate(nights, score >= candidates[middle], leaks).false_alarms <= false_alarms * (1 + 1e-9):
            best, low = float(candidates[middle]), middle + 1
        else:
            high = middle - 1
    return best
