"""Schedules join asset events in every version of Airflow, with any settings of the deployment."""

import pytest
from airflow.sdk import Asset, CronTriggerTimetable
from airflow.sdk.definitions.asset import AssetAny

from include.streams.kafka.schedules import joined, joined_by_key, joined_or_at

FIRST, SECOND = Asset("first"), Asset("second")
AT = CronTriggerTimetable("*/10 * * * *", timezone="UTC")


@pytest.mark.parametrize(
    "schedule",
    [joined(FIRST), joined(FIRST, SECOND), joined_by_key(FIRST), joined_or_at(AT, FIRST)],
    ids=lambda s: repr(s)[:20],
)
def test_events_are_joined_if_airflow_lets_the_schedule_choose(schedule):
    assert getattr(schedule, "batch_asset_events", True) is True


def test_several_assets_start_a_run_when_any_of_them_is_updated():
    assert joined(FIRST, SECOND).asset_condition == AssetAny(FIRST, SECOND)
    assert joined(FIRST).asset_condition == FIRST


def test_a_schedule_with_times_has_the_times_and_the_asset():
    schedule = joined_or_at(AT, FIRST)
    assert (schedule.timetable, schedule.asset_condition) == (AT, FIRST)
