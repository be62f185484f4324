"""Find hours in which far more was lost, or far less flowed in, than is usual for that hour.

The leak model looks at nights, for water that runs away; it cannot see a supply that stops, or a peak by day. Here each
hour is compared with the same hour of the days before. The result is shown to people, but nobody is notified: only the
model reports leaks, because a gate holds it to a budget of false alarms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from include.water.flows.definition import TIME_ZONE
from include.water.leaks.frames import DataFrame

HOUR = timedelta(hours=1)
# High hours are judged by the loss: a high use by customers is not unusual. Low hours are judged by the inflow: without
# an inflow, there is no loss either.
HIGH, LOW = "loss_litres", "inlet_litres"
# Usual is the flow of this many days before, with workdays and weekends separate: a month is within one season.
WINDOW_DAYS = 28
# The least number of days of the same kind to judge an hour. One odd day among three does not move the median.
MIN_DAYS = 3
# The standard uncertainty of an inlet meter that may err by 2% (ISO 4064-1, accuracy class 2), with evenly distributed
# errors. A smaller deviation cannot be distinguished from an error of the meter.
METER_UNCERTAINTY = 0.02 / 3**0.5
# The factor from a median absolute deviation to a standard deviation.
MAD_TO_SIGMA = 1.4826
# In standard deviations. In the simulated network, once a month of hours is known, a district has 0.15 false episodes
# per month (with 4: 0.38, with 6: 0.05), and 99% of its leaks show (with 6: 97%). In the first month it has 2.7.
UNUSUAL = 5.0
# Unusual hours with at most a day between them are one episode: a lasting problem may show only by night.
QUIET = timedelta(hours=24)


@dataclass(frozen=True)
class Episode:
    """Unusual hours of one district, all high or all low, that belong together."""

    district_id: str
    # The beginning of the first hour, and the end of the last hour.
    start: datetime
    end: datetime
    high: bool
    hours: int
    # The value of the hour that is furthest from usual, and its usual value, in liters per hour: the loss if high, else
    # the inflow.
    litres: float
    usual_litres: float


def unusual_flow(hours: DataFrame) -> list[Episode] | None:
    """Find the unusual episodes.

    Args:
        hours: `district_id`, `hour` (its beginning, UTC), HIGH and LOW in liters; null or absent where unknown.

    Returns:
        The episodes, sorted by district and beginning; None when too little is known to judge any hour.
    """
    episodes: list[Episode] = []
    judged_any = False
    for district_id, rows in hours.groupby("district_id", sort=True):
        by_hour = rows.set_index("hour").sort_index()
        for column in (HIGH, LOW):
            judged = judge(by_hour, column)
            judged_any |= bool(judged["score"].notna().any())
            episodes += _episodes(str(district_id), judged, high=column == HIGH)
    return sorted(episodes, key=lambda episode: (episode.district_id, episode.start)) if judged_any else None


def judge(hours: DataFrame, column: str) -> DataFrame:
    """Compare each hour with the same hour of earlier days.

    Unusual hours stay among the earlier days. If they were removed, the other hours would vary less and less, and more
    and more hours would be unusual.

    Args:
        hours: HIGH and LOW of one district, indexed by hour (UTC).
        column: HIGH or LOW.

    Returns:
        For each hour: `litres`; `usual`, the usual value; `score`, the number of standard deviations above it. Null:
        too little is known.
    """
    import numpy as np
    import pandas as pd

    local = hours.index.tz_convert(str(TIME_ZONE))
    days = local.tz_localize(None).normalize()
    # A row for each day, a column for each hour of the local clock.
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
        # Include the deviations of the neighboring hours, which vary as much: three days alone would be too few.
        distances = np.abs(past.to_numpy() - usual[n])
        deviations = pd.DataFrame(np.vstack([np.roll(distances, by, axis=1) for by in (-1, 0, 1)]))
        # At least a liter: without any flow, every difference would be infinite.
        score[n] = (flows[n] - usual[n]) / np.maximum(np.hypot(MAD_TO_SIGMA * deviations.median(), error[n]), 1.0)
    at = (calendar.get_indexer(days), local.hour)
    judged = {"litres": hours[column], "usual": usual[at], "score": score[at]}
    return pd.DataFrame(judged, index=hours.index)


def _episodes(district_id: str, judged: DataFrame, *, high: bool) -> Iterator[Episode]:
    above = judged["score"] if high else -judged["score"]
    unusual = judged[above >= UNUSUAL]
    apart = unusual.index.to_series().diff() > QUIET + HOUR
    for _, rows in unusual.groupby(apart.cumsum()):
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
