"""The stock trigger: AssetWatcher and MessageQueueTrigger, with the payload in the event."""

from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger
from airflow.sdk import Asset, AssetWatcher, dag, task

from benchmarks.consumers import STOCK_CONN_ID, STOCK_TOPIC

TRIGGER = MessageQueueTrigger(
    scheme="kafka",
    topics=[STOCK_TOPIC.name],
    kafka_config_id=STOCK_CONN_ID,
    apply_function="benchmarks.consumers.payload",
    # The default is 5 s; this gives the lowest latency.
    poll_interval=0.1,
)
STOCK_ASSET = Asset("bench_stock", watchers=[AssetWatcher(name="bench_stock", trigger=TRIGGER)])


@dag(
    schedule=[STOCK_ASSET],
    catchup=False,
    max_active_runs=8,
    # `BenchStack.watching` lets it run alone.
    is_paused_upon_creation=True,
)
def bench_stock():
    @task
    def handle(triggering_asset_events=None):
        from benchmarks.consumers import STOCK_TOPIC, record_payloads

        record_payloads(STOCK_TOPIC.name, triggering_asset_events)

    handle()


bench_stock()
