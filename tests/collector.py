"""A StatsD listener: what Airflow's own client sends, as a collector gets it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger

from include.streams.operations import metrics


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
