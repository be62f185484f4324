"""A JSON document that many browsers poll, read once for all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

# While a reading hangs (database away), the last one is still given to who asks, for as long as a browser would not
# call it old.
MAX_AGE_SECONDS = 5.0


class Unavailable(Exception):
    """What the document shows cannot be read now."""


@dataclass(frozen=True)
class Version:
    """What was read, at one moment."""

    body: bytes
    etag: str
    read_at: float

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.read_at


class Document:
    """What `read` returns as JSON, read again when it is older than `fresh_seconds`.

    One thread reads at a time, and no other waits for it: the api-server has some forty threads for everything, and
    browsers that poll during an outage would take them all.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], fresh_seconds: float) -> None:
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._reading = threading.Lock()
        self._version: Version | None = None
        self._failing = False

    def get(self) -> Version:
        """Raises Unavailable."""
        version = self._version
        if version is not None and version.age_seconds < self._fresh_seconds:
            return version
        if not self._reading.acquire(blocking=False):
            if version is not None and version.age_seconds < MAX_AGE_SECONDS:
                return version
            raise Unavailable("the database does not answer")
        try:
            return self._read_again()
        finally:
            self._reading.release()

    def _read_again(self) -> Version:
        read_at = time.monotonic()  # before the reading: what changes meanwhile is not in it
        try:
            body = json.dumps(self._read(), separators=(",", ":")).encode()
        except Exception as error:
            if not self._failing:
                # Once an episode, not every second. The browser gets no detail: it may name hosts and users.
                log.exception("a page cannot read what it shows")
                self._failing = True
            raise Unavailable("what this page shows cannot be read; see the api-server's log") from error
        if self._failing:
            log.info("a page can read what it shows again")
            self._failing = False
        version = Version(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', read_at)
        self._version = version
        return version
