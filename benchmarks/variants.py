"""Variants of the stack: without the extra indexes of Airflow's database, and with a listener."""

import re
import shutil
from pathlib import Path

from sqlalchemy import text

from benchmarks.bench_stack import BenchStack
from stack.airflow import INDEXES_FILE
from stack.stack import PROJECT

PLUGINS = Path(__file__).parent / "plugins"


def drop_indexes(bench: BenchStack) -> None:
    """Drop the extra indexes of Airflow's metadata database."""
    names = re.findall(r"create index if not exists (\w+)", INDEXES_FILE.read_text())
    with bench.metadata.begin() as connection:
        for name in names:
            connection.execute(text(f"drop index {name}"))


def with_listener(bench: BenchStack) -> BenchStack:
    """The same stack, restarted with a listener in addition to the project's plugins."""
    folder = bench.stack.folder / "plugins"
    shutil.copytree(PROJECT / "plugins", folder)
    shutil.copytree(PLUGINS, folder, dirs_exist_ok=True)
    return bench.restart_with({"AIRFLOW__CORE__PLUGINS_FOLDER": str(folder)})
