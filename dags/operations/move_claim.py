"""
### Move a claim

Gives the open claim of a deleted run to a new run of the consumer's Dag, and starts that run. The new run handles the
messages that are left; messages that were handled before are skipped.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off. If the run that owns the claim still
exists, clear that run instead. A claim whose run is queued or running is not moved.

**Makes** a run `moved-<claim>-<number>` of the Dag with the consumer's name. It waits if that Dag is paused, or has
`max_active_runs` active runs. A row of `operations_audit` says who did it. A consumer with one Dag run per message
needs no move: `maintain` emits the keys of its open claims again.

**When it fails** clear the run: a claim that was moved is not moved again, and a run that was started is not started
again.

Runbook: `docs/runbooks/a-run-failed.md`.
"""

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, name, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        consumer=choice(PROJECT.consumers_by_name, "the consumer, of either lane"),
        run_id=name("the run that owns the claim, as the alarm claim_open names it"),
    ),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "repair"],
    doc_md=__doc__,
)
def move_claim():
    @task
    def move(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.kafka.moving import move, state_in_airflow
        from include.streams.operations.repair_runs import run_repair

        shape = getattr(PROJECT.consumers_by_name[params["consumer"]], "shape", None)
        return run_repair(move, params, dag_run, state_of=state_in_airflow, shape=shape)

    @task.short_circuit
    def is_moved(report: dict) -> bool:
        return not report["dry_run"]

    moved = move()
    start_run = TriggerDagRunOperator(
        task_id="start_run",
        trigger_dag_id="{{ ti.xcom_pull('move')['dag_id'] }}",
        trigger_run_id="{{ ti.xcom_pull('move')['new_run_id'] }}",
        skip_when_already_exists=True,
    )
    is_moved(moved) >> start_run


move_claim()
