"""`astro dev parse` names broken Dags: its test file, run like the CLI runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stack.requirements import PROJECT

# The CLI runs `pytest .astro/test_dag_integrity_default.py` in the project's root, which is on PYTHONPATH in the image.
PARSE = ".astro/test_dag_integrity_default.py"


def parse(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "AIRFLOW_HOME": str(root / ".airflow")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", PARSE]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with one good Dag file."""
    shutil.copytree(PROJECT / ".astro", tmp_path / ".astro", ignore=shutil.ignore_patterns("standalone", "__pycache__"))
    (tmp_path / "dags" / "batch").mkdir(parents=True)
    (tmp_path / "dags" / "batch" / "good.py").write_text("from airflow.sdk import DAG\nDAG('good')\n")
    return tmp_path


def test_good_dags_parse(root: Path):
    result = parse(root)
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout


def test_a_broken_dag_exits_with_1_and_is_named(root: Path):
    (root / "dags" / "batch" / "bad.py").write_text("import a_module_that_is_not_there\n")
    result = parse(root)
    # Another code than 1 is reported as a failure of the CLI, not of the Dag.
    assert result.returncode == 1, result.stdout
    assert "dags/batch/bad.py" in result.stdout
    assert "a_module_that_is_not_there" in result.stdout


def test_a_dag_in_the_exceptions_may_be_broken(root: Path):
    (root / "dags" / "batch" / "bad.py").write_text("import a_module_that_is_not_there\n")
    with (root / ".astro" / "dag_integrity_exceptions.txt").open("a") as exceptions:
        exceptions.write("dags/batch/bad.py\n")
    result = parse(root)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 1 skipped" in result.stdout


def test_the_project_has_no_exceptions():
    lines = (PROJECT / ".astro" / "dag_integrity_exceptions.txt").read_text().splitlines()
    assert all(line.startswith("#") for line in lines)
