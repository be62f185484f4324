"""The tasks of a run as Airflow's workers run them: each in a process that is forked from a worker."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import resource
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pkgutil import resolve_name
from typing import Any, NamedTuple

# As many mapped tasks at once as the machine has cores.
TASKS_AT_ONCE = 2
# The imports in the bodies of most tasks.
LIBRARIES = (
    "duckdb",
    "psycopg",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.fsspec",
    "pyiceberg.io.pyarrow",
    # Which gcsfs imports with the first upload.
    "gcsfs.extended_gcsfs",
)


class Done(NamedTuple):
    """A task, or the mapped tasks of one step.

    Attributes:
        results: The results of the calls.
        seconds: From the start of the first process until the end of the last.
        imports: The part of `seconds` in which the processes imported modules.
        peak_mb: The most memory of a process.
    """

    results: list[Any]
    seconds: float
    imports: float
    peak_mb: float

    @property
    def work(self) -> float:
        return self.seconds - self.imports


class Worker:
    """A process like a worker of Airflow: it has Airflow's modules, and it has preloaded libraries if this is on."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.preload_seconds: float = self._answer()

    def run(self, name: str, calls: Sequence[tuple], libraries: Sequence[str] = LIBRARIES) -> Done:
        """Call a function with each of `calls`, each in a process of its own, as many at once as Airflow would run.

        Args:
            name: "package.module:function".
            calls: The arguments of each call.
            libraries: The modules that the tasks import; those that are preloaded take no time.
        """
        self._pipe.send((name, list(calls), tuple(libraries)))
        return Done(*self._answer())

    def _answer(self) -> Any:
        is_error, answer = self._pipe.recv()
        if is_error:
            raise RuntimeError(f"a task has failed:\n{answer}")
        return answer


@contextmanager
def worker(preloading: bool = True) -> Iterator[Worker]:
    """A worker, which ends with the block.

    Args:
        preloading: Whether the worker preloads libraries.
    """
    # Not fork: the worker has imported nothing of the project.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, preloading))
    process.start()
    theirs.close()
    try:
        yield Worker(ours)
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def run_task(name: str, calls: Sequence[tuple]) -> Done:
    """Call a function in a worker of its own, which has the environment of this process.

    Args:
        name: "package.module:function".
        calls: The arguments of each call.
    """
    with worker() as tasks:
        return tasks.run(name, calls)


def _work(pipe: Connection, preloading: bool) -> None:
    # A worker has Airflow's own modules after its first task.
    importlib.import_module("airflow.sdk.execution_time.task_runner")
    importlib.import_module("airflow.sdk.execution_time.supervisor")
    began = time.perf_counter()
    if preloading:
        from include.streams.workers.preload import preload

        preload()
    # As Airflow's executors do before they fork.
    gc.freeze()
    pipe.send((False, time.perf_counter() - began))
    while True:
        try:
            name, calls, libraries = pipe.recv()
        except EOFError:
            # Otherwise, DuckDB reports its functions as leaks at the end of the process.
            gc.unfreeze()
            return
        try:
            pipe.send((False, tuple(_run(name, calls, libraries))))
        except Exception:
            pipe.send((True, traceback.format_exc()))


def _run(name: str, calls: list[tuple], libraries: tuple[str, ...]) -> Done:
    context = multiprocessing.get_context("fork")
    results: list[Any] = [None] * len(calls)
    imports = [0.0] * min(TASKS_AT_ONCE, len(calls))
    waiting, peak, running = list(enumerate(calls)), 0.0, {}
    began = time.perf_counter()
    while waiting or running:
        free = [slot for slot in range(len(imports)) if slot not in {slot for slot, *_ in running.values()}]
        while waiting and free:
            number, arguments = waiting.pop(0)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_task, args=(writer, name, arguments, libraries))
            process.start()
            writer.close()
            running[reader] = (free.pop(0), number, process)
        for reader in wait(list(running)):
            assert isinstance(reader, Connection)
            slot, number, process = running.pop(reader)
            try:
                error, result, seconds, peak_mb = reader.recv()
            except EOFError:
                error = "its process was killed"
            process.join()
            if error is not None:
                raise RuntimeError(error)
            results[number], peak = result, max(peak, peak_mb)
            imports[slot] += seconds
    return Done(results, time.perf_counter() - began, max(imports), peak)


def _task(writer: Connection, name: str, arguments: tuple, libraries: tuple[str, ...]) -> None:
    began = time.perf_counter()
    try:
        for library in libraries:
            importlib.import_module(library)
        function = resolve_name(name)
        # Part of the imports' cost, which would otherwise be paid during the work.
        gc.collect()
        imported = time.perf_counter() - began
        result = function(*arguments)
    except Exception:
        writer.send((traceback.format_exc(), None, 0.0, 0.0))
        return
    writer.send((None, result, imported, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
