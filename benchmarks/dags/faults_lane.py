"""This project's lane on two topics, for `make faults`; a switch makes claims fail."""

from datetime import timedelta

from airflow.sdk import Asset, dag, task

from benchmarks.consumers import FAULTS
from include.streams import RETRIES, joined, lag_watcher

FAULTS_ASSET = Asset("faults", watchers=[lag_watcher(FAULTS)])


@dag(
    schedule=joined(FAULTS_ASSET),
    catchup=False,
    max_active_runs=4,
    # Faults are far more frequent than in production. With the usual delays, late retries would determine the duration.
    default_args={**RETRIES, "max_retry_delay": timedelta(seconds=20)},
)
def faults():
    @task
    def claim(run_id=None):
        from benchmarks.consumers import stalled
        from include.streams import claim_messages

        if stalled():
            raise RuntimeError("claims are stalled on purpose")
        return claim_messages(FAULTS, run_id)

    @task
    def handle(chunk, run_id=None):
        from include.streams import handle_chunk

        handle_chunk(FAULTS, chunk, run_id)

    handle.expand(chunk=claim())


faults()
