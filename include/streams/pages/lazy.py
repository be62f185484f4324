"""A page that costs nothing until its first request.

Every process of Airflow loads `plugins/`, including those of tasks. So this module imports only modules that every task
imports.
"""

import importlib
from collections.abc import Awaitable, Callable
from typing import Any

Application = Callable[[Any, Any, Any], Awaitable[None]]


class LazyApp:
    """An ASGI application that is created at the first request.

    Airflow loads plugins in every process, including those of tasks. The imports of a page (FastAPI, Airflow's
    security, a database) take a second, and only the api-server serves pages.

    Args:
        factory: "package.module:function" of the function that creates the application.
        arguments: "package.module:NAME" of each argument of the function.
    """

    def __init__(self, factory: str, *arguments: str) -> None:
        self._factory = factory
        self._arguments = arguments
        self._app: Application | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            make, *arguments = map(_load, (self._factory, *self._arguments))
            self._app = make(*arguments)
        assert self._app is not None
        await self._app(scope, receive, send)


def _load(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def page(title: str, factory: str, *arguments: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A plugin's `fastapi_apps` and `external_views`: the application of a page, and its entry in the navigation.

    Args:
        title: The title in the navigation. `Live board` is served at /pages/live-board.
        factory: "package.module:function" of the function that creates the application. The application must also serve
            icon.svg and icon-dark.svg.
        arguments: "package.module:NAME" of each argument of the function, such as the project.
    """
    slug = title.lower().replace(" ", "-")
    served = f"pages/{slug}"
    app = {"name": title.lower(), "app": LazyApp(factory, *arguments), "url_prefix": f"/{served}"}
    view = {
        "name": title,
        # A relative URL works under any base path.
        "href": f"{served}/",
        "destination": "nav",
        "url_route": slug,
        "nav_top_level": True,
        "icon": f"{served}/icon.svg",
        "icon_dark_mode": f"{served}/icon-dark.svg",
    }
    return [app], [view]
