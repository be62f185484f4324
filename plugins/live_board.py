"""Pages of this project in the Airflow UI.

Every process of Airflow loads this file, those of tasks included: it imports nothing that a task does not.
"""

from airflow.plugins_manager import AirflowPlugin

from include.pages.lazy import LazyApp


class LiveBoard(AirflowPlugin):
    name = "live_board"
    fastapi_apps = [  # noqa: RUF012
        {
            "name": "live board",
            "app": LazyApp("include.water.dashboards.page:make_app"),
            "url_prefix": "/pages/live-board",
        }
    ]
    external_views = [  # noqa: RUF012
        {
            "name": "Live board",
            # Relative, so that it is found under any base path.
            "href": "pages/live-board/",
            "destination": "nav",
            "url_route": "live-board",
            "nav_top_level": True,
            "icon": "pages/live-board/icon.svg",
            "icon_dark_mode": "pages/live-board/icon-dark.svg",
        }
    ]
