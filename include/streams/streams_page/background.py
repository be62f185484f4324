"""Values that threads read in the background, so that a service that does not answer delays no request for long."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long a request waits for a service. Without an answer by then, the page shows that the service is unavailable.
PATIENCE_SECONDS = 1.5
# While a read takes longer than that, its last value is shown up to this age.
MAX_AGE_SECONDS = 20.0
# Reads that run at the same time. A service that hangs must not leave hundreds of threads in the api-server.
MAX_RUNNING = 24
# Values that are kept: one for each view that somebody has opened.
MAX_KEPT = 300


class Reading(NamedTuple, Generic[T]):
    """The latest value of a service, or the reason why there is none.

    Attributes:
        value: The value; None if it is not known.
        problem: Why it is not known, for people; None if it is known.
    """

    value: T | None
    problem: str | None


class Background(Generic[T]):
    """One value of a service, read again in a thread when it is older than `fresh_seconds`.

    Args:
        service: The service's name, for people.
        read: Reads the value.
        fresh_seconds: A value of at most this age is not read again.
        running: Limits the reads of all values together.
    """

    def __init__(
        self, service: str, read: Callable[[], T], fresh_seconds: float, running: threading.Semaphore | None = None
    ) -> None:
        self.service = service
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._running = running or threading.Semaphore(MAX_RUNNING)
        self._lock = threading.Lock()
        self._done: threading.Event | None = None
        self._value: T | None = None
        self._problem: str | None = None
        self._read_at = float("-inf")

    def get(self, patience: float = PATIENCE_SECONDS) -> Reading[T]:
        """The value; waits at most `patience` seconds for a new one."""
        self.start()
        return self.result(time.monotonic() + patience)

    def start(self) -> None:
        """Begin to read, unless the value is fresh or another thread reads it."""
        with self._lock:
            if self._done is not None or time.monotonic() - self._read_at < self._fresh_seconds:
                return
            if not self._running.acquire(blocking=False):
                self._problem = "too many requests wait for an answer"
                return
            self._done = threading.Event()
        # A daemon: a read that hangs must not keep the api-server from stopping.
        threading.Thread(target=self._work, name=f"streams page: {self.service}", daemon=True).start()

    def result(self, until: float) -> Reading[T]:
        """The value.

        Args:
            until: A time of the monotonic clock, until which a running read is awaited.
        """
        done = self._done
        if done is not None and not done.wait(max(0.0, until - time.monotonic())):
            age = time.monotonic() - self._read_at
            if self._value is not None and age < MAX_AGE_SECONDS:
                return Reading(self._value, None)
            return Reading(None, "does not answer")
        with self._lock:
            return Reading(self._value, self._problem if self._value is None else None)

    def _work(self) -> None:
        value, problem, error = None, None, None
        try:
            value = self._read()
        except Exception as failure:
            # The browser gets no details: they may name hosts and users.
            error, problem = failure, f"cannot be read ({type(failure).__name__}); the api-server's log says why"
        finally:
            self._running.release()
        with self._lock:
            if problem is not None and self._problem != problem:
                # Logged once per outage, not at each read.
                log.warning("the Streams page cannot read %s: %s", self.service, error, exc_info=error)
            self._value, self._problem, self._read_at = value, problem, time.monotonic()
            done, self._done = self._done, None
        assert done is not None
        done.set()


class Backgrounds:
    """The background values of a page, by key."""

    def __init__(self) -> None:
        self._running = threading.Semaphore(MAX_RUNNING)
        self._lock = threading.Lock()
        self._values: OrderedDict[tuple[str, ...], Background[Any]] = OrderedDict()

    def of(self, key: tuple[str, ...], service: str, read: Callable[[], Any], fresh_seconds: float) -> Background[Any]:
        """The background value with this key; created at the first call, forgotten when MAX_KEPT others were used."""
        with self._lock:
            known = self._values.pop(key, None)
            self._values[key] = known or Background(service, read, fresh_seconds, self._running)
            while len(self._values) > MAX_KEPT:
                self._values.popitem(last=False)
            return self._values[key]

    def gather(self, wanted: list[Background[Any]], patience: float = PATIENCE_SECONDS) -> list[Reading[Any]]:
        """The values, read at the same time; waits at most `patience` seconds for all of them together."""
        until = time.monotonic() + patience
        for each in wanted:
            each.start()
        return [each.result(until) for each in wanted]
