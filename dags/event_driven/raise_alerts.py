"""
### Raise alerts

Messages on `seismic.events` and `leaks.detected` become alerts within a second or two.

**Starts** when the consumer group `raise_alerts` is behind on either topic (`ConsumerLagTrigger`). The event carries no
message: the run claims offset ranges and reads them from Kafka.

**Makes** rows in `alerts`, messages on `alerts.raised`, and a POST to the connection `alert_webhook` if it is defined.
A message that breaks its contract is kept in `<topic>.dlq`.

**When it fails** nothing is lost and nothing is done twice: tasks retry for six hours while the broker or the database
is unavailable; after that, clear the run. It processes the same offset ranges again, and skips messages that were
handled. If effects fail, the run ends earlier (after a minute if others succeed, after half an hour if none does), and
`maintain` retries their messages.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.streams import RETRIES, joined, task_defaults
from include.water.assets import ALERT_SOURCES
from include.water.consumers import RAISE_ALERTS


@dag(
    schedule=joined(ALERT_SOURCES),
    catchup=False,
    # Claims keep runs apart, so runs may overlap: a run that waits for a retry does not delay the next run.
    max_active_runs=8,
    dagrun_timeout=timedelta(hours=12),
    default_args=task_defaults(timedelta(minutes=10), reported=False, **RETRIES),
    tags=["event-driven", "kafka", "alerts"],
    doc_md=__doc__,
)
def raise_alerts():
    @task
    def claim(run_id: str | None = None) -> list[dict]:
        from include.streams import claim_messages

        return claim_messages(RAISE_ALERTS, run_id)

    @task
    def handle(chunk: dict, run_id: str | None = None) -> None:
        from include.streams import handle_chunk

        handle_chunk(RAISE_ALERTS, chunk, run_id)

    handle.expand(chunk=claim())


raise_alerts()
