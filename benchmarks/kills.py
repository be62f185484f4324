"""kill -9 for the processes of tasks, at a random moment or at a certain line."""

import contextlib
import os
import random
import re
import signal
import time

import psutil
from sqlalchemy import Engine, text

from benchmarks.stand import Stand

# How long a fault waits for a task that it can hit. Some tasks run a few times a minute, for less than a second, and
# are missed now and then: a shorter wait ended a round without its fault.
PATIENCE_SECONDS = 240.0

# As Airflow's task runner names its process; the worker above it has "LocalExecutor:" in front of the id.
TASK_PROCESS = re.compile(r"airflow worker -- ([0-9a-f-]{36})")


def kill(pids: list[int]) -> bool:
    """kill -9; False when nobody was there."""
    killed = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed = True
    return killed


def task_processes(it: Stand, dag_id: str, task_id: str) -> list[int]:
    """Processes that run this task of the Dag now: their title is the task instance's id."""
    titles = {}
    for process in psutil.process_iter(["pid", "cmdline"]):
        if found := TASK_PROCESS.fullmatch(" ".join(process.info["cmdline"] or ()).strip()):
            titles[found[1]] = process.info["pid"]
    if not titles:
        return []
    query = text("select id from task_instance where dag_id = :dag_id and task_id = :task_id and id = any(:ids)")
    with it.metadata.connect() as connection:
        ids = connection.execute(query, {"dag_id": dag_id, "task_id": task_id, "ids": list(titles)}).scalars()
        return [titles[str(ti_id)] for ti_id in ids]


def kill_program(it: Stand, name: str) -> bool:
    """Kill a program of the stack, and wait until it is back."""
    killed = kill(it.stack.pids(name))
    it.stack.wait_until_ready(name)
    return killed


def kill_task(it: Stand, dag_id: str, task_id: str, *, seconds: float = PATIENCE_SECONDS) -> bool:
    """Kill one at a random moment of its life; False when none ran for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if pids := task_processes(it, dag_id, task_id):
            time.sleep(random.uniform(0, 0.3))
            if kill(pids[:1]):
                return True
        time.sleep(0.01)
    return False


def kill_task_at(
    it: Stand,
    table: str,
    dag_id: str,
    task_id: str,
    *,
    database: Engine | None = None,
    seconds: float = PATIENCE_SECONDS,
) -> bool:
    """Kill one that is about to write to this table: a lock on it holds the task at that line.

    database: where the table is, if not in the operational database. The lock is held while such a task runs, not
    longer: others write to the table, too. False when none came there for so long.
    """
    waiting = text(
        "select client_port from pg_stat_activity "
        "where wait_event_type = 'Lock' and datname = current_database() and query ilike '%' || :table || '%'"
    )
    database = database or it.operations
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not task_processes(it, dag_id, task_id):
            time.sleep(0.01)
            continue
        with database.begin() as holder, database.connect() as watcher:
            holder.execute(text(f"lock table {table} in exclusive mode"))
            while (pids := task_processes(it, dag_id, task_id)) and time.monotonic() < deadline:
                ports = set(watcher.execute(waiting, {"table": table}).scalars())
                # A snapshot of the activity is kept for the transaction.
                watcher.rollback()
                for pid in pids if ports else ():
                    if ports & _ports_of(pid):
                        return kill([pid])
                time.sleep(0.02)
    return False


def _ports_of(pid: int) -> set[int]:
    try:
        return {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp")}
    except psutil.NoSuchProcess:
        return set()
