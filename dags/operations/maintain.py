"""
### Maintain

Does the regular work for both lanes: opens and closes alarms, emits lost partition keys again, retries messages whose
effects keep failing, and deletes old rows.

**Starts** every five minutes. Its tasks do not depend on each other's success.

**Makes**
- alarms: lag (in the standard lane: what has landed and is not claimed), age and open claims of every consumer, also of
  a paused Dag; outbox rows that have waited for an hour. Alarms whose cause is gone are closed;
- partition keys that started no run, for example those of claimed messages that were not handled;
- retries of effects that have failed: after two minutes, then at growing intervals of at most half an hour;
- numbers for the Streams page: the lag of each consumer, and the outcomes of every 15 minutes;
- room: deletes finished rows that are older than the parameters say. Open rows are kept, whatever their age. An inbox
  row identifies a message that is read again, so it must be kept longer than its message: the task checks `inbox_days`
  against the topics, and keeps the rows for longer if the broker keeps a topic's messages for longer than declared
  (`include/streams/kafka/retention.py`). For Airflow's own tables see docs/runbooks/metadata-grows.md.

**When it fails** nothing is lost; the next run does the work. Consumers work without this Dag. A failed task opens the
alarm `dag_failed`. If no run starts at all, `watch_connectors` raises `dag_silent`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from include.project import PROJECT
from include.streams import task_defaults


@dag(
    schedule="*/5 * * * *",
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    params={
        "inbox_days": Param(480, type=["integer", "null"], minimum=1),
        "claims_days": Param(90, type="integer", minimum=1),
        "outbox_days": Param(30, type="integer", minimum=1),
        "alarms_days": Param(365, type="integer", minimum=1),
    },
    default_args=task_defaults(timedelta(minutes=10), retries=1),
    tags=["operations", "kafka", "maintenance"],
    doc_md=__doc__,
)
def maintain():
    @task
    def check_consumers() -> None:
        from include.streams.kafka import watch
        from include.streams.operations.heartbeats import beat

        beat("maintain", every=timedelta(minutes=5))
        watch.check_consumers(PROJECT.consumers)

    @task
    def check_landing_consumers() -> None:
        from include.streams.landing import watch

        watch.check_consumers(PROJECT.landing_consumers)

    @task
    def check_outbox() -> None:
        from include.streams.operations import outbox_delivery
        from include.streams.operations.alarm_delivery import deliver_alarms

        outbox_delivery.watch()
        # Delivers alarms also when the Dag deliver_outbox is paused or fails.
        deliver_alarms()

    @task
    def count_outcomes() -> int:
        from include.streams.operations import samples

        return samples.count_outcomes(seconds=240)

    @task
    def emit_keys(name: str, outlet_events=None) -> None:
        keyed = PROJECT.keyed_assets[name]
        outlet_events[keyed.load_asset()].add_partitions(keyed.keys_to_emit_again())

    @task
    def handle_postponed() -> None:
        from include.streams.kafka import tasks

        tasks.handle_postponed(PROJECT.consumers)

    @task
    def prune(params: dict | None = None) -> dict[str, int]:
        return PROJECT.prune(dict(params or {}), seconds=240)

    check_consumers()
    check_landing_consumers()
    check_outbox()
    count_outcomes()
    for name, keyed in PROJECT.keyed_assets.items():
        emit_keys.override(task_id=f"emit_{name}", outlets=[keyed.load_asset()])(name)
    handle_postponed()
    prune()


maintain()
