"""kill -9 for the processes of tasks, at a random moment or at a certain statement."""

import contextlib
import os
import random
import re
import signal
import time

import psutil
from sqlalchemy import Engine, text

from benchmarks.bench_stack import BenchStack

# How long a fault waits for a task that it can hit. Some tasks run a few times a minute, for less than a second, and
# are missed now and then: a shorter wait ended a round without its fault.
PATIENCE_SECONDS = 240.0

# As Airflow's task runner names its process; the worker above it has "LocalExecutor:" in front of the id.
TASK_PROCESS = re.compile(r"airflow worker -- ([0-9a-f-]{36})")


def kill(pids: list[int]) -> bool:
    """Send kill -9; False when the process is gone."""
    killed = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed = True
    return killed


def task_processes(bench: BenchStack, dag_id: str, task_id: str) -> list[int]:
    """The processes that run this task of the Dag now; their process title is the task instance's id."""
    titles = {}
    for process in psutil.process_iter(["pid", "cmdline"]):
        if match := TASK_PROCESS.fullmatch(" ".join(process.info["cmdline"] or ()).strip()):
            titles[match[1]] = process.info["pid"]
    if not titles:
        return []
    query = text("select id from task_instance where dag_id = :dag_id and task_id = :task_id and id = any(:ids)")
    with bench.metadata.connect() as connection:
        ids = connection.execute(query, {"dag_id": dag_id, "task_id": task_id, "ids": list(titles)}).scalars()
        return [titles[str(ti_id)] for ti_id in ids]


def kill_program(bench: BenchStack, name: str) -> bool:
    """Kill a program of the stack, and wait until it is back."""
    killed = kill(bench.stack.pids(name))
    bench.stack.wait_until_ready(name)
    return killed


def kill_task(bench: BenchStack, dag_id: str, task_id: str, *, seconds: float = PATIENCE_SECONDS) -> bool:
    """Kill one at a random moment of its life; False when none ran for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if pids := task_processes(bench, dag_id, task_id):
            time.sleep(random.uniform(0, 0.3))
            if kill(pids[:1]):
                return True
        time.sleep(0.01)
    return False


def kill_task_at(
    bench: BenchStack,
    table: str,
    dag_id: str,
    task_id: str,
    *,
    database: Engine | None = None,
    seconds: float = PATIENCE_SECONDS,
) -> bool:
    """Kill a task's process right before it writes to a table: a lock on the table holds the task there.

    The lock is held only while such a task runs, because other processes write to the table, too.

    Args:
        bench: The stack.
        table: The table.
        dag_id: The Dag.
        task_id: The task.
        database: The database of the table, if it is not the operational database.
        seconds: Give up after this time.

    Returns:
        False when no task came to the table within this time.
    """
    waiting = text(
        "select client_port from pg_stat_activity "
        "where wait_event_type = 'Lock' and datname = current_database() and query ilike '%' || :table || '%'"
    )
    database = database or bench.operations
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not task_processes(bench, dag_id, task_id):
            time.sleep(0.01)
            continue
        with database.begin() as holder, database.connect() as watcher:
            holder.execute(text(f"lock table {table} in exclusive mode"))
            while (pids := task_processes(bench, dag_id, task_id)) and time.monotonic() < deadline:
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
