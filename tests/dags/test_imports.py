"""Dag files import nothing heavy: every task process imports its Dag file, and a heavy library takes 0.4 s to 6 s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dags.policy import DAGS, HEAVY, HEAVY_DAG_FILES, PROJECT

# A new process, because this one has already imported most of the modules. For each path it prints the modules that a
# fork of it imports: `import airflow.sdk` takes seconds, and the imports of one file must not hide those of another.
PROBE = """
import json, os, runpy, sys, traceback

# A file may print.
answers = os.dup(1)
os.dup2(2, 1)

import airflow.sdk

with airflow.sdk.DAG("bare"):
    airflow.sdk.task(lambda: None, task_id="one")()
before = set(sys.modules)
for path in sys.stdin:
    child = os.fork()
    if not child:
        try:
            runpy.run_path(path.rstrip())
            found = sorted(set(sys.modules) - before)
        except BaseException:
            found = traceback.format_exc()
        with os.fdopen(answers, "w") as file:
            file.write(json.dumps(found) + chr(10))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        os.write(answers, b'"it ended without an answer"' + bytes([10]))
# Airflow takes two seconds to end in good order.
os._exit(0)
"""

Heavy = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def heavy_imports() -> Iterator[Heavy]:
    """The heavy modules that a file imports beyond those of a bare Dag: Airflow 3.4's SDK imports sqlalchemy."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", PROBE]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        questions, answers = process.stdin, process.stdout

        def imports(path: Path) -> list[str]:
            print(path, file=questions, flush=True)
            imported = json.loads(answers.readline())
            assert isinstance(imported, list), imported
            return [heavy for heavy in HEAVY if any(m == heavy or m.startswith(f"{heavy}.") for m in imported)]

        yield imports


@pytest.mark.parametrize("path", sorted(DAGS.rglob("*.py")), ids=lambda path: path.stem)
def test_a_dag_file_imports_nothing_heavy(path: Path, heavy_imports: Heavy):
    heavy = heavy_imports(path)
    if path.stem in HEAVY_DAG_FILES:
        assert heavy, f"{path.relative_to(PROJECT)} imports nothing heavy: remove it from HEAVY_DAG_FILES"
        return
    assert not heavy, f"{path.relative_to(PROJECT)} imports {heavy} at its top; import them in the task that needs them"


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ("from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger", "common.messaging"),
        ("from include.streams.operations.migrate import upgrade", "alembic"),
        ("from airflow.providers.google.cloud.hooks.gcs import GCSHook", "airflow.providers.google"),
        ("import psycopg", "psycopg"),
    ],
)
def test_a_heavy_import_is_found(imports: str, found: str, tmp_path: Path, heavy_imports: Heavy):
    path = tmp_path / "heavy.py"
    path.write_text(imports)
    assert any(found in name for name in heavy_imports(path))


def test_a_dag_file_of_wiring_imports_nothing_heavy(tmp_path: Path, heavy_imports: Heavy):
    path = tmp_path / "light.py"
    path.write_text(
        "from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group\n"
        "from include.streams.kafka.trigger import ConsumerLagTrigger\n"
        "with DAG('light'):\n"
        "    task(lambda: None, task_id='one')()\n"
    )
    assert heavy_imports(path) == []
