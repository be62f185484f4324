"""Scans land, and become clean rows: the standard lane."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import dag, task

from include.streams import RETRIES, LandedOffsetsSensor, landing_tasks, task_defaults
from tests.e2e.shop import COUNT_SCANS
from tests.e2e.shop_assets import SCANS_COUNTED


@dag(
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=task_defaults(timedelta(minutes=30), owner="tests", reported=False, **RETRIES),
    tags=["batch", "kafka"],
    doc_md=__doc__,
)
def e2e_count_scans():
    @task
    def repair_gaps(run_id: str | None = None) -> dict:
        return landing_tasks.repair_gaps(COUNT_SCANS, run_id)

    @task
    def plan(run_id: str | None = None) -> list[dict]:
        return landing_tasks.plan(COUNT_SCANS, run_id)

    @task
    def validate(unit: dict, run_id: str | None = None) -> dict:
        return landing_tasks.validate(COUNT_SCANS, unit, run_id)

    @task
    def commit_clean(results: list[dict], run_id: str | None = None) -> dict:
        return landing_tasks.commit(COUNT_SCANS, results, run_id)

    @task
    def check_sets(summary: dict) -> dict:
        return landing_tasks.check(COUNT_SCANS, summary)

    @task(outlets=[SCANS_COUNTED])
    def publish(summary: dict, run_id: str | None = None, outlet_events=None) -> dict:
        metadata = landing_tasks.close(COUNT_SCANS, summary, run_id)
        outlet_events[SCANS_COUNTED].extra = metadata
        return metadata

    units = plan()
    summary = commit_clean(validate.expand(unit=units))
    LandedOffsetsSensor(task_id="wait_for_scans", consumer=COUNT_SCANS) >> repair_gaps() >> units
    check_sets(summary) >> publish(summary)


e2e_count_scans()
