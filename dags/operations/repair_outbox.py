"""
### Repair the outbox

Delivers rows of the outbox again or at once, or skips them (alarms `outbox_failed` and `outbox_pending`).

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: it lists the rows with their errors,
without their content.

**Makes**
- `deliver_again`: the rows become pending, and `deliver_outbox` delivers them within seconds, with the same idempotency
  keys. With the state `skipped`: rows that were skipped because their connection was not defined;
- `skip`: the rows are not delivered any more;
- `deliver_now`: unavailable receivers are tried at once, without the wait for the next attempt.

A row of `operations_audit` says who did it.

**If used wrongly**, `skip` loses messages: set the rows to pending again with `deliver_again` and the state `skipped`,
within 30 days (`outbox_days` of `maintain`).

**When it fails** nothing was changed. Clear the run.

Runbook: `docs/runbooks/outbox-failed.md`.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, optional, repair_params

ACTIONS = ["deliver_again", "skip", "deliver_now"]


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        action=choice(ACTIONS, "what to do with the rows", default="deliver_again"),
        state=choice(["failed", "skipped", "pending"], "only rows in this state", default="failed"),
        consumer=optional("only rows of this consumer", maxLength=300),
        destination=optional("only rows for this topic, or for this Airflow HTTP connection", maxLength=300),
        row=optional("only the row with this id, as the dry run lists it", format="uuid"),
    ),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "repair"],
    doc_md=__doc__,
)
def repair_outbox():
    @task
    def repair(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.operations.repair_runs import run_repair
        from include.streams.operations.repairs import repair_outbox

        return run_repair(repair_outbox, params, dag_run)

    repair()


repair_outbox()
