"""The live board in the Airflow UI."""

from airflow.plugins_manager import AirflowPlugin

from include.streams.pages.lazy import page


class LiveBoard(AirflowPlugin):
    name = "live_board"
    fastapi_apps, external_views = page("Live board", "include.water.dashboards.page:make_app")
