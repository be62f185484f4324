"""
### Reset a consumer

Lets a stopped consumer continue after its topic was deleted and recreated, or its log was truncated (alarm
`consumer_stopped`). Its positions in the topic are deleted, and it starts at the beginning of the current log.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off. Check the result of a dry run first:
it lists the offsets that would be given up, and where the consumer would start.

**Makes** new positions, the end of the alarm, and the alarm `messages_lost` if open claims are given up. A row of
`operations_audit` says who did it. The task returns one text for each change.

**If used wrongly**, a consumer that is not stopped reads the whole topic again. Events that the inbox knows have no
second effect, but dead letters are published again.

**When it fails** nothing was changed. Airflow retries the task while a broker does not answer.

Runbook: `docs/runbooks/topic-recreated.md`.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(
        consumer=choice(PROJECT.consumers_by_name, "the stopped consumer, of either lane"),
        topic=choice([topic.name for topic in PROJECT.topics], "the topic that was recreated or truncated"),
    ),
    default_args=task_defaults(timedelta(minutes=5), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def reset_consumer():
    @task
    def reset(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.kafka.reset import reset
        from include.streams.operations.repair_runs import run_repair

        consumer = PROJECT.consumers_by_name[params["consumer"]]
        return run_repair(reset, params, dag_run, conn_id=consumer.conn_id)

    reset()


reset_consumer()
