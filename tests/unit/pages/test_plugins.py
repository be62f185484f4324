"""Airflow loads the plugins in every task process, so loading them must take no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from include.project import PROJECT

ROOT = Path(__file__).resolve().parents[3]

# As a task does, in a process of its own: this one has imported everything.
PROBE = """
import json, sys

import airflow.sdk.execution_time.task_runner

before = set(sys.modules)
from airflow.sdk import plugins_manager
plugins_manager.integrate_macros_plugins()
plugins, errors = plugins_manager._get_plugins()
print(json.dumps({
    "plugins": [plugin.name for plugin in plugins],
    "errors": errors,
    "imported": sorted(set(sys.modules) - before),
}))
"""
# A page needs all of these, in the api-server.
HEAVY = (
    "airflow.api_fastapi",
    "fastapi",
    "starlette",
    "include.streams.operations",
    "include.streams.pages.app",
    *(f"include.{package.name}" for package in PROJECT.packages),
)


def loaded(folder: Path) -> dict:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def heavy(found: dict) -> list[str]:
    return [name for name in HEAVY if any(m == name or m.startswith(f"{name}.") for m in found["imported"])]


def test_the_plugins_load_without_the_imports_of_their_pages():
    found = loaded(ROOT / "plugins")
    assert found["errors"] == {}
    assert set(found["plugins"]) >= {path.stem for path in (ROOT / "plugins").glob("*.py")}
    assert heavy(found) == []


def test_all_imports_of_the_plugins_are_listed():
    # Whatever else somebody adds shows here: each module is paid for by every task.
    with_plugins = loaded(ROOT / "plugins")["imported"]
    light = {"include", "include.streams", "include.streams.pages", "include.streams.pages.lazy"}
    ours = {name for name in with_plugins if name.split(".")[0] == "include"}
    assert ours == light
    assert not {name for name in with_plugins if name.split(".")[0] in ("sqlalchemy", "pydantic", "httpx", "jinja2")}


def test_a_plugin_with_heavy_imports_is_found(tmp_path: Path):
    (tmp_path / "heavy.py").write_text(
        "from airflow.plugins_manager import AirflowPlugin\n"
        "from airflow.api_fastapi.core_api import security\n"
        "class Heavy(AirflowPlugin):\n"
        "    name = 'heavy'\n"
    )
    assert "airflow.api_fastapi" in heavy(loaded(tmp_path))
