"""How good a detector is: which leaks it finds, how soon, at how many false alarms.

Leaks are rare, so the share of right answers says nothing: never to alarm is right nine nights in ten. People can go
out to so many false alarms a year and no more; at that number of them, what counts is the water that is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from include.water.leaks.frames import DataFrame, Series

# Alarms with so many quiet nights between them, or fewer, are about one leak: one night may look better than it is.
QUIET_NIGHTS = 2
# A leak that nobody has told of within a week is found by other means, or is none to dig for.
FIRST_NIGHTS = 7
# For a district, a crew that searches in vain twice a year.
FALSE_ALARMS_PER_YEAR = 2.0


@dataclass(frozen=True, order=True)
class Spell:
    """Nights of one district, first to last, both included: of a confirmed leak, or of alarms that belong together."""

    district_id: str
    first_night: date
    last_night: date


@dataclass(frozen=True)
class Result:
    """saved: the part of the leaks' first week that lies behind the alarm, over all leaks; found: leaks with an alarm
    in their first week; both from 0 to 1. false_alarms: a district and year. saved_by_district: where there are leaks.
    """

    saved: float
    found: float
    false_alarms: float
    leaks: int
    saved_by_district: dict[str, float]


def spells(alarms: DataFrame) -> list[Spell]:
    """Alarms (district_id, night) joined to spells: each is one leak that is reported once."""
    found: list[Spell] = []
    for district_id, night in sorted(zip(alarms["district_id"], alarms["night"].dt.date, strict=True)):
        last = found[-1] if found else None
        if last and last.district_id == district_id and night - last.last_night <= timedelta(days=QUIET_NIGHTS + 1):
            found[-1] = Spell(district_id, last.first_night, night)
        else:
            found.append(Spell(district_id, night, night))
    return found


def evaluate(nights: DataFrame, alarm: Series, leaks: Sequence[Spell]) -> Result:
    """What alarms in these nights find of these leaks. nights: district_id, night; alarm: whether, in the same order.

    A leak that began before the first of the nights is no miss and no find: its first week was not seen. Alarms in it
    are right all the same.
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
    # Alarms outside of leaks. A night more on either side: a leak starts or is repaired some time, and the night there
    # is part of both.
    outside = alarms
    for leak in leaks:
        first_night, last_night = (leak.first_night - timedelta(days=1), leak.last_night + timedelta(days=1))
        within = outside["night"].dt.date.between(first_night, last_night)
        outside = outside[~((outside["district_id"] == leak.district_id) & within)]
    # Once a week a crew goes out again: an alarm that never ends would else count once, and have found every leak.
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
    """The least score to alarm at with at most so many false alarms a district and year.

    One is always allowed: in a few weeks, a single main that was flushed would else decide.
    """
    import numpy as np

    false_alarms = max(false_alarms, 365.25 / len(nights) if len(nights) else 0)

    candidates = np.unique(score.dropna())[::-1]
    low, high = 0, len(candidates) - 1
    # Lower thresholds give more alarms, and now and then fewer spells, where two grow into one: near enough to sorted
    # for halving to find a threshold that keeps the budget.
    best = float("inf")
    while low <= high:
        middle = (low + high) // 2
        if evaluate(nights, score >= candidates[middle], leaks).false_alarms <= false_alarms * (1 + 1e-9):
            best, low = float(candidates[middle]), middle + 1
        else:
            high = middle - 1
    return best
