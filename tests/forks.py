"""Code in a process of its own, to be killed: a fork of one that has imported once what takes seconds to import."""

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
    """The exit code, below zero for a signal; None if it still ran and had to be killed."""
    process = start(code)
    process.join(seconds)
    ended = process.exitcode
    process.kill()
    process.join()
    return ended


def _execute(code: str, environment: dict[str, str]) -> None:
    """With the environment of now: that of the process that is forked is from when it was started."""
    os.environ.clear()
    os.environ.update(environment)
    exec(code, {"__name__": "__forked__"})
