"""This project's lane with one Dag run per message, for `make faults`."""

from datetime import timedelta
from functools import partial

from airflow.sdk import Asset, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from benchmarks.consumers import FAULTS_MESSAGES
from include.streams import RETRIES, joined, joined_by_key, lag_watcher

WAITING = Asset("faults_messages_waiting", watchers=[lag_watcher(FAULTS_MESSAGES)])
MESSAGE = Asset("faults_message")
# As in faults_lane.py.
ARGS = {**RETRIES, "max_retry_delay": timedelta(seconds=20)}


@dag(schedule=joined(WAITING), catchup=False, max_active_runs=4, default_args=ARGS)
def faults_fan_out():
    @task(outlets=[MESSAGE])
    def claim(run_id=None, outlet_events=None):
        from include.streams import claim_partition_keys, has_queued_runs

        is_full = partial(has_queued_runs, "faults_message")
        keys = claim_partition_keys(FAULTS_MESSAGES, run_id, worker_has_queue=is_full)
        if not keys:
            raise AirflowSkipException("nothing to hand on")
        outlet_events[MESSAGE].add_partitions(keys)

    claim()


@dag(schedule=joined_by_key(MESSAGE), catchup=False, max_active_runs=8, default_args=ARGS)
def faults_message():
    @task
    def handle(run_id=None):
        from include.streams import handle_message, partition_key

        handle_message(FAULTS_MESSAGES, partition_key(), run_id)

    handle()


faults_fan_out()
faults_message()
