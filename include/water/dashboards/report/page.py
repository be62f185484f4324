"""The report inside the Airflow UI; created in the api-server when somebody opens it (see plugins/)."""

from __future__ import annotations

import logging
import threading
from html import escape
from pathlib import Path

from fastapi import FastAPI, Response

from include.streams.lake.buckets import Bucket, bucket
from include.streams.pages.app import protected_app
from include.water.dashboards.report.publish import HTML, latest
from include.water.dashboards.report.render import STYLE, style_source

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
# The store may not answer for minutes, and the api-server has about 40 threads for all requests.
MAX_READERS = 4
PATIENCE_SECONDS = 10.0

# The page comes from a bucket and is served from Airflow's own origin. Anybody who can write to the bucket could put a
# script into the page. So the policy makes the browser show it as a page without an origin, which runs no script and
# loads nothing.
POLICY = (
    "default-src 'none'; style-src {style}; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)


def make_app() -> FastAPI:
    app = protected_app()
    readers = threading.BoundedSemaphore(MAX_READERS)

    @app.get("/")
    def report() -> Response:
        if not readers.acquire(timeout=PATIENCE_SECONDS):
            return _message("The report cannot be read now.", "The object store does not answer.", 503)
        try:
            return _newest(bucket())
        except Exception:
            # The response contains no detail: it might reveal hosts and accounts.
            log.exception("the executive report cannot be read")
            return _message("The report cannot be read now.", "See the api-server's log.", 503)
        finally:
            readers.release()

    @app.get("/{name}")
    def icon(name: str) -> Response:
        if name not in ("icon.svg", "icon-dark.svg"):
            return Response(status_code=404)
        return Response((FOLDER / name).read_bytes(), media_type="image/svg+xml")

    return app


def _newest(remote: Bucket) -> Response:
    # Try twice: between the two reads, a newer report may have replaced the pointer's report, and pruning removed it.
    for _ in range(2):
        pointer = latest(remote)
        if pointer is None:
            break
        if found := remote.read(pointer.path):
            headers = {"Content-Security-Policy": POLICY.format(style=pointer.style)}
            return Response(found[0], headers=headers, media_type=HTML)
    return _message(
        "There is no report yet.", "The Dag publish_dashboard writes it when there are new hourly flows.", 200
    )


def _message(title: str, text: str, status: int) -> Response:
    body = f'<h1>{escape(title)}</h1><p class="deck">{escape(text)}</p>'
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f'<body><main><div class="lead">{body}</div></main></body></html>'
    )
    headers = {"Content-Security-Policy": POLICY.format(style=style_source(STYLE))}
    return Response(page, status, headers, media_type=HTML)
