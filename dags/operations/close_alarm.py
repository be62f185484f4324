"""
### Close an alarm

Closes an open alarm whose cause was removed. Most alarms close by themselves; `docs/runbooks/README.md` lists the kinds
that a person must close.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off. The Streams page and the alarm's
text show source, kind and key.

**Makes** the end of the alarm: user and reason are added to its text and sent to the webhook. The alarm `dag_silent` is
closed because its Dag was removed: the time of the Dag's last run is deleted too. A row of `operations_audit` says who
did it. The task returns one text for each change.

**When it fails** the alarm stays open. Clear the run. If the cause still exists, the alarm opens again.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, name, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        source=name("the consumer, table, connector, topic, Dag or task that the alarm is about"),
        kind=choice(PROJECT.alarm_kinds, "the kind of alarm"),
        key=name("what the alarm is about within its source; empty for most kinds", default=""),
    ),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "repair"],
    doc_md=__doc__,
)
def close_alarm():
    @task
    def close(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.operations.repair_runs import run_repair
        from include.streams.operations.repairs import close

        return run_repair(close, params, dag_run)

    close()


close_alarm()
