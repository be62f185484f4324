"""
### Aggregate meter readings

The standard lane. Kafka Connect lands readings; this Dag turns them into clean rows, and clean rows into hourly flows.

**Starts** again as soon as a run has ended. A run waits in the triggerer until something has landed. After ten minutes
without new data it ends as skipped. `repair_gaps` reads from Kafka what Kafka Connect has lost. A run owns the offset
ranges that it claims; when it is cleared, it processes the same ranges again.

**Makes** rows in `clean.meter_readings`, each reading once; dead letters of readings that break the contract; the
hours, days and nights that the readings touch, in `water.meter_hours`, `water.meter_days`, `water.district_hours` and
`water.district_nights`; and an event of the asset `hourly_flows` with the ranges and counts: landed = clean +
dead-lettered + duplicates.

**When it fails** nothing is lost and nothing is counted twice. Tasks retry for six hours, and each task can be
repeated. A run that breaks its suite, or whose counts do not balance, stops before all downstream tasks. No new range
is claimed until that run is cleared: docs/runbooks/suite-failed.md.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import dag, task

from include.streams import RETRIES, LandedOffsetsSensor, landing_tasks, task_defaults
from include.water.assets import HOURLY_FLOWS
from include.water.consumers import AGGREGATE_METER_READINGS


@dag(
    schedule="@continuous",
    # A start date in the past is required: without it the first run's data interval is empty, the second run would get
    # the same logical date, and Airflow (3.3) would never create the second run.
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # One claim at a time: the next run claims what landed while this run worked.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    default_args=task_defaults(timedelta(minutes=30), reported=False, **RETRIES),
    tags=["batch", "kafka"],
    doc_md=__doc__,
)
def aggregate_meter_readings():
    @task
    def repair_gaps(run_id: str | None = None) -> dict:
        return landing_tasks.repair_gaps(AGGREGATE_METER_READINGS, run_id)

    @task
    def plan(run_id: str | None = None) -> list[dict]:
        return landing_tasks.plan(AGGREGATE_METER_READINGS, run_id)

    @task
    def validate(unit: dict, run_id: str | None = None) -> dict:
        return landing_tasks.validate(AGGREGATE_METER_READINGS, unit, run_id)

    @task
    def commit_clean(results: list[dict], run_id: str | None = None) -> dict:
        from include.water.flows.replaced import commit

        return commit(AGGREGATE_METER_READINGS, results, run_id)

    @task
    def check_sets(summary: dict) -> dict:
        return landing_tasks.check(AGGREGATE_METER_READINGS, summary)

    @task
    def aggregate(summary: dict) -> dict:
        from include.water.flows.aggregation import aggregate

        return aggregate(summary)

    @task(outlets=[HOURLY_FLOWS])
    def publish(summary: dict, flows: dict, run_id: str | None = None, outlet_events=None) -> dict:
        metadata = landing_tasks.close(AGGREGATE_METER_READINGS, summary, run_id)
        outlet_events[HOURLY_FLOWS].extra = {**metadata, "hours": flows["hours"]}
        return metadata

    units = plan()
    summary = commit_clean(validate.expand(unit=units))
    flows = aggregate(summary)
    LandedOffsetsSensor(task_id="wait_for_readings", consumer=AGGREGATE_METER_READINGS) >> repair_gaps() >> units
    check_sets(summary) >> flows
    publish(summary, flows)


aggregate_meter_readings()
