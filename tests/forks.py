"""Code in a new process that a test can kill: a fork of a process that has already done the slow imports."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "airflow.sdk",
        "confluent_kafka",
        "duckdb",
        "psycopg",
        "pyiceberg.catalog.sql",
        "sqlalchemy.dialects.postgresql",
    ]
)


def start(code: str) -> BaseProcess:
    process = _context.Process(target=_execute, args=(code, dict(os.environ)), daemon=True)
    process.start()
    return process


def run(code: str, seconds: float = 120) -> int | None:
    """The exit code, negative for a signal; None if the process was still running and was killed."""
    process = start(code)
    process.join(seconds)
    ended = process.exitcode
    process.kill()
    process.join()
    return ended


def _execute(code: str, environment: dict[str, str]) -> None:
    """Start the code with the current environment; the forked process has the environment of its start."""
    os.environ.clear()
    os.environ.update(environment)
    exec(code, {"__name__": "__forked__"})
