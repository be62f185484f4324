"""The same stack as others may have it: without the extra indexes of Airflow's database, and with a listener."""

import re
import shutil
from pathlib import Path

from sqlalchemy import text

from benchmarks.stand import Stand
from stack.airflow import INDEXES_FILE
from stack.stack import PROJECT

PLUGINS = Path(__file__).parent / "plugins"


def drop_indexes(it: Stand) -> None:
    """Leave Airflow's metadata database with the indexes that its own migrations make."""
    names = re.findall(r"create index if not exists (\w+)", INDEXES_FILE.read_text())
    with it.metadata.begin() as connection:
        for name in names:
            connection.execute(text(f"drop index {name}"))


def with_listener(it: Stand) -> Stand:
    """The same stack, started anew with a listener beside the project's own plugins."""
    folder = it.stack.folder / "plugins"
    shutil.copytree(PROJECT / "plugins", folder)
    shutil.copytree(PLUGINS, folder, dirs_exist_ok=True)
    return it.restart_with({"AIRFLOW__CORE__PLUGINS_FOLDER": str(folder)})
