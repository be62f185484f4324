"""The files from which the Astro CLI builds the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from stack.airflow import SETTINGS
from stack.requirements import IMAGE, PROJECT, locked_versions

# Versions of Astro Runtime, and the Airflow versions in them.
AIRFLOW_IN_RUNTIME = {"3.3-8": "3.3.2"}


def dockerfile() -> str:
    return (PROJECT / "Dockerfile").read_text()


def test_the_dockerfile_is_one_from_line_and_settings():
    instructions = [line for line in dockerfile().splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"FROM \S+/runtime:\d+\.\d+-\d+-python-3\.\d+", instructions[0])
    settings = dict(line.removeprefix("ENV AIRFLOW__").split("=", 1) for line in instructions[1:])
    # `make up` has no Celery.
    assert "imports" in settings.pop("CELERY__EXTRA_CELERY_CONFIG")
    # `make up` has the same settings, so that the tests run with the settings of the image.
    assert settings == {name: SETTINGS[name] for name in ("CORE__RERUN_WITH_LATEST_VERSION",)}


def test_a_celery_worker_imports_a_module_that_exists():
    (value,) = re.findall(r"^ENV AIRFLOW__CELERY__EXTRA_CELERY_CONFIG='(.+)'$", dockerfile(), re.MULTILINE)
    # A worker does not start without the module.
    assert all(find_spec(module) for module in json.loads(value)["imports"])


def test_a_cleared_run_takes_the_dag_file_of_the_newest_deploy(monkeypatch):
    from airflow.api_fastapi.common.dagbag import resolve_run_on_latest_version

    class NoDag:
        def scalar(self, *_, **__) -> None: ...

    assert resolve_run_on_latest_version(None, "any", NoDag()) is False
    for name, value in re.findall(r"^ENV (\w+)=(\S+)$", dockerfile(), re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert resolve_run_on_latest_version(None, "any", NoDag()) is True


def test_the_image_has_the_locked_airflow_and_python():
    runtime, python = re.search(r"runtime:(\S+)-python-(\S+)", dockerfile()).groups()
    assert AIRFLOW_IN_RUNTIME[runtime] == locked_versions((PROJECT / "requirements.lock").read_text())["apache-airflow"]
    assert python == IMAGE["python_version"]


def test_system_packages_are_names():
    lines = (PROJECT / "packages.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", line) for line in lines)


# tests/dags, which `astro dev pytest` runs in the image, reads the last three.
@pytest.mark.parametrize(
    "needed",
    ["dags", "dags/", "include", "plugins", "requirements.txt", "tests", "airflow_settings.yaml", ".env.example"],
)
def test_the_image_gets_what_dags_and_their_tests_need(needed: str):
    assert needed not in ignored_by_docker()


@pytest.mark.parametrize("unwanted", [".git", ".env", ".venv", ".venv-next", ".stack"])
def test_the_image_gets_no_secrets_and_no_local_state(unwanted: str):
    assert unwanted in ignored_by_docker()


def ignored_by_docker() -> set[str]:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        (".env", True),
        (".stack/postgres", True),
        (".venv/bin/python", True),
        (".astro/standalone/airflow.db", True),
        ("airflow_settings.yaml", False),
        (".env.example", False),
        (".astro/config.yaml", False),
    ],
)
def test_git_ignores_secrets_and_state_only(path: str, ignored: bool):
    result = subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=PROJECT)
    assert (result.returncode == 0) == ignored


# The command of `astro dev pytest`, with or without the packages that only development has.
PYTEST = "import sys, pytest; sys.modules[{without!r}] = None; sys.exit(pytest.main(['-q', 'tests/']))"


@pytest.mark.parametrize(("without", "tests"), [("hypothesis", 1), ("nothing", 2)])
def test_the_image_runs_the_tests_of_the_dags_only(without: str, tests: int, tmp_path: Path):
    shutil.copy(PROJECT / "conftest.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    for folder in ("dags", "unit"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / f"test_{folder}.py").write_text("def test_one(): ...\n")
    command = [sys.executable, "-c", PYTEST.format(without=without)]
    # Otherwise hypothesis's own plugin would import it.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
    assert f"{tests} passed" in result.stdout
