"""What the policy allows the example's Dags: `tests/dags/policy.py` says how a package gives its own rules."""

TAGS = {"alerts", "ingest", "triage", "dashboards"}
EXEMPTIONS = {
    **{
        ("reports_its_failures", dag_id): "what it claimed stays open, and what it did not claim waits: claim_open, age"
        for dag_id in (
            "raise_alerts", "fan_out_service_requests", "triage_service_request", "aggregate_meter_readings"
        )
    },
    ("reports_its_failures", "refresh_live_board"): "the board itself says that it is behind",
}  # fmt: skip
HEAVY_DAG_FILES = {
    "import_site_register": "shows the Google provider's deferrable sensor, and starts no run in a hurry",
    "refresh_live_board": "shows Airflow's stock trigger, whose module loads the provider of every message queue",
}
