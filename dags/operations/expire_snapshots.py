"""
### Expire snapshots

Keeps the metadata of the lake's tables small. Each commit of a sink (every few seconds) or a lane adds a snapshot, and
every sensor, plan and commit reads the list of all snapshots.

**Starts** every ten minutes.

**Removes** snapshots that are older than `minutes`:
- of landing tables, all but the newest one, and the sink's last one with all later ones, because the sink reads its
  progress there. No reader needs an old snapshot: a run looks up its files by offsets;
- of the other tables, all but the newest one of each hour. `maintain_tables` removes these too, after days.

`maintain_tables` removes files that no snapshot refers to any more, a day later. Where `landing_catalog` is not
defined, there is nothing to remove.

**When it fails** nothing is lost; the next run does the work. The lane works without this Dag, but becomes slower from
day to day. A failed task opens the alarm `dag_failed`. If no run starts at all, another Dag raises `dag_silent`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from include.project import PROJECT
from include.streams import task_defaults


@dag(
    schedule="*/10 * * * *",
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    params={"minutes": Param(30, type="integer", minimum=1, description="for how long snapshots stay")},
    default_args=task_defaults(timedelta(minutes=10), retries=1, retry_delay=timedelta(minutes=1)),
    tags=["operations", "maintenance"],
    doc_md=__doc__,
)
def expire_snapshots():
    @task
    def expire_landing_snapshots(params: dict | None = None) -> dict[str, int]:
        from include.streams.landing.upkeep import expire_landing_snapshots
        from include.streams.operations.heartbeats import beat

        beat("expire_snapshots", every=timedelta(minutes=10))
        return expire_landing_snapshots(PROJECT.topics, timedelta(minutes=(params or {})["minutes"]))

    @task
    def thin_snapshots(params: dict | None = None) -> dict[str, int]:
        from include.streams.landing.upkeep import thin_snapshots

        return thin_snapshots(PROJECT.tables, timedelta(minutes=(params or {})["minutes"]))

    expire_landing_snapshots()
    thin_snapshots()


expire_snapshots()
