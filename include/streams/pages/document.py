"""A JSON document that many browsers poll, and that is read once for all of them."""

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

# While a read blocks (the database is unavailable), requests still get the previous version up to this age. Browsers
# mark only older versions as outdated.
MAX_AGE_SECONDS = 5.0


class Unavailable(Exception):
    """The data of the document cannot be read now."""


@dataclass(frozen=True)
class Version:
    """The data of one read.

    Attributes:
        body: The data as JSON in UTF-8.
        etag: The ETag of the body, with quotes.
        read_at: When the read began, a time of `time.monotonic`.
    """

    body: bytes
    etag: str
    read_at: float

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.read_at


class Document:
    """Data as JSON, read again when they are older than `fresh_seconds`.

    One thread reads at a time, and no other thread waits for it: the api-server has about forty threads in total, and
    browsers that poll during an outage would occupy all of them.

    Args:
        read: Returns the data.
        fresh_seconds: Data of at most this age are not read again.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], fresh_seconds: float) -> None:
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._reading = threading.Lock()
        self._version: Version | None = None
        self._failing = False

    def get(self) -> Version:
        """The present version, or the last one while another thread reads.

        Raises:
            Unavailable: The data cannot be read, or another thread is reading and the last version is older than
                MAX_AGE_SECONDS.
        """
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
        read_at = time.monotonic()  # before the read: later changes may not be in it
        try:
            body = json.dumps(self._read(), separators=(",", ":")).encode()
        except Exception as error:
            if not self._failing:
                # Logged once per episode, not every second. The browser gets no details: they may name hosts and users.
                log.exception("a page cannot read its data")
                self._failing = True
            raise Unavailable("the data of this page cannot be read; see the api-server's log") from error
        if self._failing:
            log.info("a page can read its data again")
            self._failing = False
        version = Version(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', read_at)
        self._version = version
        return version
