"""The Astro CLI can read the Deployment file; the workflow tests before it deploys."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stack.airflow import SETTINGS
from stack.requirements import PROJECT

# The keys of the file that the CLI reads (its cloud/deployment/inspect).
KEYS = {
    "configuration": {
        "name",
        "description",
        "runtime_version",
        "dag_deploy_enabled",
        "ci_cd_enforcement",
        "scheduler_size",
        "is_high_availability",
        "is_development_mode",
        "executor",
        "scheduler_au",
        "scheduler_count",
        "cluster_name",
        "workspace_name",
        "deployment_type",
        "cloud_provider",
        "region",
        "default_task_pod_cpu",
        "default_task_pod_memory",
        "resource_quota_cpu",
        "resource_quota_memory",
        "default_worker_type",
        "workload_identity",
    },
    "worker_queues": {"name", "max_worker_count", "min_worker_count", "worker_concurrency", "worker_type"},
    "environment_variables": {"is_secret", "key", "updated_at", "value"},
}
WORKFLOW = PROJECT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def deployment() -> dict:
    return yaml.safe_load((PROJECT / "deployment.yaml").read_text())["deployment"]


@pytest.fixture(scope="module")
def jobs() -> dict:
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


def test_the_cli_knows_every_key(deployment: dict):
    assert deployment.keys() == KEYS.keys()
    assert deployment["configuration"].keys() <= KEYS["configuration"]
    for kind in ("worker_queues", "environment_variables"):
        for entry in deployment[kind]:
            assert entry.keys() <= KEYS[kind], entry


def test_the_runtime_is_the_images(deployment: dict):
    runtime = re.search(r"runtime:(\S+)-python", (PROJECT / "Dockerfile").read_text())
    assert runtime
    assert deployment["configuration"]["runtime_version"] == runtime[1]


def test_its_settings_are_those_of_the_local_stack(deployment: dict):
    for variable in deployment["environment_variables"]:
        assert not variable["is_secret"]
        assert variable["value"] == SETTINGS[variable["key"].removeprefix("AIRFLOW__")]


def test_a_worker_always_runs_and_every_queue_exists(deployment: dict):
    queues = {queue["name"]: queue for queue in deployment["worker_queues"]}
    assert queues["default"]["min_worker_count"] >= 1
    used = re.findall(r"\bqueue=[\"'](\w+)", "".join(path.read_text() for path in PROJECT.glob("dags/*/*.py")))
    assert set(used) <= queues.keys()


def test_the_workflow_is_valid_by_githubs_schema():
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.github-workflows"]
    result = subprocess.run([*command, WORKFLOW], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_the_tests_run_with_passwordless_sudo(jobs: dict):
    """tests/integration/database/test_vanished_clients.py fails elsewhere."""
    assert jobs["test"]["runs-on"].startswith("ubuntu-")
    assert "container" not in jobs["test"]


def test_only_tested_commits_are_deployed_and_a_script_decides_with_what(jobs: dict):
    assert jobs["deploy"]["needs"] == "test"
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    checkout, decision, step, _, artifact = jobs["deploy"]["steps"]
    assert checkout["with"]["fetch-depth"] == 0
    assert "python3 deploy/decide.py" in decision["run"]
    assert step["with"]["deploy-type"] == "${{ steps.decide.outputs.what }}"
    # The next run compares with this commit. Without the variable nothing is deployed, and no commit is recorded.
    assert artifact["with"]["name"] == "deployed"
    assert all("vars.ASTRO_DEPLOYMENT_ID != ''" in one["if"] for one in jobs["deploy"]["steps"][1:])


def test_dag_files_alone_are_deployed_by_the_workflow_only(deployment: dict):
    assert deployment["configuration"]["dag_deploy_enabled"]
    assert deployment["configuration"]["ci_cd_enforcement"]


def test_the_licence_is_apaches():
    assert "Apache License" in (PROJECT / "LICENSE").read_text()
    assert 'license = "Apache-2.0"' in (PROJECT / "pyproject.toml").read_text()
