"""The Dag files import with every standard provider that an Astro Runtime image of this Airflow may hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from stack.requirements import PROJECT
from tests.dags.importing import import_dags
from tests.dags.policy import DAGS

PACKAGE = "apache-airflow-providers-standard"

# Versions before 1.17 refuse this Dag, so its error shows that the old provider is used.
REFUSED = """
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, task

with DAG("takes_an_xcom_arg"):
    DateTimeSensorAsync(task_id="wait", target_time=task(lambda: "2026-01-01T00:00:00Z", task_id="when")())
"""


def floor() -> str:
    """The lowest version that pyproject.toml accepts; the image has this version or a later one."""
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    (requirement,) = (r for r in map(Requirement, dependencies) if r.name == PACKAGE)
    ((operator, version),) = ((s.operator, s.version) for s in requirement.specifier)
    assert operator == ">="
    return version


def test_every_dag_imports_with_the_oldest_standard_provider(tmp_path: Path):
    version = floor()
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([*uv, "--no-deps", "--target", tmp_path / "old", f"{PACKAGE}=={version}"], check=True, timeout=120)
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "takes_an_xcom_arg.py").write_text(REFUSED)
    providers = tmp_path / "old" / "airflow" / "providers"
    imported = import_dags(DAGS, tmp_path / "refused", home=tmp_path / "home", providers=providers)
    assert imported["standard_provider"] == version
    assert [Path(path).name for path in imported["errors"]] == ["takes_an_xcom_arg.py"], imported["errors"]
