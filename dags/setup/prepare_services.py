"""
### Prepare services

Makes what the other Dags need: the tables of the operational database (Alembic migrations), the topics of the registry
with their dead-letter topics, and for those that land, the landing tables and their connectors in Kafka Connect. For
deployments where no shell is at hand.

**Starts** by hand, once after each deploy. Harmless to run again: it changes only what is missing, leaves the settings
of topics that exist as they are, and makes connectors what `connectors/` says. Without a connection `kafka_connect` it
says so and makes the rest.

**Makes** a list of what it changed: the task's log and its return value.

**When it fails** nothing is half made: migrations are one transaction, and a connector comes after all that it needs. A
table that is in use for longer than 10 s stops a migration; the error names the session in the way, and retries follow.
Clear the task when the database, the broker and Kafka Connect can be reached.
"""

import logging
from datetime import timedelta

from airflow.sdk import dag, task

log = logging.getLogger(__name__)


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    default_args={
        "owner": "data-platform",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": 2,
        "execution_timeout": timedelta(minutes=5),
    },
    tags=["setup", "kafka"],
    doc_md=__doc__,
)
def prepare_services():
    @task
    def prepare() -> list[str]:
        from include.water import services

        changes = services.prepare()
        log.info("%s", "\n".join(changes) or "nothing to do: all is as this version needs it")
        return changes

    prepare()


prepare_services()
