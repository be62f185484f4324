"""
### Execute decisions

What triage proposes and must not do by itself (close a valve, send a crew at night, advise not to drink) waits here for
a person, and is executed once if it is approved in time.

**Starts** once for each proposal, a partition key of the asset `proposal`: the `decision_id`, which is how a run is
found in the UI. To answer, open *Required Actions* in Airflow.

**Makes** of an approval a row in `work_orders` and a message on `work.orders`. Of a rejection, or of none until the
deadline (an hour after the proposal), the same, but what it orders is that a person looks at the request.
The answer, who gave it and when are in the row of `decisions`.

**When it fails** nothing is lost and nothing is done twice. Clear the run: a decision that is settled stays as it is;
for one that is open you are asked again. Keys that were dropped (this Dag was paused) are emitted again by `maintain`.

An approval that is open keeps its run running, and takes no slot of a worker or a pool. Beyond `max_active_runs` the
runs wait in the queue: nobody is asked meanwhile, and what passes its deadline there goes to a person.
"""

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import PartitionedAssetTimetable, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.kafka.consumers import RETRIES
from include.water.assets import PROPOSAL
from include.water.triage.policy import APPROVAL_DEADLINE


def wait_until_deadline(context) -> None:
    """The operator's own timeout would count from when it asks, not from when it was proposed."""
    from include.water.triage.execute import time_left

    context["task"].response_timeout = time_left(context["ti"].xcom_pull(task_ids="ask"))


@dag(
    schedule=PartitionedAssetTimetable(assets=PROPOSAL),
    catchup=False,
    # A storm's night of proposals, all open at once. The scheduler looks at 20 running runs in each of its loops, so
    # each hundred of them delays the next task of every run by a few loops.
    max_active_runs=256,
    dagrun_timeout=timedelta(hours=12),
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=10), **RETRIES},
    tags=["event-driven", "triage"],
    doc_md=__doc__,
)
def execute_decisions():
    @task
    def ask(run_id: str | None = None, ti=None) -> dict[str, str]:
        from include.kafka.context import partition_key
        from include.water.triage import execute

        def is_running(other: str) -> bool:
            return ti.get_dr_count(ti.dag_id, run_ids=[other], states=["queued", "running"]) > 0

        question = execute.ask(partition_key(), run_id, is_running)
        if question is None:
            # A cleared run may have been cleared because its work order was not delivered.
            execute.deliver()
            raise AirflowSkipException("settled, or asked by another run")
        return question

    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def settle(question: dict[str, str], ti=None) -> str:
        from include.water.triage import execute

        # Pulled, not an argument: a rejection skips every task that depends on the approval directly.
        answer = execute.read_answer(ti.xcom_pull(task_ids="approve"))
        state = execute.execute(question["decision_id"], question["proposal_hash"], answer)
        execute.deliver()
        return state

    question = ask()
    approve = ApprovalOperator(
        task_id="approve",
        subject=question["subject"],
        body=question["body"],
        defaults="Reject",
        response_timeout=APPROVAL_DEADLINE,
        pre_execute=wait_until_deadline,
    )
    # Skipped by a rejection, in place of `settle`, which has to record that too.
    approve >> EmptyOperator(task_id="approved") >> settle(question)


execute_decisions()
