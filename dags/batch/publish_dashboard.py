"""
### Publish the dashboard

The executive report: what flowed into the network, what was lost and where, the leaks, the quality of the data and the
model in use, on one static page. Airflow shows it under **Executive report**.

**Starts** with new hourly flows or leaks, at most every ten minutes. A run waits in the triggerer until then; runs that
are triggered in the meantime are skipped, because its report covers their data. A run that is started by hand does not
wait.

**Makes** `reports/<day>/<time>.html` in the artifacts bucket, and `reports/latest.json`, which names the report that is
shown. All reports of the last two days are kept; of older days only the last report is kept.

**When it fails** the last report stays, and shows the age of its data. Run the Dag again; nothing else depends on it. A
failed task opens the alarm `dag_failed`.
"""

from datetime import timedelta

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import joined, task_defaults
from include.water.assets import HOURLY_FLOWS, LEAKS


@dag(
    schedule=joined(HOURLY_FLOWS, LEAKS),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=task_defaults(timedelta(minutes=10)),
    tags=["batch", "dashboards"],
    doc_md=__doc__,
)
def publish_dashboard():
    @task
    def next_turn(dag_run=None) -> str:
        from include.water.dashboards.report.run import next_turn

        if dag_run.run_type == "manual":
            return dag_run.run_after.isoformat()
        if (turn := next_turn(dag_run.run_after)) is None:
            raise AirflowSkipException("the report that is shown was made after this run was asked for")
        return turn.isoformat()

    @task(inlets=[HOURLY_FLOWS])
    def publish(inlet_events=None) -> dict:
        from datetime import UTC, datetime

        from include.water.dashboards.report.collect import QUALITY_PERIOD
        from include.water.dashboards.report.run import publish_report

        since = (datetime.now(UTC) - QUALITY_PERIOD).isoformat()
        return publish_report([event.extra for event in inlet_events[HOURLY_FLOWS].after(since)])

    # Deferred, so that it holds no worker. A template, because older standard providers refuse an XComArg here.
    wait = DateTimeSensorAsync(
        task_id="wait",
        target_time="{{ ti.xcom_pull(task_ids='next_turn') }}",
        execution_timeout=timedelta(hours=1),
    )
    next_turn() >> wait >> publish()


publish_dashboard()
