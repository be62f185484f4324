"""Unusual hours: on a real series with four known anomalies, on the simulated network, and case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from include.water.leaks.unusual import HIGH, HOUR, LOW, MIN_DAYS, Episode, judge, unusual_flow
from include.water.simulators.network import Network
from include.water.simulators.planted import EPOCH, plan_flushing
from tests.unit.water.exact_flows import district_hours
from tests.unit.water.water_flow import ANOMALIES, real_flow

# A Monday, midnight in California.
MONDAY = datetime(2026, 9, 7, 7, tzinfo=UTC)
DAY = timedelta(days=1)


def steady(days: int, **changes: float) -> pd.DataFrame:
    """A district with an inflow of about 100 liters per hour, 20 of them lost; `changes`: h<n>=inflow in liters."""
    hours = [MONDAY + n * HOUR for n in range(24 * days)]
    inlet = 100 + 2 * np.random.default_rng(1).standard_normal(len(hours))
    for name, litres in changes.items():
        inlet[int(name[1:])] = litres
    return pd.DataFrame({"district_id": "a", "hour": pd.DatetimeIndex(hours), LOW: inlet, HIGH: inlet - 80})


def test_exactly_the_four_anomalies_of_the_real_series_are_found():
    rows = real_flow(datetime(2026, 11, 22, tzinfo=UTC))
    # The series has no customers' meters: the whole inflow counts as lost.
    litres = [row.litres for row in rows]
    hours = pd.DataFrame({"district_id": "real", "hour": pd.DatetimeIndex([row.hour for row in rows])})
    episodes = unusual_flow(hours.assign(**{LOW: litres, HIGH: litres}))
    assert episodes
    assert len(episodes) == len(ANOMALIES)
    for episode, (kind, first, last) in zip(episodes, ANOMALIES, strict=True):
        assert episode.high == (kind == "peak")
        assert rows[first].hour <= episode.start <= rows[first].hour + HOUR
        # The labels include the last hour that is not quite back to usual.
        assert rows[last].hour - 3 * HOUR <= episode.end <= rows[last].hour + HOUR


def test_leaks_of_the_simulated_network_show_with_few_false_episodes():
    network, start = Network(1), EPOCH + 200 * DAY
    known, until = start + 28 * DAY, start + 75 * DAY
    episodes = unusual_flow(district_hours(network, start, until).to_pandas())
    assert episodes
    leaks = network.planted_leaks(start, until)
    water = [(leak.district_id, leak.start, leak.end) for leak in leaks]
    water += [(district_id, flow.start, flow.end) for district_id, flow in plan_flushing(1)]

    def is_true(episode: Episode) -> bool:
        return episode.high and any(
            episode.district_id == district_id and first - HOUR < episode.end and episode.start <= last
            for district_id, first, last in water
        )

    # By then a month of hours is known; before, it may be only three days.
    false = [episode for episode in episodes if episode.start >= known and not is_true(episode)]
    assert len(false) <= 8 * (until - known) / (61 * DAY)
    new = [leak for leak in leaks if leak.start >= known and leak.end <= until]
    seen = [
        any(one.high and one.district_id == leak.district_id and one.start <= leak.end < until for one in episodes)
        for leak in new
    ]
    assert len(new) > 5
    assert all(seen)


def test_a_stopped_supply_is_low_and_unmetered_water_is_high():
    episodes = unusual_flow(steady(10, h200=3.0, h201=2.0, h100=180.0))
    assert episodes is not None
    assert [(episode.high, episode.start, episode.end, episode.hours) for episode in episodes] == [
        (True, MONDAY + 100 * HOUR, MONDAY + 101 * HOUR, 1),
        (False, MONDAY + 200 * HOUR, MONDAY + 202 * HOUR, 2),
    ]
    high, low = episodes
    assert (high.litres, low.litres) == (100.0, 2.0)
    assert high.usual_litres == pytest.approx(20, abs=3)
    assert low.usual_litres == pytest.approx(100, abs=3)


def test_metered_use_is_never_unusually_high():
    hours = steady(10)
    hours.loc[100, LOW] = 500.0  # and the loss as ever
    assert unusual_flow(hours) == []


def test_later_hours_do_not_change_the_judgement_of_an_hour():
    hours = steady(12, h250=30.0).set_index("hour")
    judged = judge(hours, LOW)
    for until in (100, 170, 251):
        pd.testing.assert_frame_equal(judge(hours[:until], LOW), judged[:until])
    again = hours.assign(**{LOW: hours[LOW].where(hours.index < MONDAY + 9 * DAY, 1e6)})
    earlier = judged.index < MONDAY + 9 * DAY
    pd.testing.assert_frame_equal(judge(again, LOW)[earlier], judged[earlier])


def test_workdays_and_weekends_need_days_of_their_own():
    judged = judge(steady(15).set_index("hour"), LOW)["score"].notna()
    by_day = judged.to_numpy().reshape(15, 24)
    assert (by_day.all(axis=1) == by_day.any(axis=1)).all()
    # Workdays are judged from Thursday on, weekends from the second Sunday on.
    assert by_day.all(axis=1).tolist() == [False] * MIN_DAYS + [True] * 2 + [False] * 2 + [True] * 5 + [
        False,
        True,
        True,
    ]
    assert unusual_flow(steady(MIN_DAYS)) is None
    assert unusual_flow(steady(1).iloc[:0]) is None


def test_hours_that_are_unknown_are_neither_unusual_nor_usual():
    hours = steady(12, h250=20.0)
    hours.loc[hours.index % 7 == 0, [LOW, HIGH]] = None
    hours = hours.drop(index=range(100, 130))
    episodes = unusual_flow(hours)
    assert episodes is not None
    assert [(episode.start, episode.hours) for episode in episodes] == [(MONDAY + 250 * HOUR, 1)]


def test_unusual_hours_of_one_day_are_one_episode_and_of_two_days_two():
    episodes = unusual_flow(steady(15, h220=200.0, h244=200.0, h271=200.0, h344=200.0))
    assert episodes is not None
    assert [(episode.start, episode.hours) for episode in episodes] == [
        (MONDAY + 220 * HOUR, 2),
        (MONDAY + 271 * HOUR, 1),
        (MONDAY + 344 * HOUR, 1),
    ]


def test_without_usual_flow_a_drop_is_not_unusual():
    hours = steady(8).assign(**{LOW: 0.0, HIGH: 0.0})
    hours.loc[100, [LOW, HIGH]] = 2.0
    assert unusual_flow(hours) == []
