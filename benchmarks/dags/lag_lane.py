"""This project's lane: lag starts a run, which claims and handles. Same shape as dags/event_driven/raise_alerts.py."""

from airflow.sdk import Asset, dag, task

from benchmarks.consumers import LAG
from include.streams import RETRIES, joined, lag_watcher

LAG_ASSET = Asset("bench_lag", watchers=[lag_watcher(LAG)])


@dag(schedule=joined(LAG_ASSET), catchup=False, max_active_runs=8, default_args=RETRIES)
def bench_lag():
    @task
    def claim(run_id=None):
        from include.streams import claim_messages

        return claim_messages(LAG, run_id)

    @task
    def handle(chunk, run_id=None):
        from include.streams import handle_chunk

        handle_chunk(LAG, chunk, run_id)

    handle.expand(chunk=claim())


bench_lag()
