"""
### Ingest the seismic feed

The public earthquake feed of the USGS becomes messages on `seismic.events`: new events and revised events, each
revision once.

**Starts** every minute. A run reads the last day of the feed, so the next run also reads what a failed run has missed.
After an outage of more than a day, run it by hand with `feed` = `all_week` or `all_month`.

**Makes** messages on `seismic.events`, keyed by the earthquake's id. A feature that breaks the contract is kept in
`seismic.events.dlq`. When there is nothing new, the tasks are skipped.

**When it fails** nothing is lost: an event is recorded as published only after the broker has acknowledged it, so the
next run sends the rest. If the task crashes between the acknowledgment and the record, an event is in Kafka twice with
the same event id; consumers act on it once. A failed task opens the alarm `dag_failed`.
"""

from datetime import timedelta

from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator
from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import task_defaults
from include.water.topics import SEISMIC_EVENTS


@dag(
    schedule="* * * * *",
    catchup=False,
    # Two concurrent runs would send the same events twice.
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    params={"feed": Param("all_day", enum=["all_hour", "all_day", "all_week", "all_month"])},
    default_args=task_defaults(
        timedelta(minutes=2), retry_delay=timedelta(seconds=10), max_retry_delay=timedelta(minutes=2)
    ),
    tags=["batch", "kafka", "ingest"],
    doc_md=__doc__,
)
def ingest_seismic_feed():
    # Keeps a thousand events out of the task's log.
    @task(show_return_value_in_logs=False)
    def read_new_events(params: dict | None = None, run_id: str | None = None) -> list[dict]:
        from include.water.feeds import seismic

        events = seismic.read_new_events(params["feed"], run_id)
        if not events:
            raise AirflowSkipException("nothing new: the tasks behind are skipped too")
        return events

    @task
    def record_published(events: list[dict]) -> None:
        from include.water.feeds import seismic

        seismic.record_published(event["event_id"] for event in events)

    events = read_new_events()
    produce = ProduceToTopicOperator(
        task_id="produce",
        topic=SEISMIC_EVENTS.name,
        producer_function="include.water.feeds.seismic.messages",
        producer_function_args=[events],
        # By default the operator logs a failed delivery and lets the task succeed: messages would be lost.
        delivery_callback="include.streams.kafka.producer.raise_on_delivery_failure",
        # Flush once at the end instead of after every message. The task still ends only when everything is
        # acknowledged.
        synchronous=False,
        # Longer than the client's own delivery.timeout.ms (five minutes): the client's error says more than a task
        # timeout.
        execution_timeout=timedelta(minutes=7),
    )
    produce >> record_published(events)


ingest_seismic_feed()
