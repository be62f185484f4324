"""Features use no later nights, scores compare at a fixed cost, and the model is better than a threshold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest

from include.streams.models import files
from include.water.flows.definition import night_of
from include.water.leaks import training
from include.water.leaks.confirmed import FOREVER, nights_of
from include.water.leaks.features import FEATURES, features
from include.water.leaks.model import ALLOWED_TYPES, Detector, baseline_score
from include.water.leaks.nights import with_least_loss
from include.water.leaks.scoring import LeakPeriod, alarm_periods, evaluate, threshold_for
from include.water.leaks.training import GATE, LeakAttempt, NotEnough
from tests.unit.water.leak_data import simulated


def test_later_nights_do_not_change_the_features_of_a_night():
    rows = simulated()[0].rows
    all_features = features(rows)
    nights = np.sort(rows["night"].unique())
    for until in (nights[15], nights[40], nights[77]):
        then = rows["night"] <= until
        pd.testing.assert_frame_equal(features(rows[then]), all_features[then])


def test_a_changed_night_does_not_change_earlier_features():
    rows = simulated()[0].rows
    last = rows["night"] == rows["night"].max()
    changed = rows.assign(least_hourly_loss_lph=rows["least_hourly_loss_lph"].where(~last, 1e6))
    before, after = features(rows), features(changed)
    pd.testing.assert_frame_equal(after[~last], before[~last])
    assert (after["least_loss"][last] > before["least_loss"][last]).all()


def test_later_nights_do_not_change_the_baseline():
    rows = simulated()[0].rows
    then = rows["night"] <= np.sort(rows["night"].unique())[60]
    pd.testing.assert_series_equal(baseline_score(rows[then]), baseline_score(rows)[then])


def test_a_night_without_enough_earlier_nights_has_no_score():
    rows = simulated()[0].rows
    early = rows["night"] < np.sort(rows["night"].unique())[10]
    assert features(rows)[["least_loss"]][early].isna().all().all()
    assert features(rows)[list(FEATURES)][~early].notna().all().all()


def test_a_leak_of_three_weeks_does_not_become_usual():
    nights = pd.date_range("2026-01-01", periods=70)
    loss = np.where(np.arange(70) >= 45, 600.0, 100.0)
    rows = pd.DataFrame({"district_id": "a", "night": nights, "least_hourly_loss_lph": loss})
    rows = rows.assign(min_night_flow_lph=loss, metered_night_flow_lph=50.0, night_loss_lph=loss)
    assert features(rows)["least_loss"].iloc[-5] > 1.5


def test_only_complete_nights_with_known_flows_are_used():
    hour = pd.to_datetime(["2026-01-02T10:00Z", "2026-01-02T11:00Z", "2026-01-02T20:00Z"], utc=True)
    hours = pd.DataFrame({"district_id": "a", "hour": hour, "loss_litres": [30.0, 20.0, 1.0]})
    night = {"district_id": "a", "min_night_flow_lph": 1.0, "metered_night_flow_lph": 1.0, "night_loss_lph": 1.0}
    rows = pd.DataFrame([{**night, "night": pd.Timestamp(day)} for day in ("2026-01-01", "2026-01-02")])
    nights = with_least_loss(rows, hours)
    # The hour at noon is in no night, and the second night has no known hour.
    assert nights[["night", "least_hourly_loss_lph"]].to_numpy().tolist() == [[pd.Timestamp("2026-01-01"), 20.0]]


def frame(*nights: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame({"district_id": [d for d, _ in nights], "night": pd.to_datetime([n for _, n in nights])})


def test_alarms_at_most_two_quiet_nights_apart_are_one_leak():
    alarms = frame(("a", "2026-01-01"), ("a", "2026-01-04"), ("a", "2026-01-08"), ("b", "2026-01-05"))
    assert alarm_periods(alarms) == [
        LeakPeriod("a", date(2026, 1, 1), date(2026, 1, 4)),
        LeakPeriod("a", date(2026, 1, 8), date(2026, 1, 8)),
        LeakPeriod("b", date(2026, 1, 5), date(2026, 1, 5)),
    ]


def test_the_score_is_of_early_alarms_and_few_false_alarms():
    nights = frame(*((d, f"2026-01-{n:02d}") for d in "ab" for n in range(1, 29)))
    leaks = [
        LeakPeriod("a", date(2026, 1, 10), date(2026, 1, 20)),
        LeakPeriod("b", date(2026, 1, 10), date(2026, 1, 11)),
    ]
    at = {("a", 13), ("a", 14), ("a", 3), ("b", 20)}
    alarm = pd.Series([(d, n.day) in at for d, n in zip(nights["district_id"], nights["night"], strict=True)])
    result = evaluate(nights, alarm, leaks)
    assert result.saved_by_district == {"a": pytest.approx(4 / 7), "b": 0.0}
    assert (result.saved, result.found, result.leaks) == (pytest.approx(2 / 7), 0.5, 2)
    assert result.false_alarms == pytest.approx(2 / (56 / 365.25))
    score = alarm.astype(float)
    assert threshold_for(nights, score, leaks, false_alarms=1.0) == float("inf")
    assert threshold_for(nights, score, leaks, false_alarms=15.0) == 1.0


def test_an_endless_alarm_counts_as_many_false_alarms():
    nights = frame(*(("a", f"2026-01-{n:02d}") for n in range(1, 29)))
    leaks = [LeakPeriod("a", date(2026, 1, 10), date(2026, 1, 12))]
    result = evaluate(nights, pd.Series([True] * 28), leaks)
    # The 1st to the 8th, and the 14th to the 28th: two weeks and three.
    assert (result.saved, result.false_alarms) == (1.0, pytest.approx(5 / (28 / 365.25)))


def test_a_leak_belongs_to_the_nights_in_whose_window_it_runs():
    # 02:00 to 04:00 in the morning of the 2nd, Pacific time: one night, which began on the 1st.
    start, end = datetime(2026, 1, 2, 10, tzinfo=UTC), datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert nights_of("a", start, end) == LeakPeriod("a", date(2026, 1, 1), date(2026, 1, 1))
    assert night_of(start) == date(2026, 1, 1)
    assert nights_of("a", datetime(2026, 1, 2, 18, tzinfo=UTC), datetime(2026, 1, 2, 22, tzinfo=UTC)) is None


@pytest.fixture(scope="module")
def attempt() -> LeakAttempt:
    return LeakAttempt(*simulated())


def test_training_and_held_out_nights_exclude_the_newest(attempt: LeakAttempt):
    assert attempt.training["night"].max() < attempt.held_out["night"].min()
    last = attempt.rows["night"].max()
    assert attempt.held_out["night"].max() == last - pd.Timedelta(days=training.UNCONFIRMED_NIGHTS)


def test_the_model_beats_the_baseline_on_unseen_leaks(attempt: LeakAttempt):
    model, parameters = attempt.fit()
    candidate, baseline = attempt.score(model, parameters), attempt.score_baseline()
    assert GATE.judge(candidate, {"the baseline": baseline}, "the baseline").passed
    assert candidate.score > baseline.score + 0.1


def test_a_worse_candidate_is_blocked(attempt: LeakAttempt):
    """A model that was trained on inverted labels."""
    champion, parameters = attempt.fit()
    worse = LeakAttempt(*simulated())
    worse._is_leak = ~worse._is_leak
    candidate, own = worse.fit()
    verdict = GATE.judge(
        attempt.score(candidate, own),
        {"the baseline": attempt.score_baseline(), "the champion": attempt.score(champion, parameters)},
        "the champion",
    )
    assert not verdict.passed
    assert any(reason.startswith("does not beat the champion") for reason in verdict.reasons)


def test_the_same_data_give_the_same_model_and_fingerprint(attempt: LeakAttempt):
    again = LeakAttempt(*simulated())
    assert again.fingerprint == attempt.fingerprint
    first, second = attempt.fit(), again.fit()
    assert first[1] == second[1]
    assert np.array_equal(first[0][-1].coef_, second[0][-1].coef_)


def test_another_leak_or_reading_changes_the_fingerprint(attempt: LeakAttempt):
    nights, leaks = simulated()
    rows = nights.rows.assign(night_loss_lph=nights.rows["night_loss_lph"].where(nights.rows.index != 5, 1.0))
    assert LeakAttempt(replace(nights, rows=rows), leaks).fingerprint != attempt.fingerprint
    assert LeakAttempt(nights, leaks[1:]).fingerprint != attempt.fingerprint


def test_the_models_file_holds_only_listed_types(attempt: LeakAttempt):
    model, _ = attempt.fit()
    data = files.to_bytes(model, ALLOWED_TYPES)
    assert set(files.types_in(data)) <= set(ALLOWED_TYPES)


def test_without_confirmed_leaks_there_is_nothing_to_train_on():
    nights, _ = simulated()
    with pytest.raises(NotEnough, match="0 confirmed leaks"):
        LeakAttempt(nights, [])
    with pytest.raises(NotEnough, match="no complete night"):
        LeakAttempt(replace(nights, rows=nights.rows.iloc[:0]), [])


def test_a_running_leak_is_training_data():
    assert any(leak.last_night == FOREVER for leak in simulated()[1])


def test_without_a_champion_the_baseline_alarms_on_a_burst():
    rows = simulated()[0].rows
    judgement = Detector("baseline").judge(rows.join(features(rows)))
    assert judgement.alarm[rows["min_night_flow_lph"] > 2_000].mean() > 0.9
    assert judgement.alarm.mean() < 0.4
    assert (judgement.confidence.dropna() == 0.5).all()


def test_a_model_alarm_has_enough_confidence_for_an_alert(attempt: LeakAttempt):
    model, parameters = attempt.fit()
    judgement = Detector("v", model, parameters["threshold"]).judge(attempt.held_out)
    assert judgement.alarm.any()
    assert judgement.confidence[judgement.alarm].min() >= 0.5
    assert judgement.confidence[~judgement.alarm].max() < 0.5
    assert judgement.litres_per_hour[judgement.alarm].min() > 0
