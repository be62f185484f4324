"""The application of the Streams page; created in the api-server when somebody opens the page (see plugins/)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse

from include.streams.packages import Project
from include.streams.pages.app import answer, protected_app, serve_files
from include.streams.pages.document import Document
from include.streams.pages.reading import read_only
from include.streams.streams_page.views import Unknown, Views

FOLDER = Path(__file__).parent / "static"
# Documents that are kept: one for each view that somebody has open.
MAX_DOCUMENTS = 300
FRESH_SECONDS = 1.0
# The repository's runbooks; `.dockerignore` leaves them in the image.
RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"


def make_app(project: Project) -> FastAPI:
    """Create the application.

    Args:
        project: The project that the page shows.
    """
    app = protected_app()
    views = Views(project, _with_database)
    documents = _Documents()

    @app.get("/state")
    def state(request: Request) -> Response:
        return answer(request, documents.of("overview", views.overview))

    @app.get("/state/consumers/{name}")
    def consumer(request: Request, name: str) -> Response:
        return answer(request, documents.of(f"consumer {views.known_consumer(name)}", partial(views.consumer, name)))

    @app.get("/state/topics/{name}")
    def topic(request: Request, name: str) -> Response:
        return answer(request, documents.of(f"topic {views.known_topic(name)}", partial(views.topic, name)))

    # A fixed set of files, read at the start, so that no text of a request becomes a path.
    runbooks = {path.name: path.read_bytes() for path in RUNBOOKS.glob("*.md")}

    @app.get("/runbooks/{name}")
    def runbook(name: str) -> Response:
        if name not in runbooks:
            return JSONResponse({"detail": "this deployment has no runbook of this name"}, status_code=404)
        return Response(runbooks[name], media_type="text/plain; charset=utf-8")

    @app.exception_handler(Unknown)
    async def unknown(request: Request, error: Unknown) -> Response:
        return JSONResponse({"detail": str(error)}, status_code=404)

    serve_files(app, FOLDER)
    return app


def _with_database(read: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    with read_only() as connection:
        return read(connection)


class _Documents:
    """The documents of the views, each read once for all browsers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: OrderedDict[str, Document] = OrderedDict()

    def of(self, key: str, read: Callable[[], dict[str, Any]]) -> Document:
        with self._lock:
            document = self._documents.pop(key, None) or Document(read, FRESH_SECONDS)
            self._documents[key] = document
            while len(self._documents) > MAX_DOCUMENTS:
                self._documents.popitem(last=False)
            return document
