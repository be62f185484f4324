"""
### Triage service requests

Each customer's request has its own Dag run. An engine proposes what to do; code decides what may be done.

**Starts**: `fan_out_service_requests` when the consumer group `triage_service_requests` is behind on
`service.requests`. It claims offset ranges and emits a partition key for each message. `triage_service_request` starts
once for each key. The key is `topic-partition-offset`; find a run in the UI by its key.

**Makes** a row in `decisions` for each request. Harmless actions are executed at once (a row in `work_orders`, a
message on `work.orders`). All other actions wait for a person in `execute_decisions`.

**When it fails** nothing is lost and nothing is done twice: tasks retry for six hours while the broker or the database
is unavailable, and for half an hour at most if only the effect fails. `maintain` emits keys again whose runs never
started (this Dag was paused) or have failed. Requests are not processed in order.
"""

from datetime import timedelta
from functools import partial

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import RETRIES, joined, joined_by_key, task_defaults
from include.water.assets import PROPOSAL, SERVICE_REQUEST, SERVICE_REQUESTS_WAITING
from include.water.consumers import TRIAGE_SERVICE_REQUESTS

SETTINGS = {
    "catchup": False,
    "dagrun_timeout": timedelta(hours=12),
    "default_args": task_defaults(timedelta(minutes=10), reported=False, **RETRIES),
    "tags": ["event-driven", "kafka", "triage"],
    "doc_md": __doc__,
}


@dag(schedule=joined(SERVICE_REQUESTS_WAITING), max_active_runs=4, **SETTINGS)
def fan_out_service_requests():
    @task(outlets=[SERVICE_REQUEST])
    def claim(run_id: str | None = None, outlet_events=None) -> None:
        from include.streams import claim_partition_keys, has_queued_runs

        is_full = partial(has_queued_runs, "triage_service_request")
        keys = claim_partition_keys(TRIAGE_SERVICE_REQUESTS, run_id, worker_has_queue=is_full)
        if not keys:
            # An event without a key would start no run, and Airflow would log an error.
            raise AirflowSkipException("no message waits, or enough runs wait already")
        outlet_events[SERVICE_REQUEST].add_partitions(keys)

    claim()


# A request that waits for a retry occupies its run. 16 runs are enough that one slow model does not delay the rest.
@dag(schedule=joined_by_key(SERVICE_REQUEST), max_active_runs=16, **SETTINGS)
def triage_service_request():
    # The pool, not max_active_runs, limits how many requests call the model at once: see docs/choosing-a-pattern.md.
    @task(outlets=[PROPOSAL], pool="model_calls")
    def triage(run_id: str | None = None, outlet_events=None) -> None:
        from include.streams import handle_message, partition_key
        from include.water.triage.effect import awaiting_approval

        handle_message(TRIAGE_SERVICE_REQUESTS, partition_key(), run_id)
        # Read from the database, not from the call above: a retry after a crash hands on the proposals, too.
        proposals = awaiting_approval(partition_key())
        if not proposals:
            raise AirflowSkipException("nothing of this request needs a person's approval")
        outlet_events[PROPOSAL].add_partitions(proposals)

    triage()


fan_out_service_requests()
triage_service_request()
