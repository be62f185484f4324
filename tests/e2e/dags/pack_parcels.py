"""Each parcel is a Dag run of its own: the event lane, one run for each message."""

from datetime import timedelta
from functools import partial

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import RETRIES, joined, joined_by_key, task_defaults
from tests.e2e.shop import PACK_PARCELS
from tests.e2e.shop_assets import PARCEL, PARCELS_WAITING

SETTINGS = {
    "catchup": False,
    "dagrun_timeout": timedelta(hours=1),
    "default_args": task_defaults(timedelta(minutes=10), owner="tests", reported=False, **RETRIES),
    "tags": ["event-driven", "kafka"],
    "doc_md": __doc__,
}


@dag(schedule=joined(PARCELS_WAITING), max_active_runs=4, **SETTINGS)
def e2e_fan_out_parcels():
    @task(outlets=[PARCEL])
    def claim(run_id: str | None = None, outlet_events=None) -> None:
        from include.streams import claim_partition_keys, has_queued_runs

        keys = claim_partition_keys(PACK_PARCELS, run_id, worker_has_queue=partial(has_queued_runs, "e2e_pack_parcel"))
        if not keys:
            raise AirflowSkipException("no message to hand on")
        outlet_events[PARCEL].add_partitions(keys)

    claim()


@dag(schedule=joined_by_key(PARCEL), max_active_runs=16, **SETTINGS)
def e2e_pack_parcel():
    @task
    def pack(run_id: str | None = None) -> None:
        from include.streams import handle_message, partition_key

        handle_message(PACK_PARCELS, partition_key(), run_id)

    pack()


# The Dag `maintain` does this for the consumers of include/project.py.
@dag(schedule=None, max_active_runs=1, **SETTINGS)
def e2e_maintain_parcels():
    @task(outlets=[PARCEL])
    def emit(outlet_events=None) -> None:
        from include.streams.kafka.context import keys_to_emit_again

        outlet_events[PARCEL].add_partitions(keys_to_emit_again(PACK_PARCELS, "e2e_pack_parcel"))

    emit()


e2e_fan_out_parcels()
e2e_pack_parcel()
e2e_maintain_parcels()
