"""Libraries are imported once in a worker, and the processes of tasks are forked from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from include.streams.workers import preload as workers
from include.streams.workers.preload import LIBRARIES, preload
from tests.dags.policy import PROJECT

# A worker's process: it preloads, and forks a task that uses the libraries with their threads.
WORKER = """
import json, os, sys, threading

from include.streams.workers.preload import preload

before = set(os.listdir("/proc/self/fd"))
imported = preload()
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - before
         if os.path.exists(f"/proc/self/fd/{fd}")]
facts = {
    "imported": imported,
    "threads": [thread.name for thread in threading.enumerate()],
    "files": links,
    "project": sorted(name for name in sys.modules if name.split(".")[0] in ("include", "dags")),
    "expensive": sorted({"great_expectations", "sklearn", "matplotlib"} & set(sys.modules)),
}

def work():
    import duckdb, numpy, pyarrow, pyarrow.compute
    from confluent_kafka import Producer

    with duckdb.connect(config={"threads": 2}) as connection:
        rows = connection.sql("select range as x, random() as y from range(1000000) order by y").to_arrow_table()
    total = pyarrow.compute.sum(rows["x"]).as_py()
    numpy.ones((500, 500)) @ numpy.ones((500, 500))
    Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}).flush(0.1)
    return total

task = os.fork()
if not task:
    code = 1
    try:
        code = 0 if work() == 499999500000 else 2
    finally:
        os._exit(code)
facts["task"] = os.waitpid(task, 0)[1]
print("FACTS", json.dumps(facts), flush=True)
# Airflow takes two seconds to end in good order.
os._exit(0)
"""
EXECUTOR = """
import json, os

from airflow.executors.executor_loader import ExecutorLoader

executor, _ = ExecutorLoader.import_default_executor_cls()
executor = executor(parallelism=1)
executor.start()
(worker,) = executor.workers
with open(f"/proc/{worker}/maps") as maps:
    mapped = maps.read()
executor.end()
print("FACTS", json.dumps([name for name in ("duckdb", "libarrow") if name in mapped]), flush=True)
os._exit(0)
"""


def run(code: str, home: Path, **environment: str) -> Any:
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "AIRFLOW_HOME": str(home), **environment}
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)
    answers = [line for line in result.stdout.splitlines() if line.startswith("FACTS ")]
    assert answers, (result.returncode, result.stdout, result.stderr)
    return json.loads(answers[-1].removeprefix("FACTS "))


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict[str, Any]:
    """Facts about a worker that has preloaded, and about the task that it has forked."""
    return run(WORKER, tmp_path_factory.mktemp("worker"))


def test_a_task_that_is_forked_from_a_worker_can_use_the_preloaded_libraries(facts):
    assert facts["imported"] == list(LIBRARIES)
    assert facts["threads"] == ["MainThread"]
    assert not [link for link in facts["files"] if link.startswith(("socket:", "pipe:"))]
    assert facts["task"] == 0


def test_a_worker_preloads_neither_the_project_nor_expensive_libraries(facts):
    # A task must run the code that is deployed now.
    assert set(facts["project"]) == {
        "include",
        "include.streams",
        "include.streams.compat",
        "include.streams.compat.gcsfs_settings",
        "include.streams.workers",
        "include.streams.workers.preload",
    }
    assert facts["expensive"] == []


def test_a_library_that_cannot_be_imported_stops_nothing(caplog):
    assert preload(("json", "no_such_library", "csv")) == ["json", "csv"]
    assert "no_such_library is not preloaded, each task imports it itself: ModuleNotFoundError" in caplog.text


def test_an_unexpected_error_stops_no_worker(caplog, monkeypatch):
    monkeypatch.setenv("AIRFLOW__STREAMS__PRELOAD", "perhaps")
    assert preload(("json",)) == []
    assert "each task imports them itself" in caplog.text


def test_a_library_that_starts_a_thread_is_named_in_a_warning(caplog, monkeypatch, tmp_path):
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(5,), name='of-library', daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert preload(("starts_a_thread",)) == ["starts_a_thread"]
    assert "has started threads (of-library)" in caplog.text


def test_preloading_is_switched_off_by_one_setting(caplog, monkeypatch):
    monkeypatch.setenv("AIRFLOW__STREAMS__PRELOAD", "False")
    monkeypatch.setattr(workers.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert preload() == []
    assert "AIRFLOW__STREAMS__PRELOAD is off" in caplog.text


@pytest.mark.parametrize(("wanted", "mapped"), [("True", ["duckdb", "libarrow"]), ("False", [])])
def test_the_workers_of_the_local_executor_have_the_libraries(wanted: str, mapped: list[str], tmp_path):
    from stack.airflow import SETTINGS

    settings = {"AIRFLOW__CORE__EXECUTOR": SETTINGS["CORE__EXECUTOR"], "AIRFLOW__STREAMS__PRELOAD": wanted}
    assert run(EXECUTOR, tmp_path, **settings) == mapped
