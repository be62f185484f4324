"""The policy's settings for the example's Dags; `tests/dags/policy.py` reads them."""

TAGS = {"alerts", "ingest", "triage", "dashboards"}
EXEMPTIONS = {
    ("reports_its_failures", "refresh_live_board"): "the board itself says that it is behind",
}
HEAVY_DAG_FILES = {
    "import_site_register": "shows the Google provider's deferrable sensor, and starts no run in a hurry",
    "refresh_live_board": "shows Airflow's stock trigger, whose module loads the provider of every message queue",
}
