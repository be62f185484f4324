"""What a Dag file imports, every process of every one of its tasks pays for: 0.4 s to 6 s for a heavy library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags.policy import DAGS, HEAVY, HEAVY_DAG_FILES, PROJECT

# A process of its own: this one has imported most of them already.
PROBE = """
import json, runpy, sys

import airflow.sdk

before = set(sys.modules)
runpy.run_path(sys.argv[1])
json.dump(sorted(set(sys.modules) - before), sys.stdout)
"""


def heavy_imports(path: Path) -> list[str]:
    """Return the heavy modules that the file imports beyond what `import airflow.sdk` does (sqlalchemy, today)."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    imported = json.loads(result.stdout.splitlines()[-1])
    return [heavy for heavy in HEAVY if any(m == heavy or m.startswith(f"{heavy}.") for m in imported)]


@pytest.mark.parametrize("path", sorted(DAGS.rglob("*.py")), ids=lambda path: path.stem)
def test_a_dag_file_imports_nothing_heavy(path: Path):
    heavy = heavy_imports(path)
    if path.stem in HEAVY_DAG_FILES:
        assert heavy, f"{path.relative_to(PROJECT)} imports nothing heavy: remove it from HEAVY_DAG_FILES"
        return
    assert not heavy, f"{path.relative_to(PROJECT)} imports {heavy} at its top; import them in the task that needs them"


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ("from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger", "common.messaging"),
        ("from include.operations.migrate import upgrade", "alembic"),
        ("from airflow.providers.google.cloud.hooks.gcs import GCSHook", "airflow.providers.google"),
        ("import psycopg", "psycopg"),
    ],
)
def test_a_heavy_import_is_found(imports: str, found: str, tmp_path: Path):
    path = tmp_path / "heavy.py"
    path.write_text(imports)
    assert any(found in name for name in heavy_imports(path))


def test_a_dag_file_of_wiring_imports_nothing_heavy(tmp_path: Path):
    path = tmp_path / "light.py"
    path.write_text(
        "from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group\n"
        "from include.kafka.trigger import ConsumerLagTrigger\n"
        "with DAG('light'):\n"
        "    task(lambda: None, task_id='one')()\n"
    )
    assert heavy_imports(path) == []
