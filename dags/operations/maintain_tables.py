"""
### Maintain tables

Keeps the tables and buckets of the standard lane small: expires old snapshots, bundles small files, and deletes
unreferenced and old objects.

**Starts** every night. Its tasks do not depend on each other's success.

**Makes** room:
- snapshots older than `snapshots_days` are expired (`expire_snapshots` expires most of them earlier);
- eight or more small files of a partition are compacted into one. If a lane commits at the same time, the lane's commit
  wins. In a landing table, only files whose offsets every lane has handled are compacted;
- gaps of landing tables are read from Kafka, also of topics without a lane (docs/runbooks/landing-gap.md);
- files that no snapshot refers to are deleted when they are older than a day. In a landing table, no file is deleted
  while offsets are missing, because the file may hold the missing rows. Files that the sink's coordinator has still to
  commit are kept;
- staging files of finished runs are deleted, and check results that are older than `results_days`;
- the `nightly` functions of the project's packages are called.

Data that is still needed is kept, whatever its age: docs/runbooks/metadata-grows.md. Where `landing_catalog` or
the connection of the object store is not defined, its tasks have nothing to do.

**When it fails** nothing is lost; the next run does the work. The lane works without this Dag, but becomes slower from
week to week. A failed task opens the alarm `dag_failed`. If no run starts at all, another Dag raises `dag_silent`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from include.project import PROJECT
from include.streams import task_defaults


@dag(
    schedule="17 2 * * *",
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    params={
        "snapshots_days": Param(7, type="integer", minimum=1),
        "results_days": Param(90, type="integer", minimum=1),
    },
    default_args=task_defaults(timedelta(hours=1), retries=2, retry_delay=timedelta(minutes=5)),
    tags=["operations", "maintenance"],
    doc_md=__doc__,
)
def maintain_tables():
    @task(max_active_tis_per_dagrun=1)
    def keep_table(name: str, params: dict | None = None) -> dict | None:
        from include.streams.landing.upkeep import maintain_table

        return maintain_table(name, timedelta(days=(params or {})["snapshots_days"]))

    @task(max_active_tis_per_dagrun=1)
    def keep_landing_table(topic: str) -> dict | None:
        from include.streams.landing.upkeep import maintain_landing_table

        # Stays below the task's timeout. What is left is bundled the next night.
        return maintain_landing_table(PROJECT.topics[topic], PROJECT.landing_consumers, seconds=1800)

    @task
    def remove_staging_files() -> int:
        from include.streams.landing.staging import remove_finished
        from include.streams.operations.heartbeats import beat

        beat("maintain_tables", every=timedelta(days=1))
        return remove_finished(PROJECT.landing_consumers)

    @task
    def remove_results(params: dict | None = None) -> int:
        from include.streams.landing.upkeep import remove_results

        kept = timedelta(days=(params or {})["results_days"])
        return remove_results(PROJECT.landing_consumers, kept, seconds=1800)

    @task
    def do_nightly(function: str) -> int:
        from pkgutil import resolve_name

        return resolve_name(function)(seconds=1800)

    keep_table.expand(name=list(PROJECT.tables))
    keep_landing_table.expand(topic=PROJECT.landed_topics)
    remove_staging_files()
    remove_results()
    for name, function in PROJECT.nightly.items():
        do_nightly.override(task_id=name)(function)


maintain_tables()
