"""A module that a Celery worker imports at its start, before it forks the processes of its pool.

AIRFLOW__CELERY__EXTRA_CELERY_CONFIG={"imports": ["include.streams.workers.celery_worker"]}
"""

import gc

from include.streams.workers.preload import preload

if preload():
    # As Airflow's provider does with its own preloaded modules: a collection in a pool's process would copy the pages
    # that the processes share. The provider unfreezes the objects of the worker when the pool has started.
    gc.freeze()
