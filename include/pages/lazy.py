"""A page that costs nothing until somebody asks for it.

Every process of Airflow loads `plugins/`, those of tasks included: this module imports nothing that a task does not.
"""

import importlib
from collections.abc import Awaitable, Callable
from typing import Any

Application = Callable[[Any, Any, Any], Awaitable[None]]


class LazyApp:
    """An ASGI application that is made by `factory` ("package.module:function") with the first request.

    Airflow loads plugins in every process, those of tasks included. What a page needs (FastAPI, Airflow's security, a
    database) takes a second to import, and only the api-server ever serves it.
    """

    def __init__(self, factory: str) -> None:
        self._factory = factory
        self._app: Application | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            module, function = self._factory.split(":")
            self._app = getattr(importlib.import_module(module), function)()
        assert self._app is not None
        await self._app(scope, receive, send)


def page(title: str, factory: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A plugin's `fastapi_apps` and `external_views`: the page in the navigation, and the application that serves it.

    title: `Live board` is served at /pages/live-board; the application serves icon.svg and icon-dark.svg, too.
    """
    slug = title.lower().replace(" ", "-")
    served = f"pages/{slug}"
    app = {"name": title.lower(), "app": LazyApp(factory), "url_prefix": f"/{served}"}
    view = {
        "name": title,
        # Relative, so that it is found under any base path.
        "href": f"{served}/",
        "destination": "nav",
        "url_route": slug,
        "nav_top_level": True,
        "icon": f"{served}/icon.svg",
        "icon_dark_mode": f"{served}/icon-dark.svg",
    }
    return [app], [view]
