"""
### Operate a connector

Shows, restarts, stops, resumes or removes a connector in Kafka Connect, or moves it past records that it cannot read.
`watch_connectors` restarts failed connectors by itself; a person is needed after `connector_given_up`.

**Starts** by hand, with parameters. By default it shows the connector's state, its tasks and its lag. An action changes
nothing unless `dry_run` is off.

**Makes**
- `restart`: restarts the failed tasks, or all tasks if none has failed. It loses nothing and lands nothing twice;
- `stop`, `resume`: nothing lands in between. Records wait in Kafka for as long as the topic keeps them;
- `step_over`: moves the connector past records with a negative timestamp, which the lane then reads from Kafka;
- `remove`: removes the connector of a topic that is no longer landed, and closes its alarms. Its table stays.

A row of `operations_audit` says who did it. The task returns one text for each change.

**When it fails** Airflow retries the task while Kafka Connect does not answer. Every action is safe to repeat.

Runbook: `docs/runbooks/connector-failed.md`.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.landing.tables import connector_name
from include.streams.operations.repair_runs import REPAIR, choice, name, repair_params

ACTIONS = ["status", "restart", "stop", "resume", "step_over", "remove"]
CONNECTORS = [connector_name(PROJECT.topics[topic]) for topic in PROJECT.landed_topics]


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        connector=name("the connector's name", examples=CONNECTORS),
        action=choice(ACTIONS, "what to do; status only shows", default="status"),
    ),
    default_args=task_defaults(timedelta(minutes=10), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def operate_connector():
    @task
    def operate(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.landing.connect import Connect
        from include.streams.landing.repairs import operate_connector
        from include.streams.operations.repair_runs import run_repair

        return run_repair(operate_connector, params, dag_run, topics=PROJECT.topics, connect=Connect())

    operate()


operate_connector()
