"""
### Watch connectors

Monitors the connectors in Kafka Connect, and restarts them. A failed task of a connector stays failed until it is
restarted, and a task in the state RUNNING may still make no progress.

**Starts** every three minutes.

**Makes**
- restarts of failed connectors: at once, then with pauses that double up to an hour, `max_restarts` times. The task
  returns the names of the restarted connectors;
- progress past records whose timestamp Kafka Connect refuses (alarm `records_stepped_over`): after a restart the
  connector would fail at the same record;
- alarms: `connector_failed` (with the exceptions of its trace), `connector_given_up`, `connector_missing`,
  `connect_unreachable`, `sink_lag`, `sink_stalled`, `landing_stalled`. Alarms whose cause is gone are closed.
  docs/runbooks/connector-failed.md says what to do.

**When it fails** (the database or the broker is unavailable) nothing is lost; the next run does the work. Running
connectors continue without this Dag. It is skipped where `kafka_connect` is not defined. A failed task opens the alarm
`dag_failed`. If no run starts at all, `maintain` raises `dag_silent`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.project import PROJECT
from include.streams import task_defaults


@dag(
    schedule="*/3 * * * *",
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=15),
    params={
        "max_lag": Param(1_000_000, type="integer", minimum=1, description="records that a sink may be behind"),
        "stalled_minutes": Param(10, type="integer", minimum=1, description="without progress, until it is an alarm"),
        "max_restarts": Param(12, type="integer", minimum=0, description="of a connector, until it is left alone"),
    },
    default_args=task_defaults(timedelta(minutes=5), retries=1),
    tags=["operations", "kafka", "maintenance"],
    doc_md=__doc__,
)
def watch_connectors():
    @task
    def check_connectors(params: dict | None = None) -> list[str]:
        from include.streams.compat.connections import is_defined
        from include.streams.landing import watchdog
        from include.streams.operations.heartbeats import beat

        beat("watch_connectors", every=timedelta(minutes=3))
        # An outage of the API server fails the task: a skip would close its alarm.
        if not is_defined(watchdog.CONN_ID):
            raise AirflowSkipException(f"no connectors to watch: connection {watchdog.CONN_ID} is not defined")
        limits = dict(params or {})
        return watchdog.check_connectors(
            PROJECT.topics,
            watchdog.Limits(
                max_lag=limits["max_lag"],
                stalled_after=timedelta(minutes=limits["stalled_minutes"]),
                max_restarts=limits["max_restarts"],
            ),
        )

    check_connectors()


watch_connectors()
