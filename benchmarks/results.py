"""The last line of each benchmark: one JSON object with its figures, and the command, date, commit and machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import psutil

PROJECT = Path(__file__).parents[1]
_GIGABYTE = 2**30


class Measured(TypedDict):
    """How the figures were measured: the command to repeat the measurement, and the facts to compare it with others."""

    command: str
    date: str
    commit: str
    machine: str


def print_result(target: str, result: Mapping[str, Any]) -> None:
    """Print the figures of a benchmark as the last line, for `make figures`.

    Args:
        target: The target of the Makefile that runs the benchmark.
        result: Its figures; values that JSON can hold.
    """
    print(json.dumps({**result, "measured": measured(target, sys.argv[1:])}))


def measured(target: str, arguments: Sequence[str] = ()) -> Measured:
    """Describe a measurement that ends now, on this machine.

    Args:
        target: The target of the Makefile that runs the benchmark.
        arguments: Its arguments.

    Returns:
        The command, the day (UTC), the commit and the machine.
    """
    command = f"make {target}" + (f' ARGS="{shlex.join(arguments)}"' if arguments else "")
    return {"command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": machine()}


def commit() -> str:
    """The commit that is checked out, with a note if files differ from it; "unknown" outside of a clone."""
    try:
        short_id = _git("rev-parse", "--short", "HEAD")
        return f"{short_id} with changes" if _git("status", "--porcelain", "--untracked-files=no") else short_id
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / _GIGABYTE
    return (
        f"{cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python "
        f"{platform.python_version()}, Airflow {version('apache-airflow')}"
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
