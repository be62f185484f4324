"""Collectors: a StatsD listener and an OTLP receiver, which get what Airflow's own clients send."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from include.streams.operations import metrics


class OtlpReceiver(ThreadingHTTPServer):
    """An OpenTelemetry collector over HTTP.

    Attributes:
        metrics: All metrics that have arrived, in their order.
        spans: All spans.
    """

    def __init__(self) -> None:
        receiver = self
        self.metrics: list[Any] = []
        self.spans: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.add(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def add(self, path: str, body: bytes) -> None:
        if path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics += [metric for scope in resource.scope_metrics for metric in scope.metrics]
        else:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def values(self, name: str) -> list[tuple[dict[str, str], float]]:
        """(attributes, value) of each point of a counter or gauge."""
        return [
            (attributes_of(point), point.as_int or point.as_double)
            for metric in list(self.metrics)
            if metric.name == name
            for point in (*metric.sum.data_points, *metric.gauge.data_points)
        ]


def attributes_of(point: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in point.attributes}


class Listener:
    """The lines that have arrived on a UDP port.

    Args:
        listener: A bound socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._socket = listener

    def lines(self, number: int) -> list[str]:
        """Wait for this many lines that are about the library, and return them in their order."""
        found: list[str] = []
        until = time.monotonic() + 10
        while len(found) < number:
            assert time.monotonic() < until, found
            line = self._socket.recv(4096).decode()
            if line.startswith(("airflow.streams.", "airflow.messaging.")):
                found.append(line)
        return found

    def drain(self) -> dict[str, list[str]]:
        """{name with tags: its values} of everything that has arrived so far."""
        self._socket.setblocking(False)
        found: dict[str, list[str]] = {}
        try:
            while True:
                name, _, value = self._socket.recv(4096).decode().rpartition(":")
                found.setdefault(name.removeprefix("airflow."), []).append(value)
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(10)


@contextmanager
def initialized() -> Iterator[None]:
    """Let this process send its metrics as Airflow's settings say now, as in a task's process."""
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics import stats_utils

    metrics._backend.cache_clear()
    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
    try:
        yield
    finally:
        metrics._backend.cache_clear()
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


@contextmanager
def listening(**settings: str) -> Iterator[Listener]:
    """Let this process send its metrics to a listener, as Airflow sets up a task's process.

    Args:
        settings: Further settings of [metrics].
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        port = str(listener.getsockname()[1])
        for name, value in {"statsd_on": "True", "statsd_host": "127.0.0.1", "statsd_port": port, **settings}.items():
            patch.setenv(f"AIRFLOW__METRICS__{name.upper()}", value)
        with initialized():
            yield Listener(listener)
