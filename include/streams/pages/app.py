"""The application of one page: static files and a JSON document, for logged-in users only."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import Depends, FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse

from include.streams.pages.document import Document, Unavailable

# Airflow shows a page in a frame of Airflow's own origin, so an injected script could do everything that the user may
# do. With trusted types, the browser refuses to convert a string to markup.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Leaves nothing on the disk of a machine that another person may use later.
    "Cache-Control": "no-store",
}


# Files that are served with every page: Airflow's colors, polling.
SHARED = Path(__file__).parent / "static"


def page_app(folder: Path, read: Callable[[], dict[str, Any]], fresh_seconds: float = 1.0) -> FastAPI:
    """An application that serves a page and, at `state`, its data as JSON.

    Args:
        folder: The folder with index.html and the page's other files; the files in SHARED are served too.
        read: Returns the data. It is called in a thread, at most once per `fresh_seconds` for all browsers together.
        fresh_seconds: Data of at most this age are not read again.
    """
    app = protected_app()
    document = Document(read, fresh_seconds)

    @app.get("/state")
    def state(request: Request) -> Response:
        return answer(request, document)

    serve_files(app, folder)
    return app


def answer(request: Request, document: Document) -> Response:
    """The response with a document, or 304 if the browser has this version.

    Args:
        request: The request.
        document: The document.
    """
    try:
        version = document.get()
    except Unavailable as error:
        return JSONResponse({"detail": str(error)}, status_code=503)
    headers = {"ETag": version.etag, "Age": str(int(version.age_seconds))}
    if request.headers.get("if-none-match") == version.etag:
        return Response(status_code=304, headers=headers)
    return Response(version.body, media_type="application/json", headers=headers)


def serve_files(app: FastAPI, folder: Path) -> None:
    """Serve index.html at the root, and the other files of a folder and of SHARED; call it after all other routes.

    Args:
        app: The application.
        folder: The folder with index.html.
    """
    # A fixed set of files, read at the start, so that no text of a request becomes a path.
    files = {path.name: path.read_bytes() for part in (SHARED, folder) for path in part.iterdir() if path.is_file()}

    @app.get("/")
    def index() -> Response:
        return Response(files["index.html"], media_type="text/html")

    @app.get("/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=mimetypes.guess_type(name)[0] or "application/octet-stream")


def protected_app() -> FastAPI:
    """An application without routes. Every route that is added requires a login, and answers with HEADERS.

    A route may set its own Content-Security-Policy.
    """
    app = FastAPI(
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
        # Off, because these routes would be served without a login.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        if error.status_code == 401 and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{API_ROOT_PATH}api/v2/auth/login?next={quote(request.url.path)}", 303)
        return JSONResponse({"detail": error.detail}, error.status_code)

    app.add_middleware(_WithHeaders)
    return app


class _WithHeaders:
    """Adds HEADERS to every response, including errors; headers that the response already has are kept."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
