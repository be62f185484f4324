"""Airflow as four processes on the stack's PostgreSQL: api-server, scheduler, dag-processor, triggerer.

`airflow standalone` is not used: it does not stop its children on TERM, and the next start then talks to the old API
server.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stack.errors import StackError
from stack.postgres import Postgres
from stack.service import Program, Service

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS_FILE = PROJECT / "airflow_settings.yaml"
INDEXES_FILE = Path(__file__).with_name("metadata_indexes.sql")
USER = "admin"
SETTINGS = {
    # LocalExecutor, which imports the libraries of tasks once instead of in each task.
    "CORE__EXECUTOR": "include.streams.workers.local_executor.PreloadingLocalExecutor",
    "CORE__PARALLELISM": "8",  # the default forks 32 workers, too many for a laptop
    "CORE__DAGS_FOLDER": str(PROJECT / "dags"),
    "CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",  # a message must start a run without a click first
    "CORE__RERUN_WITH_LATEST_VERSION": "True",  # as in the Dockerfile
    "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
    "API__HOST": "127.0.0.1",
    "API__WORKERS": "1",
    # Most of a message's latency is the scheduler's sleep, 1 s by default.
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    # Another scheduler takes over after 30 s, and a killed task is retried after a minute, instead of five minutes
    # each.
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    # New and changed Dag files are found within seconds. Unchanged files are parsed rarely: otherwise they would use
    # much of a core.
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "2",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
    "DAG_PROCESSOR__PRINT_STATS_INTERVAL": "0",
}


class Airflow(Service):
    name = "airflow"
    ports = ("airflow",)
    program_names = ("api-server", "scheduler", "dag-processor", "triggerer")
    ready_seconds = 300  # on a busy machine with two cores, more than 180

    def __init__(self, *args, postgres: Postgres, child_environment: Callable[[], dict[str, str]]):
        super().__init__(*args)
        self.child_environment = child_environment
        self.postgres = postgres

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state.get('port.airflow')}"

    def prepare(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        passwords = self.folder / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({USER: self._password}))

    def environment(self) -> dict[str, str]:
        if not self.state.get("port.airflow"):
            return {}
        settings = {
            **SETTINGS,
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(bytes.fromhex(self.state.secret("airflow.fernet"))).decode(),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.folder / "passwords.json"),
            "DATABASE__SQL_ALCHEMY_CONN": self.postgres.database_url("airflow_metadata"),
            "API__BASE_URL": self.url,
            "API__PORT": str(self.state.get("port.airflow")),
            "API__SECRET_KEY": self.state.secret("airflow.api"),
            "API_AUTH__JWT_SECRET": self.state.secret("airflow.jwt"),
        }
        return {
            "AIRFLOW_HOME": str(self.folder),
            "PYTHONFAULTHANDLER": "1",  # a crash in a C library writes a traceback to the program's log
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        }

    def before_start(self) -> None:
        """Migrate the metadata database, and import pools and variables, if any of them has changed."""
        indexes = INDEXES_FILE.read_text()
        initialized = (self.postgres.home / "initialized").read_text()
        wanted = f"{version('apache-airflow')} {initialized} {hashlib.sha256(indexes.encode()).hexdigest()}"
        if self.state.get("airflow.migrated") != wanted:
            self.report("migrating Airflow's metadata database")
            self._run("db", "migrate")
            self.postgres.execute("airflow_metadata", indexes)
            self.state.set("airflow.migrated", wanted)
            self.state.set("airflow.settings", None)
        text = SETTINGS_FILE.read_text() if SETTINGS_FILE.exists() else ""
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self.state.get("airflow.settings") != digest:
            for command, values in pools_and_variables(text).items():
                if values:
                    file = self.folder / f"{command}.json"
                    file.write_text(json.dumps(values))
                    self._run(command, "import", str(file))
                    self.report(f"imported {command}: {', '.join(values)}")
            self.state.set("airflow.settings", digest)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            cwd=PROJECT, env={**os.environ, **self.child_environment()}, capture_output=True, text=True,
        )  # fmt: skip
        log = self.folder.parent / "logs" / "airflow-setup.log"
        with log.open("a") as file:
            file.write(done.stdout + done.stderr)
        if done.returncode:
            reason = ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
            raise StackError(f"`airflow {' '.join(arguments)}` failed: {reason}; see {log}")

    def programs(self) -> list[Program]:
        # --skip-serve-logs: the log servers would listen on all interfaces at fixed ports. The api-server reads the
        # same files from disk.
        extra = {"scheduler": ["--skip-serve-logs"], "triggerer": ["--skip-serve-logs"]}
        launch = [sys.executable, "-m", "stack.groups", str(self.folder.parent)]
        return [
            Program(
                name,
                [*launch, name, sys.executable, "-m", "airflow", name, *extra.get(name, [])],
                directory=PROJECT,
                stop_seconds=20,
            )
            for name in self.program_names
        ]

    def is_ready(self) -> bool:
        """Whether every component is healthy; a dead one counts as healthy for up to 30 s (Airflow's threshold)."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=2) as response:
                health = json.load(response)
        except (OSError, ValueError):
            return False
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def endpoints(self) -> dict[str, Any]:
        if not self.state.get("port.airflow"):
            return {}
        return {"airflow": {"url": self.url, "username": USER, "password": self._password}}

    @property
    def _password(self) -> str:
        return self.state.secret("airflow.password", length_bytes=12)  # a person types it


def pools_and_variables(text: str) -> dict[str, dict[str, Any]]:
    """Convert the text of airflow_settings.yaml to what `airflow pools import` and `airflow variables import` read.

    Connections are left out: the stack's connections come from the environment, which would silently override one of
    the same name.

    Args:
        text: The content of airflow_settings.yaml.

    Returns:
        {"pools": {name: pool}, "variables": {name: value}}.
    """
    import yaml

    settings = (yaml.safe_load(text) or {}).get("airflow") or {}
    return {
        "pools": {
            pool["pool_name"]: {
                "slots": pool["pool_slot"],
                "description": pool.get("pool_description") or "",
                "include_deferred": bool(pool.get("pool_include_deferred")),
            }
            for pool in settings.get("pools") or ()
            if pool.get("pool_name")
        },
        "variables": {
            variable["variable_name"]: variable["variable_value"]
            for variable in settings.get("variables") or ()
            if variable.get("variable_name")
        },
    }
