"""
### Accept a suite's data

Accepts a run of the standard lane although its data break rules of its suite: the data are unusual, but correct (alarm
`suite_failed`).

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: it shows the result of the check.

**Makes** an acceptance beside the result, with user, reason and the broken rules, and closes the alarm. **Then clear
`check_sets` of the stopped run, with its downstream tasks.** Rules that the run breaks later are not accepted. A row of
`operations_audit` says who did it.

**If used wrongly**, wrong data reach the downstream tables, and widen the bounds of later runs. Stop the source,
correct the contract, and clear the whole run.

**When it fails** clear the run: an acceptance is recorded once.

Runbook: `docs/runbooks/suite-failed.md`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        consumer=choice(
            [each.name for each in PROJECT.landing_consumers if each.suite], "the consumer, as the alarm names it"
        ),
        claim=Param(type="integer", minimum=1, description="the claim's number, which is the alarm's key"),
    ),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "repair"],
    doc_md=__doc__,
)
def accept_suite():
    @task
    def accept(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.operations.repair_runs import run_repair
        from include.streams.validators.repairs import accept_suite

        return run_repair(accept_suite, params, dag_run)

    accept()


accept_suite()
