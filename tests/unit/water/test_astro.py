"""The example's part of the files of the Astro CLI."""

from __future__ import annotations

import json
import subprocess
import sys

import yaml

from stack.requirements import PROJECT

COMPOSE = yaml.safe_load((PROJECT / "docker-compose.override.yml").read_text())
SETTINGS = yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text())["airflow"]


def test_the_feed_is_the_real_one():
    connections = {connection["conn_id"]: connection for connection in SETTINGS["connections"]}
    assert connections["seismic_feed"]["conn_host"] == "https://earthquake.usgs.gov"


def test_the_simulators_run_only_in_their_profile_with_valid_arguments():
    service = COMPOSE["services"]["simulators"]
    assert service["profiles"] == ["simulators"]
    python, *arguments = service["command"]
    assert python == "python"
    result = subprocess.run([sys.executable, *arguments, "--help"], cwd=PROJECT, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_simulators_have_the_connections_of_airflow():
    environment = COMPOSE["services"]["simulators"]["environment"]
    for connection in SETTINGS["connections"]:
        if value := environment.get(f"AIRFLOW_CONN_{connection['conn_id'].upper()}"):
            expected = {"conn_type": connection["conn_type"], "extra": json.loads(connection["conn_extra"])}
            assert json.loads(value) == expected
    assert environment["AIRFLOW_VAR_ARTIFACTS_BUCKET"] == SETTINGS["variables"][0]["variable_value"]
