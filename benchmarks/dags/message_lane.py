"""This project's lane, one Dag run per message. Same shape as dags/event_driven/triage_service_requests.py."""

from functools import partial

from airflow.sdk import Asset, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from benchmarks.consumers import MESSAGES
from include.streams import RETRIES, joined, joined_by_key, lag_watcher

WAITING = Asset("bench_messages_waiting", watchers=[lag_watcher(MESSAGES)])
MESSAGE = Asset("bench_message")


@dag(schedule=joined(WAITING), catchup=False, max_active_runs=4, default_args=RETRIES)
def bench_fan_out():
    @task(outlets=[MESSAGE])
    def claim(run_id=None, outlet_events=None):
        from include.streams import claim_partition_keys, has_queued_runs

        is_full = partial(has_queued_runs, "bench_message")
        keys = claim_partition_keys(MESSAGES, run_id, worker_has_queue=is_full)
        if not keys:
            raise AirflowSkipException("nothing to hand on")
        outlet_events[MESSAGE].add_partitions(keys)

    claim()


@dag(schedule=joined_by_key(MESSAGE), catchup=False, max_active_runs=8, default_args=RETRIES)
def bench_message():
    @task
    def handle(run_id=None):
        from include.streams import handle_message, partition_key

        handle_message(MESSAGES, partition_key(), run_id)

    handle()


bench_fan_out()
bench_message()
