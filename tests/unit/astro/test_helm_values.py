"""The Helm values: the settings of the local stack, the packages' Airflow, and statements that hold."""

from __future__ import annotations

import re

import pytest
import yaml

from stack.airflow import SETTINGS
from stack.requirements import PROJECT


@pytest.fixture(scope="module")
def values() -> dict:
    return yaml.safe_load((PROJECT / "deploy" / "helm" / "values.yaml").read_text())


def test_its_settings_are_those_of_the_local_stack(values: dict):
    assert values["config"]["scheduler"]
    for name, value in values["config"]["scheduler"].items():
        assert value == SETTINGS[f"SCHEDULER__{name.upper()}"]


def test_its_airflow_is_that_of_the_project(values: dict):
    pinned = re.search(r'"apache-airflow==([\d.]+)"', (PROJECT / "pyproject.toml").read_text())
    assert pinned
    assert values["airflowVersion"] == pinned[1]


def test_dag_files_come_with_the_image_only(values: dict):
    assert not values["dags"]["gitSync"]["enabled"]
    assert not values["dags"]["persistence"]["enabled"]


def test_a_worker_always_runs_and_no_component_is_alone(values: dict):
    assert values["workers"]["replicas"] >= 1
    assert values["scheduler"]["replicas"] >= 2
    assert values["triggerer"]["replicas"] >= 2
