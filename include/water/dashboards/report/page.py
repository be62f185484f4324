"""The report inside the Airflow UI; made in the api-server when somebody opens it (see plugins/)."""

from __future__ import annotations

import logging
import threading
from html import escape
from pathlib import Path

from fastapi import FastAPI, Response

from include.lake.buckets import Bucket, bucket
from include.pages.app import protected_app
from include.water.dashboards.report.publish import HTML, latest
from include.water.dashboards.report.render import STYLE, style_source

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
# The store may be away for minutes; the api-server has some forty threads for everything.
MAX_READERS = 4
PATIENCE_SECONDS = 10.0

# A page from a bucket, in Airflow's own origin. Whoever can write to the bucket could put anything into it: so it is
# shown as a page without an origin, in which no script runs and which loads nothing, and the browser sees to that.
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
            # The reader gets no detail: it may name hosts and accounts.
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
    # Once more for a report that a newer one has replaced, and that was pruned, between the two readings.
    for _ in range(2):
        pointer = latest(remote)
        if pointer is None:
            break
        if found := remote.read(pointer.path):
            headers = {"Content-Security-Policy": POLICY.format(style=pointer.style)}
            return Response(found[0], headers=headers, media_type=HTML)
    return _message(
        "There is no report yet.", "The Dag publish_dashboard makes one when there are new hourly flows.", 200
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
