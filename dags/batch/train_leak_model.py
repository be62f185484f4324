"""
### Train the leak model

A candidate is trained on the clean night flows and the leaks that crews have confirmed. It becomes the champion only if
it beats the champion and the naive baseline (a fixed threshold on the minimum night flow) on nights that neither has
seen, at the same number of false alarms, and finds no district's leaks much later.

**Starts** when hourly flows are published. It trains only if at least a week of nights is new, or with the parameter
`force`.

**Makes** a version in the artifacts bucket (`models/leaks/`), with a card that gives the gate's reasons. A new champion
is an event of the asset `leak_model`. When there is no new champion, for example because there are too few confirmed
leaks, the log has the reason, `publish_champion` is skipped, and the model in use stays.

**When it fails** the champion stays in use. Clear the run; it finishes the work that it began. If the champion itself
cannot be loaded, training fails until a person rolls back: docs/runbooks/roll-back-a-model.md. A failed task opens the
alarm `dag_failed`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from include.streams import joined, task_defaults
from include.water.assets import HOURLY_FLOWS, LEAK_MODEL


@dag(
    schedule=joined(HOURLY_FLOWS),
    catchup=False,
    # Concurrent runs are safe but wasteful: only one result is kept.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    params={"force": Param(False, type="boolean", description="train on unchanged data too")},
    default_args=task_defaults(timedelta(minutes=30)),
    tags=["batch"],
    doc_md=__doc__,
)
def train_leak_model():
    @task
    def train(params: dict | None = None, run_id: str | None = None) -> dict:
        from include.water.leaks.training import train_leak_model

        outcome = train_leak_model(str(run_id), force=bool((params or {}).get("force")))
        return {"version": outcome.version, "promoted": outcome.promoted, "reasons": list(outcome.reasons)}

    @task(outlets=[LEAK_MODEL])
    def publish_champion(outcome: dict, outlet_events=None) -> None:
        if not outcome["promoted"]:
            raise AirflowSkipException(f"no new champion: {'; '.join(outcome['reasons'])}")
        outlet_events[LEAK_MODEL].extra = {"version": outcome["version"]}

    publish_champion(train())


train_leak_model()
