"""An application that costs nothing until somebody asks for it."""

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
