"""
### Detect leaks

The champion judges the complete nights of the last weeks that are new, or whose data have changed since they were
judged. Without a champion, a fixed threshold on the minimum night flow judges them. Each leak is reported once, as a
message on `leaks.detected`, from which `raise_alerts` makes alerts. A leak that has since doubled, and grown by at
least 400 l/h, is reported again.

**Starts** when hourly flows are published, and when there is a new champion.

**Makes** rows in `judged_nights` and `leaks`, messages on `leaks.detected`, and an event of the asset `leaks`. When
there is no new leak, the tasks after `detect` are skipped.

**When it fails** nothing is lost: the next run produces every message that Kafka has not acknowledged. If the task
crashes after Kafka's acknowledgment and before the leaks are recorded as produced, a leak is in Kafka twice with the
same event id; consumers act on it once. A failed task opens the alarm `dag_failed`.
"""

from datetime import timedelta

from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import joined, task_defaults
from include.water.assets import HOURLY_FLOWS, LEAK_MODEL, LEAKS
from include.water.topics import LEAKS_DETECTED


@dag(
    schedule=joined(HOURLY_FLOWS, LEAK_MODEL),
    catchup=False,
    # Two concurrent runs would send the same leaks twice.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=task_defaults(timedelta(minutes=15)),
    tags=["batch", "kafka"],
    doc_md=__doc__,
)
def detect_leaks():
    @task
    def detect() -> list[str]:
        from include.water.leaks import detection

        keys = detection.detect()
        if not keys:
            raise AirflowSkipException("no new leak: the tasks behind are skipped too")
        return keys

    @task(outlets=[LEAKS])
    def record_produced(keys: list[str], outlet_events=None) -> None:
        from include.water.leaks import detection

        detection.record_produced(keys)
        outlet_events[LEAKS].extra = {"leaks": len(keys)}

    keys = detect()
    produce = ProduceToTopicOperator(
        task_id="produce",
        topic=LEAKS_DETECTED.name,
        producer_function="include.water.leaks.detection.messages",
        producer_function_args=[keys],
        # By default the operator logs a failed delivery and lets the task succeed: messages would be lost.
        delivery_callback="include.streams.kafka.producer.raise_on_delivery_failure",
        # Flush once at the end instead of after every message. The task still ends only when everything is
        # acknowledged.
        synchronous=False,
    )
    produce >> record_produced(keys)


detect_leaks()
