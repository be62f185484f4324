"""
### Roll a model back

Puts an earlier champion in use again, or no model. It takes effect with the next run that uses the model, and needs no
deploy.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: it lists the versions with their
scores, and the version that would be used.

**Makes** the named version, or the previous champion, the champion, and withdraws the present one. A candidate of a
later training must also beat the withdrawn version. User and reason are kept in `champion.json`, and in a row of
`operations_audit`.

**When it fails** the champion is unchanged. If another process has replaced it in the meantime, the rollback is
refused: trigger a new dry run.

Runbook: `docs/runbooks/roll-back-a-model.md`.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, name, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        model=name("the model's name"),
        version=name("an earlier champion; empty for the previous one, none for no model", default=""),
    ),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "repair"],
    doc_md=__doc__,
)
def roll_back_model():
    @task
    def roll_back(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.lake.buckets import bucket
        from include.streams.models.repairs import roll_back
        from include.streams.operations.repair_runs import run_repair

        return run_repair(roll_back, params, dag_run, bucket=bucket())

    roll_back()


roll_back_model()
