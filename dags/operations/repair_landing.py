"""
### Repair a landing table

Reads the offsets that are missing in a landing table from Kafka, and appends them, each once (alarm `landing_gap`).
Usually no repair is needed: the lane's next run, or `maintain_tables` at night, does the same.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: it lists the gaps with their ages.

**Makes** rows in the landing table, and rows in `landing_gaps`. Offsets that Kafka no longer has are recorded as lost
and open the alarm `messages_lost`. A row of `operations_audit` says who did it. The task returns one text for each
change, and what is still missing.

**When it fails** what was appended stays. Clear the run: it continues. It may run while the lane runs.

Runbook: `docs/runbooks/landing-gap.md`.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(hours=6),
    params=repair_params(topic=choice(PROJECT.landed_topics, "the topic whose landing table lacks offsets")),
    default_args=task_defaults(timedelta(hours=1), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def repair_landing():
    @task
    def repair(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.landing.repairs import repair_landing
        from include.streams.operations.repair_runs import run_repair

        return run_repair(repair_landing, params, dag_run, topics=PROJECT.topics)

    repair()


repair_landing()
