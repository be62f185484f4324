"""Schedules that join asset events, whatever the version of Airflow and the deployment's settings."""

import pytest
from airflow.sdk import Asset, CronTriggerTimetable
from airflow.sdk.definitions.asset import AssetAny

from include.streams.kafka.schedules import joined, joined_by_key, joined_or_at

ONE, OTHER = Asset("one"), Asset("other")
AT = CronTriggerTimetable("*/10 * * * *", timezone="UTC")


@pytest.mark.parametrize(
    "schedule", [joined(ONE), joined(ONE, OTHER), joined_by_key(ONE), joined_or_at(AT, ONE)], ids=lambda s: repr(s)[:20]
)
def test_events_are_joined_where_airflow_leaves_the_choice(schedule):
    assert getattr(schedule, "batch_asset_events", True) is True


def test_several_assets_start_a_run_when_any_of_them_is_updated():
    assert joined(ONE, OTHER).asset_condition == AssetAny(ONE, OTHER)
    assert joined(ONE).asset_condition == ONE


def test_a_schedule_with_times_has_both_the_times_and_the_asset():
    schedule = joined_or_at(AT, ONE)
    assert (schedule.timetable, schedule.asset_condition) == (AT, ONE)
