"""A real pipeline branch: the WaterFlow series of the package `river` (hourly, two months of 2022), moved in time.

The data were donated by Tecnojest s.r.l., Italy. river describes four anomalies in words, but does not label them:
three times hardly any flow, and a small peak after the first two. Their positions were read off the series, in which
nothing else is similar.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# The first and last row of each anomaly, counted from 0.
ANOMALIES = (("low", 93, 110), ("low", 211, 223), ("peak", 329, 329), ("low", 872, 887))
# The offset between the clocks there and the utility's, so that nights stay nights.
_BEHIND = timedelta(hours=9)
_HOUR, _WEEK = timedelta(hours=1), timedelta(days=7)


@dataclass(frozen=True)
class FlowHour:
    """The flow of an hour in liters, and its anomaly: "low", "peak" or None. Some hours are missing."""

    hour: datetime
    litres: float
    anomaly: str | None


def real_flow(until: datetime) -> list[FlowHour]:
    """The series in order of time, moved by whole weeks so that it ends within the week before `until`."""
    from river.datasets import WaterFlow

    rows = [(at["Time"].astimezone(UTC), litres_per_second) for at, litres_per_second in WaterFlow()]
    weeks = (until - _HOUR - (rows[-1][0] + _BEHIND)) // _WEEK
    kinds = {row: kind for kind, first, last in ANOMALIES for row in range(first, last + 1)}
    return [
        FlowHour(at + _BEHIND + weeks * _WEEK, round(litres_per_second * 3600, 1), kinds.get(row))
        for row, (at, litres_per_second) in enumerate(rows)
    ]
