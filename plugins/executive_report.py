"""The executive report in the Airflow UI."""

from airflow.plugins_manager import AirflowPlugin

from include.streams.pages.lazy import page


class ExecutiveReport(AirflowPlugin):
    name = "executive_report"
    fastapi_apps, external_views = page("Executive report", "include.water.dashboards.report.page:make_app")
