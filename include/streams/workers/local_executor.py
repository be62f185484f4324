"""Airflow's LocalExecutor, whose workers have preloaded the libraries of tasks.

AIRFLOW__CORE__EXECUTOR=include.streams.workers.local_executor.PreloadingLocalExecutor
"""

from __future__ import annotations

import atexit
import gc

from airflow.executors.local_executor import LocalExecutor

from include.streams.workers.preload import preload


class PreloadingLocalExecutor(LocalExecutor):
    """LocalExecutor, which preloads the libraries of tasks before it forks its workers.

    The scheduler's process imports them, because it is the parent of all workers. No other process does.
    """

    def start(self) -> None:
        if self.is_mp_using_fork:
            preload()
        super().start()
        # LocalExecutor has unfrozen all objects. Frozen, the preloaded ones take no time of the scheduler's collections
        # and stay shared with the workers.
        gc.freeze()
        # Otherwise, DuckDB writes a warning for each of its functions when the scheduler ends.
        atexit.register(gc.unfreeze)
