"""Import the Dag files in a new process, with other plugins or other providers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.dags.policy import PROJECT

# The finder comes first, before anything imports the provider.
PROBE = """
import importlib.machinery, json, sys

providers, *folders = sys.argv[1:]

class Given:
    def find_spec(name, path=None, target=None):
        if providers and name == "airflow.providers.standard":
            return importlib.machinery.PathFinder.find_spec(name, [providers])

sys.meta_path.insert(0, Given)

from airflow.dag_processing.dagbag import DagBag
from airflow.listeners.listener import get_listener_manager
from airflow.providers import standard

bags = [DagBag(folder, safe_mode=False, load_op_links=False) for folder in folders]
found = {
    "dags": sorted(dag_id for bag in bags for dag_id in bag.dags),
    "errors": {path: error for bag in bags for path, error in bag.import_errors.items()},
    "listeners": get_listener_manager().has_listeners,
    "standard_provider": standard.__version__,
}
print("FOUND", json.dumps(found), flush=True)
"""
# A plugin that registers a listener, as the OpenLineage provider's does on Astro.
LISTENER = """
import sys

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

@hookimpl
def on_task_instance_success(previous_state, task_instance): ...

class Listening(AirflowPlugin):
    name = "listening"
    listeners = [sys.modules[__name__]]
"""


def import_dags(*folders: Path, home: Path, listener: bool = False, providers: Path | None = None) -> dict:
    """Import all Dag files under `folders` in a new process.

    Args:
        folders: The folders of Dag files.
        home: A folder that does not exist yet; it becomes AIRFLOW_HOME, with the plugin that registers a listener.
        listener: Whether a plugin registers a listener.
        providers: A folder with a package `standard`, which is used as the standard provider.

    Returns:
        `dags` (ids), `errors` (text by file), `listeners` (is any registered) and `standard_provider` (version).
    """
    (home / "plugins").mkdir(parents=True)
    if listener:
        (home / "plugins" / "listening.py").write_text(LISTENER)
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    command = [sys.executable, "-c", PROBE, str(providers or ""), *map(str, folders)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    answers = [line for line in result.stdout.splitlines() if line.startswith("FOUND ")]
    assert answers, result.stderr
    return json.loads(answers[-1].removeprefix("FOUND "))
