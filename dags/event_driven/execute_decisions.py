"""
### Execute decisions

Triage may only propose some actions: to close a valve, to send a crew at night, to advise customers not to drink. Each
proposal waits here for a person, and is executed once if it is approved in time.

**Starts** once for each proposal, by a partition key of the asset `proposal`: the `decision_id`. Find a run in the UI
by this key. To answer, open *Required Actions* in Airflow. Only the users in the Airflow Variable `water_approvers` may
answer. If it names nobody, nobody is asked, and the proposal becomes a work order for a person.

**Makes** a row in `work_orders` and a message on `work.orders` when the proposal is approved. When it is rejected, or
not answered before the deadline (an hour after the proposal), the work order says that a person has to look at the
request. The row of `decisions` holds the answer, who gave it and when.

**When it fails** nothing is lost and nothing is done twice. Clear the run: a settled decision stays as it is; for an
open decision you are asked again. `maintain` emits keys again that were dropped (this Dag was paused). A failed task
opens the alarm `dag_failed` of its `decision_id`.

While an approval is open, its run stays running but takes no slot of a worker or a pool. Runs beyond `max_active_runs`
wait in the queue. Approvers are asked when the run starts. If the deadline of a proposal passes before that, the
proposal becomes a work order for a person.
"""

from datetime import timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import RETRIES, joined_by_key, task_defaults
from include.streams.inference.approval import DeadlineApproval
from include.water.assets import PROPOSAL


@dag(
    schedule=joined_by_key(PROPOSAL),
    catchup=False,
    # Enough for a storm's night of proposals that are all open at once. The scheduler examines 20 running runs in each
    # of its loops, so each hundred open runs delay the next task of every run by a few loops.
    max_active_runs=256,
    dagrun_timeout=timedelta(hours=12),
    default_args=task_defaults(timedelta(minutes=10), **RETRIES),
    tags=["event-driven", "triage"],
    doc_md=__doc__,
)
def execute_decisions():
    @task
    def ask(run_id: str | None = None, ti=None) -> dict:
        from include.streams import partition_key
        from include.water.triage import execute

        def is_running(other: str) -> bool:
            return ti.get_dr_count(ti.dag_id, run_ids=[other], states=["queued", "running"]) > 0

        question = execute.ask(partition_key(), run_id, is_running)
        if question is None:
            raise AirflowSkipException("settled, asked by another run, or nobody may approve: see the log")
        return question

    @task
    def settle(question: dict, answer: dict | None) -> str:
        from include.water.triage import execute

        return execute.execute(question["decision_id"], question["proposal_hash"], execute.read_answer(answer))

    question = ask()
    approve = DeadlineApproval(
        task_id="approve",
        subject=question["subject"],
        body=question["body"],
        deadline_at=question["deadline_at"],
        approvers=question["approvers"],
    )
    settle(question, approve.output)


execute_decisions()
