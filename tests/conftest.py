"""Fixtures for every test: real services, started once per session and ended with it, also when it is killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

# Before anything imports Airflow, which reads these once and would write into the user's home.
_airflow_home = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ.setdefault("AIRFLOW_HOME", _airflow_home.name)
os.environ.setdefault("AIRFLOW__CORE__DAGS_FOLDER", str(PROJECT / "dags"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


def start_stack(folder: Path, services: tuple[str, ...], **options):
    """A running Stack that is removed with this process even if it is killed with -9."""
    # Imported here: in the Astro image there is no stack, and the other tests must run there.
    pytest.importorskip("supervisor", reason="the local stack's packages are not installed here")
    from stack import Stack

    folder.mkdir(parents=True, exist_ok=True)
    subprocess.Popen(
        [sys.executable, "-m", "stack.watch", str(os.getpid()), str(folder)], cwd=PROJECT, start_new_session=True
    )
    stack = Stack(folder, services=services, **options)
    stack.up()
    return stack


@pytest.fixture(scope="session")
def services(tmp_path_factory):
    """A Stack with PostgreSQL and Kafka; AIRFLOW_CONN_KAFKA_DEFAULT and AIRFLOW_CONN_OPERATIONS_DB point at it."""
    stack = start_stack(tmp_path_factory.mktemp("services"), ("postgres", "kafka"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            if name.startswith("AIRFLOW_CONN_"):
                patch.setenv(name, value)
        yield stack
    stack.remove()


@pytest.fixture(scope="session")
def whole_stack(tmp_path_factory):
    """A Stack with everything, Airflow included. It changes no environment variable: use its `environment()`."""
    stack = start_stack(
        tmp_path_factory.mktemp("whole_stack"), ("postgres", "kafka", "objectstore", "feeds", "airflow")
    )
    yield stack
    stack.remove()
