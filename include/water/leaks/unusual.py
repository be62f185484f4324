"""Hours in which far more was lost, or far less flowed in, than is normal for that hour.

The leak model looks at nights, for water that runs away: a supply that stops, or a peak by day, is nothing to it. Here
each hour is compared with the same hour of the days before. What comes of it is shown to people and sent to nobody:
leaks are told by the model alone, which a gate holds to a budget of false alarms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from include.water.flows.definition import TIME_ZONE
from include.water.leaks.frames import DataFrame

HOUR = timedelta(hours=1)
# High is judged by the loss: what the customers' meters count is use, and no surprise. Low is judged by what flows in:
# where nothing arrives, nothing is lost either.
HIGH, LOW = "loss_litres", "inlet_litres"
# Normal is what flowed in this many days before, workdays and weekends apart: a month is of one season.
WINDOW_DAYS = 28
# Of the same kind. The fewest whose median one odd day cannot move; with fewer, nothing is said.
MIN_DAYS = 3
# The standard uncertainty of an inlet meter that may err by 2% (ISO 4064-1, accuracy class 2), evenly spread: a flow
# that has been steadier than that is not known to be.
METER_UNCERTAINTY = 0.02 / 3**0.5
# From a median absolute deviation to a standard deviation.
MAD_TO_SIGMA = 1.4826
# Standard deviations. In the simulated network, once a month of hours is known, a district has 0.15 false episodes a
# month (at 4: 0.38, at 6: 0.05), and 99% of its leaks show (at 6: 97%). In the first month, it has 2.7.
UNUSUAL = 5.0
# Unusual hours with no more than a day between them are one episode: what runs on may show only by night.
QUIET = timedelta(hours=24)


@dataclass(frozen=True)
class Episode:
    """Unusual hours of one district, all high or all low, that belong together."""

    district_id: str
    # The beginning of the first one, and the end of the last one.
    start: datetime
    end: datetime
    high: bool
    hours: int
    # Of the hour that is furthest from normal, and what is normal for it: lost when high, fed in when low.
    litres: float
    usual_litres: float


def unusual_flow(hours: DataFrame) -> list[Episode] | None:
    """By district and beginning; None when too little is known to judge any hour.

    hours: district_id, hour (UTC, its beginning), HIGH and LOW; null or absent where unknown.
    """
    found: list[Episode] = []
    judged_any = False
    for district_id, rows in hours.groupby("district_id", sort=True):
        by_hour = rows.set_index("hour").sort_index()
        for column in (HIGH, LOW):
            judged = judge(by_hour, column)
            judged_any |= bool(judged["score"].notna().any())
            found += _episodes(str(district_id), judged, high=column == HIGH)
    return sorted(found, key=lambda one: (one.district_id, one.start)) if judged_any else None


def judge(hours: DataFrame, column: str) -> DataFrame:
    """`litres`, what is `usual`, and `score` (standard deviations above it) of each hour; null: too little is known.

    hours: HIGH and LOW of one district, by hour. An hour is compared with days before its own alone. Their unusual
    hours are among them: to leave those out makes what is left ever steadier, and ever more hours unusual.
    """
    import numpy as np
    import pandas as pd

    local = hours.index.tz_convert(str(TIME_ZONE))
    days = local.tz_localize(None).normalize()
    # A row for each day, a column for each hour of its clock.
    by_day: dict[str, DataFrame] = {
        name: hours[name].groupby([days, local.hour]).mean().unstack().reindex(columns=range(24))
        for name in (HIGH, LOW)
    }
    calendar = by_day[column].index
    flows, error = by_day[column].to_numpy(), METER_UNCERTAINTY * by_day[LOW].abs().to_numpy()
    weekend = calendar.day_of_week >= 5
    usual, score = np.full_like(flows, np.nan), np.full_like(flows, np.nan)
    for n, day in enumerate(calendar):
        alike = (weekend[:n] == weekend[n]) & (calendar[:n] >= day - pd.Timedelta(days=WINDOW_DAYS))
        past = pd.DataFrame(flows[:n][alike])
        usual[n] = past.median().where(past.notna().sum() >= MIN_DAYS)
        # With those of the hours next to it, which vary as much: three days alone would say little of it.
        distances = np.abs(past.to_numpy() - usual[n])
        near = pd.DataFrame(np.vstack([np.roll(distances, by, axis=1) for by in (-1, 0, 1)]))
        # At least a litre: where nothing flows, anything would be infinitely far from it.
        score[n] = (flows[n] - usual[n]) / np.maximum(np.hypot(MAD_TO_SIGMA * near.median(), error[n]), 1.0)
    at = (calendar.get_indexer(days), local.hour)
    judged = {"litres": hours[column], "usual": usual[at], "score": score[at]}
    return pd.DataFrame(judged, index=hours.index)


def _episodes(district_id: str, judged: DataFrame, *, high: bool) -> Iterator[Episode]:
    above = judged["score"] if high else -judged["score"]
    found = judged[above >= UNUSUAL]
    apart = found.index.to_series().diff() > QUIET + HOUR
    for _, rows in found.groupby(apart.cumsum()):
        furthest = rows.loc[above[rows.index].idxmax()]
        yield Episode(
            district_id,
            rows.index[0].to_pydatetime(),
            rows.index[-1].to_pydatetime() + HOUR,
            high,
            len(rows),
            float(furthest["litres"]),
            float(furthest["usual"]),
        )
