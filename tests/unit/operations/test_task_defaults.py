"""A Dag's default arguments: an owner, a timeout, retries, and an alarm when they are used up."""

from __future__ import annotations

from datetime import timedelta

import pytest

from include.streams import REPORTED, RETRIES, task_defaults

MINUTE = timedelta(minutes=1)


def test_a_task_has_an_owner_a_timeout_retries_and_reports_failures():
    made = task_defaults(MINUTE)
    assert made["owner"] not in ("", "airflow")
    assert made["execution_timeout"] == MINUTE
    assert made["retries"] == 3
    assert {name: made[name] for name in REPORTED} == REPORTED


@pytest.mark.parametrize("changes", [RETRIES, {"retries": 1}, {"queue": "batch", "owner": "billing"}])
def test_settings_of_a_dag_replace_the_defaults(changes):
    made = task_defaults(MINUTE, reported=False, **changes)
    assert {name: made[name] for name in changes} == changes
    assert not made.keys() & REPORTED.keys()
