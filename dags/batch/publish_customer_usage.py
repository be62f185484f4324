"""
### Publish customers' usage

What each customer used per day compared with similar households, and a warning when water runs all the time.

**Starts** with new hourly flows, at most every quarter of an hour. A run waits in the triggerer until then; runs that
are triggered in the meantime are skipped. A run that is started by hand does not wait.

**Makes** the table `water.customer_days`, one partition per day, and `usage/customers/<customer_id>.json` in the
artifacts bucket, one object per customer, for the utility's app. Only changes are written. Days that are not complete
are marked, and late readings rewrite their day. A meter that has been silent for more than a week gives no warning. The
objects of customers who left the register, or whose meter was silent for all of the `days`, are deleted.

**When it fails** nothing is lost: a retry or the next run writes the rest. A failed task opens the alarm `dag_failed`.
To recompute days that are older than the window, start it by hand with a larger `days`.
"""

from datetime import timedelta

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import joined, task_defaults
from include.water.assets import HOURLY_FLOWS


@dag(
    schedule=joined(HOURLY_FLOWS),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=3),
    params={"days": Param(35, type="integer", minimum=2, maximum=400)},
    default_args=task_defaults(timedelta(minutes=30)),
    tags=["batch", "dashboards"],
    doc_md=__doc__,
)
def publish_customer_usage():
    @task
    def next_turn(dag_run=None) -> str:
        from include.water.usage.publish import next_turn

        if dag_run.run_type == "manual":
            return dag_run.run_after.isoformat()
        if (turn := next_turn(dag_run.run_after)) is None:
            raise AirflowSkipException("usage was published after this run was asked for")
        return turn.isoformat()

    @task
    def publish(params=None) -> dict:
        from include.water.usage.publish import publish_usage

        return publish_usage(params["days"])

    # Deferred, so that it holds no worker. A template, because older standard providers refuse an XComArg here.
    wait = DateTimeSensorAsync(
        task_id="wait",
        target_time="{{ ti.xcom_pull(task_ids='next_turn') }}",
        execution_timeout=timedelta(hours=1),
    )
    next_turn() >> wait >> publish()


publish_customer_usage()
