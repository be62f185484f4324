"""The Streams page in the Airflow UI: consumers, landed topics, alarms."""

from airflow.plugins_manager import AirflowPlugin

from include.streams.pages.lazy import page


class Streams(AirflowPlugin):
    name = "streams"
    fastapi_apps, external_views = page(
        "Streams", "include.streams.streams_page.app:make_app", "include.project:PROJECT"
    )
