"""
### Record earthquakes

The messages of `seismic.events` become rows of the table `earthquakes`, one for each earthquake, with its newest
revision. Reports and people query it.

**Starts** every quarter of an hour. A run reads what the last run left, up to the end of the topic.

**Makes** rows. A newer revision replaces an older one, in whatever order they are read.

**When it fails** nothing is lost: the operator commits a batch's offsets after the batch is written. A run that is
killed in between leaves records that the next run reads again, and writes to the same rows. A failed task opens the
alarm `dag_failed`.

This is the only Dag with the provider's `ConsumeFromTopicOperator`. The operator fits a topic of low volume that feeds
an idempotent write, where minutes do not matter. It does not fit

- an effect that must happen once: records are read again after a crash, and there is no inbox and no claim;
- a topic whose every message must be accounted for: the operator treats a topic without new messages as read to its
  end. If the broker is unavailable, or a killed task is still a member of the group, the run succeeds without a record,
  and no alarm shows the lag of the group. After a pause longer than the topic's retention, the removed messages are
  skipped silently;
- messages that only this Dag reads: it skips a message that breaks its contract, and writes no dead letter;
- high volume: one task reads all partitions.

For all of these, see `raise_alerts`.
"""

from datetime import timedelta

from airflow.providers.apache.kafka.operators.consume import ConsumeFromTopicOperator
from airflow.sdk import dag

from include.streams import task_defaults
from include.water.topics import SEISMIC_EVENTS


@dag(
    schedule="*/15 * * * *",
    catchup=False,
    # Two concurrent runs would be in one consumer group, and share the partitions.
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=15),
    default_args=task_defaults(timedelta(minutes=5), retries=2, retry_delay=timedelta(seconds=10)),
    tags=["batch", "kafka", "ingest"],
    doc_md=__doc__,
)
def record_earthquakes():
    ConsumeFromTopicOperator(
        task_id="record",
        topics=[SEISMIC_EVENTS.name],
        # A connection of its own: the operator takes its consumer group from the connection.
        kafka_config_id="kafka_earthquakes",
        # By name, so that the Dag file does not import it.
        apply_function_batch="include.water.earthquakes.record",
        # After each batch, so that a failed run repeats one batch at most.
        commit_cadence="end_of_batch",
        max_batch_size=500,
        # At the end of the topic, the operator waits this long for a full batch, and once more for a further one.
        poll_timeout=10,
    )


record_earthquakes()
