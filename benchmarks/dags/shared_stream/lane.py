"""The provider's shared stream: a run handles every event that started it. `make faults` can test it, too."""

from datetime import timedelta

from airflow.sdk import Asset, AssetWatcher, dag, task

from benchmarks.shared_stream import probe_stream
from include.streams import RETRIES

SHARED_ASSET = Asset("bench_shared_stream", watchers=[AssetWatcher(name="bench_shared_stream", trigger=probe_stream())])


@dag(
    schedule=[SHARED_ASSET],
    catchup=False,
    max_active_runs=8,
    # `BenchStack.watching` lets it run alone.
    is_paused_upon_creation=True,
    # As in faults_lane.py.
    default_args={**RETRIES, "max_retry_delay": timedelta(seconds=20)},
)
def bench_shared_stream():
    @task
    def handle(triggering_asset_events=None):
        from benchmarks.consumers import SHARED_STREAM_TOPIC, record_payloads

        record_payloads(SHARED_STREAM_TOPIC.name, triggering_asset_events)

    handle()


bench_shared_stream()
