"""Readings with all cases of the definition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

from tests.unit.water.flows.reference import Reading

INLETS = {"harbour": "M-900001", "valley": "M-900007"}


def scene(random: Random, *, days: int = 3, meters: int = 5, start: datetime | None = None) -> list[Reading]:
    """Two districts with their inlets: gaps, silences, swaps, readings on the hour and exactly 3 h apart, moves."""
    start = start or datetime(2026, 3, 6, tzinfo=UTC) + timedelta(hours=random.randrange(48))
    # In a troubled scene the loss of a district is rarely known, in a calm scene mostly.
    troubled = random.random() < 0.5
    readings = []
    for number in range(2 * meters + 2):
        district_id = ("harbour", "valley")[number % 2]
        meter_id = INLETS[district_id] if number < 2 else f"M-{number:06d}"
        litres, moment = random.randrange(10**6), start + timedelta(seconds=random.randrange(7200))
        while moment < start + timedelta(days=days):
            readings.append(Reading(meter_id, district_id, moment, litres))
            kind = random.random()
            if kind < 0.55:
                moment += timedelta(seconds=random.randint(1, 5400))
            elif kind < 0.7:
                moment = moment.replace(minute=0, second=0, microsecond=0) + timedelta(hours=random.randint(1, 3))
            elif kind < 0.8:
                moment += timedelta(hours=3, microseconds=random.choice([-1, 0, 0, troubled]))
            elif kind < (0.95 if troubled else 0.995):
                moment += timedelta(microseconds=random.randint(1, 3 * 3_600_000_000))
            else:
                moment += timedelta(hours=random.uniform(3, 40))
            swapped = random.random() < (0.03 if troubled else 0.003)
            litres = random.randrange(50) if swapped else litres + random.randrange(400)
            if number >= 2 and random.random() < 0.01:
                district_id = random.choice(("harbour", "valley"))
    return readings
