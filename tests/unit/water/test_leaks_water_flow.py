"""The detector on a real series with four known anomalies: three times hardly any flow, and a peak of one hour.

The detector looks for more water than usual in the night window, so it does not find these anomalies.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd

from include.water.flows.definition import night_of
from include.water.leaks.features import features
from include.water.leaks.model import Detector
from include.water.leaks.training import LeakAttempt
from tests.unit.water.leak_data import simulated
from tests.unit.water.water_flow import real_flow


def test_no_anomaly_of_the_real_series_is_reported_as_a_leak():
    hours = pd.DataFrame(
        [(night_of(row.hour), row.litres, row.anomaly) for row in real_flow(datetime(2026, 11, 22, tzinfo=UTC))],
        columns=["night", "litres", "anomaly"],
    ).dropna(subset=["night"])
    grouped = hours.groupby("night")["litres"]
    rows = pd.DataFrame({"least": grouped.min(), "mean": grouped.mean(), "hours": grouped.size()}).reset_index()
    rows = rows[rows["hours"] == 4].reset_index(drop=True)
    rows = pd.DataFrame(
        {
            "district_id": "water-flow",
            "night": pd.to_datetime(rows["night"]),
            "min_night_flow_lph": rows["least"],
            "metered_night_flow_lph": 0.0,
            "night_loss_lph": rows["mean"],
            "least_hourly_loss_lph": rows["least"],
        }
    )
    model, parameters = LeakAttempt(*simulated()).fit()
    joined = rows.join(features(rows))
    for detector in (Detector("baseline"), Detector("model", model, parameters["threshold"])):
        judgement = detector.judge(joined)
        assert judgement.score.notna().sum() > 35
        assert not judgement.alarm.any()
