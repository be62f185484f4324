"""
### Emit keys again

Emits the partition keys of messages that are claimed and not handled, at once. `maintain` does the same every five
minutes, but waits between two minutes and two hours for each key.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: it counts the open claims and the
messages that are not handled.

**Makes** asset events, which start runs of the Dag that handles the keys. A row of `operations_audit` says who did it.

**If used wrongly**, a key whose run still waits gets a second run. The second run finds the message handled.

**When it fails** clear the run. If the Dag that handles the keys is paused, unpause it first: Airflow would drop the
keys.
"""

from datetime import timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.project import PROJECT
from include.streams import task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(minutes=30),
    params=repair_params(asset=choice(PROJECT.keyed_assets, "the asset whose keys each start a run")),
    default_args=task_defaults(timedelta(minutes=10), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def emit_keys():
    @task
    def emit(name: str, params: dict | None = None, dag_run=None, ti=None, outlet_events=None) -> dict:
        from include.streams.kafka.emitting import emit_keys
        from include.streams.operations.repair_runs import run_repair

        if params["asset"] != name:
            raise AirflowSkipException(f"the run is about {params['asset']}")
        keyed = PROJECT.keyed_assets[name]
        report = run_repair(emit_keys, params, dag_run, consumer=keyed.consumer, find=keyed.keys_to_emit_again)
        keys = report.pop("keys")
        if not keys:
            # An event without a key would start no run, and Airflow would log an error.
            ti.xcom_push(key="return_value", value=report)
            raise AirflowSkipException("nothing is emitted")
        outlet_events[keyed.load_asset()].add_partitions(keys)
        return report

    for name, keyed in PROJECT.keyed_assets.items():
        emit.override(task_id=f"emit_{name}", outlets=[keyed.load_asset()])(name)


emit_keys()
