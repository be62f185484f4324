"""How good a detector is: which leaks it finds, how soon, and with how many false alarms.

Leaks are rare, so the share of correct answers says nothing: a detector that never alarms is right nine nights in ten.
People can go out for only so many false alarms per year. At that number of false alarms, the measure is the water that
is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from include.water.leaks.frames import DataFrame, Series

# Alarms with at most this many quiet nights between them are about one leak: a single night may look better than it is.
QUIET_NIGHTS = 2
# A leak that is not reported within a week is found by other means, or is not worth digging for.
FIRST_NIGHTS = 7
# For a district: a crew that searches in vain twice a year.
FALSE_ALARMS_PER_YEAR = 2.0


@dataclass(frozen=True, order=True)
class Spell:
    """Nights of one district, first to last, both included: of a confirmed leak, or of alarms that belong together."""

    district_id: str
    first_night: date
    last_night: date


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
        saved: The part of the leaks' first week that is after the alarm, averaged over all leaks; 0 to 1.
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


def spells(alarms: DataFrame) -> list[Spell]:
    """Join alarms to spells; each spell is one leak that is reported once.

    Args:
        alarms: `district_id` and `night`, a row for each alarm.
    """
    found: list[Spell] = []
    for district_id, night in sorted(zip(alarms["district_id"], alarms["night"].dt.date, strict=True)):
        last = found[-1] if found else None
        if last and last.district_id == district_id and night - last.last_night <= timedelta(days=QUIET_NIGHTS + 1):
            found[-1] = Spell(district_id, last.first_night, night)
        else:
            found.append(Spell(district_id, night, night))
    return found


def evaluate(nights: DataFrame, alarm: Series, leaks: Sequence[Spell]) -> Result:
    """Compare alarms with confirmed leaks.

    A leak that began before the first night is neither missed nor found, because its first week was not seen. Alarms
    during it are right all the same.

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
    every = [part for parts in saved.values() for part in parts]
    # Alarms outside of leaks. Each leak is extended by a night on either side: it starts or is repaired during a night,
    # and that night belongs to both.
    outside = alarms
    for leak in leaks:
        first_night, last_night = (leak.first_night - timedelta(days=1), leak.last_night + timedelta(days=1))
        within = outside["night"].dt.date.between(first_night, last_night)
        outside = outside[~((outside["district_id"] == leak.district_id) & within)]
    # A false alarm is counted again every week, because a crew goes out again. Otherwise an alarm that never ends would
    # count once and would have found every leak.
    false = sum(-(-((spell.last_night - spell.first_night).days + 1) // FIRST_NIGHTS) for spell in spells(outside))
    years = len(nights) / 365.25
    return Result(
        sum(every) / len(every) if every else 0.0,
        found / len(every) if every else 0.0,
        false / years if years else 0.0,
        len(every),
        {district: sum(parts) / len(parts) for district, parts in sorted(saved.items())},
    )


def threshold_for(
    nights: DataFrame, score: Series, leaks: Sequence[Spell], false_alarms: float = FALSE_ALARMS_PER_YEAR
) -> float:
    """The lowest threshold that causes at most so many false alarms per district and year.

    One false alarm is always allowed: otherwise, in a few weeks of data, a single flushed main would decide.

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
    # Lower thresholds give more alarms, but sometimes fewer spells, where two grow into one. That is close enough to
    # sorted for a binary search to find a threshold that keeps the budget.
    best = float("inf")
    while low <= high:
        middle = (low + high) // 2
        if evaluate(nights, score >= candidates[middle], leaks).false_alarms <= false_alarms * (1 + 1e-9):
            best, low = float(candidates[middle]), middle + 1
        else:
            high = middle - 1
    return best
