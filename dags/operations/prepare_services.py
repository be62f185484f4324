"""
### Prepare services

Creates what the other Dags need: the tables of the operational database (Alembic migrations), the topics of the
registry with their dead-letter topics, and, for topics that land, the landing tables and their connectors in Kafka
Connect. For deployments without a shell.

**Starts** by hand, once after each deploy. It is safe to run again: it changes only what is missing, leaves the
settings of existing topics as they are, and makes connectors match `connectors/`. If the connection `kafka_connect` is
not defined, the log says so, and the rest is done.

**Makes** a list of what it changed: the task's log and its return value.

**When it fails** no change is incomplete: migrations are one transaction, and a connector is created after everything
that it needs. A migration fails when a table that it changes is in use for longer than 10 s; the error names the
session that blocks it, and the task retries. Clear the task when the database, the broker and Kafka Connect can be
reached.
"""

import logging
from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import task_defaults

log = logging.getLogger(__name__)


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka"],
    doc_md=__doc__,
)
def prepare_services():
    @task
    def prepare() -> list[str]:
        changes = PROJECT.prepare()
        log.info("%s", "\n".join(changes) or "nothing to do: all is as this version needs it")
        return changes

    prepare()


prepare_services()
