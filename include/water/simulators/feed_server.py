"""An HTTP server on loopback that answers like the USGS feed."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from include.water.simulators.quakes import Quakes

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_SUMMARY = re.compile(r"/earthquakes/feed/v1\.0/summary/all_(hour|day|week|month)\.geojson")
_BACK = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
}


def server(port: int, quakes: Quakes) -> ThreadingHTTPServer:
    """Return a server that is bound but does not serve yet.

    Args:
        port: The port on loopback; 0: any free port.
        quakes: The earthquakes to show.

    Raises:
        OSError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30  # an idle connection must not hold its thread forever

        def do_GET(self) -> None:
            summary = _SUMMARY.fullmatch(self.path)
            if summary:
                self._answer(200, _collection(quakes, self.path, _BACK[summary[1]]), "application/geo+json")
            elif self.path == "/":
                self._answer(200, b"ready\n", "text/plain")
            else:
                self._answer(404, b"not found\n", "text/plain")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    return ThreadingHTTPServer((HOST, port), Handler)


def serve(port: int, quakes: Quakes) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    with server(port, quakes) as running:

        def stop(*_: object) -> None:
            # shutdown() waits for the loop that this handler has interrupted, so it must run in another thread.
            threading.Thread(target=running.shutdown).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        log.info("seismic feed: http://%s:%d", HOST, running.server_address[1])
        running.serve_forever(poll_interval=0.2)


def _collection(quakes: Quakes, path: str, back: timedelta) -> bytes:
    now = datetime.now(UTC)
    features = quakes.features(now, back)
    document = {
        "type": "FeatureCollection",
        "metadata": {
            "generated": int(now.timestamp() * 1000),
            "url": path,
            "title": "Simulated earthquakes",
            "status": 200,
            "api": "1.10.3",
            "count": len(features),
        },
        "features": features,
    }
    return json.dumps(document).encode()
