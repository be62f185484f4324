"""The executive report in the Airflow UI.

Every process of Airflow loads this file, those of tasks included: it imports nothing that a task does not.
"""

from airflow.plugins_manager import AirflowPlugin

from include.pages.lazy import LazyApp


class ExecutiveReport(AirflowPlugin):
    name = "executive_report"
    fastapi_apps = [  # noqa: RUF012
        {
            "name": "executive report",
            "app": LazyApp("include.water.dashboards.report.page:make_app"),
            "url_prefix": "/pages/executive-report",
        }
    ]
    external_views = [  # noqa: RUF012
        {
            "name": "Executive report",
            # Relative, so that it is found under any base path.
            "href": "pages/executive-report/",
            "destination": "nav",
            "url_route": "executive-report",
            "nav_top_level": True,
            "icon": "pages/executive-report/icon.svg",
            "icon_dark_mode": "pages/executive-report/icon-dark.svg",
        }
    ]
