"""
### Deliver the outbox

Delivers the Kafka records and HTTP requests in the outbox that the task which wrote them has not delivered: the
receiver was unavailable, the task was killed, or the task leaves delivery to this Dag (alarms, work orders).

**Starts** within about two seconds of a row becoming due (`OutboxDueTrigger`).

**Makes** deliveries, at least once, each with the row's id as idempotency key. The rows of one consumer to one
destination are a route. Several routes are delivered in parallel, so that one receiver does not delay the others. A
route whose receiver is unavailable waits 1 s, doubling to 60 s.

**When it fails** nothing is lost: the rows stay pending, and the next run delivers them. Alarms: `outbox_pending` when
rows wait for an hour, `outbox_failed` when a receiver has refused a row 20 times, or not answered it although it
answered others (docs/runbooks/outbox-failed.md).
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import OUTBOX_DUE, joined, task_defaults


@dag(
    schedule=joined(OUTBOX_DUE),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    default_args=task_defaults(timedelta(minutes=6), retries=2, retry_delay=timedelta(seconds=5)),
    tags=["operations", "event-driven", "kafka"],
    doc_md=__doc__,
)
def deliver_outbox():
    @task
    def deliver() -> int:
        from include.streams.kafka.delivery import deliver_due

        # The standard lane too: its held dead letters belong to its own broker.
        return deliver_due([*PROJECT.consumers, *PROJECT.landing_consumers])

    deliver()


deliver_outbox()
