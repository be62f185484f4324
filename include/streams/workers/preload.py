"""Import the heavy libraries once in a worker, instead of once in each task.

LocalExecutor and Celery fork the process of each task from a worker process. A forked process has all modules that the
worker has imported, and shares their memory. Without this, each task of the standard lane imports the same libraries
again, which takes longer than most tasks work.

Only libraries are imported, and no module of the project: a task must run the code that is deployed now. A library in
the list starts no Python thread and opens no socket at its import; a test asserts this, and forks such a process.
The allocator of pyarrow and the linear algebra of numpy start native threads, and start them again in a forked process.

AIRFLOW__STREAMS__PRELOAD=False switches it off.
"""

from __future__ import annotations

import gc
import importlib
import logging
import threading
import time
from collections.abc import Sequence

log = logging.getLogger(__name__)

# Great Expectations is left out: it would take 130 MB in each worker, and a run without broken rows does not import it.
# Libraries of a few tasks only, such as those for models, are left out too.
LIBRARIES = (
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "confluent_kafka.admin",
    "numpy",
    "pyarrow.parquet",
    "duckdb",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.fsspec",
    "pyiceberg.io.pyarrow",
    # The part of gcsfs that it imports with the first upload.
    "gcsfs.extended_gcsfs",
    "google.cloud.storage",
    "airflow.providers.google.cloud.hooks.gcs",
    "airflow.providers.apache.kafka.hooks.client",
)


def preload(libraries: Sequence[str] = LIBRARIES) -> list[str]:
    """Import libraries for the processes that are forked from this one. An error is logged, and stops nothing.

    Args:
        libraries: The names of modules.

    Returns:
        The names of the modules that were imported.
    """
    try:
        return _preload(libraries)
    except Exception:
        log.exception("libraries are not preloaded: each task imports them itself")
        return []


def _preload(libraries: Sequence[str]) -> list[str]:
    from airflow.configuration import conf

    from include.streams.compat.gcsfs_settings import disable_layout_calls

    if not conf.getboolean("streams", "preload", fallback=True):
        log.info("libraries are not preloaded: AIRFLOW__STREAMS__PRELOAD is off")
        return []
    disable_layout_calls()
    began, threads = time.monotonic(), set(threading.enumerate())
    imported = []
    for library in libraries:
        try:
            importlib.import_module(library)
        except Exception as error:
            name = type(error).__name__
            log.warning("%s is not preloaded, each task imports it itself: %s: %s", library, name, error)
        else:
            imported.append(library)
    # In this process, instead of in each task.
    gc.collect()
    log.info("libraries are preloaded: count=%d seconds=%.1f", len(imported), time.monotonic() - began)
    if started := sorted(thread.name for thread in set(threading.enumerate()) - threads):
        log.warning(
            "a preloaded library has started threads (%s), which the processes of tasks do not have: if tasks hang, "
            "set AIRFLOW__STREAMS__PRELOAD=False",
            ", ".join(started),
        )
    return imported
