"""HTTP requests with a limit on their total time, however slowly the receiver answers.

The timeouts of `requests` and urllib3 (also urllib3's `total`) limit each receive. A receiver that sends one byte every
few seconds, as headers or as a body, or a body that never ends, would hold its caller for hours.
"""

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Self

from requests import RequestException, Response, Session
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

# Between two checks for overdue requests: a request takes at most this much longer than its limit.
CHECK_SECONDS = 0.25
# A body up to this size is read, so that its connection can be used again. After a longer body, the connection is
# closed.
MAX_BODY_BYTES = 16 * 1024


class TookTooLong(Exception):
    """The request was ended before its headers were complete."""


class Deadline:
    """Ends overdue requests, from a thread of its own.

    A context manager; the thread ends with the block. The block must not end before its requests.
    """

    def __init__(self) -> None:
        self._posters: list[Poster] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._end_overdue, name="deadline of requests", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def poster(self, session: Session, *, seconds: float) -> "Poster":
        """Take over a session, for one thread; each of its requests ends after `seconds`."""
        poster = Poster(session, seconds)
        self._posters.append(poster)
        return poster

    def _end_overdue(self) -> None:
        while not self._done.wait(CHECK_SECONDS):
            for poster in list(self._posters):
                poster.end_if_overdue()


class Poster:
    """Sends POSTs one after the other, over a connection that stays open if the receiver keeps it open."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session = session
        self._seconds = seconds
        self._adapter = _Adapter()
        for scheme in ("http://", "https://"):
            session.mount(scheme, self._adapter)
        # Redirects are not followed, because the client would follow a redirected POST with a GET. The target is not
        # read either, because the client would read the whole body first.
        session.get_redirect_target = lambda resp: None
        self._lock = threading.Lock()
        # None between two requests.
        self._ends_at: float | None = None
        self._ended = False

    def post(self, url: str, *, body: bytes, headers: Mapping[str, str], timeout: tuple[float, float]) -> int:
        """Send a POST.

        Args:
            url: The address.
            body: The content.
            headers: Headers besides those of the session.
            timeout: For connecting, and for each receive.

        Returns:
            The status. The body does not count, because the receiver has decided when it sends the status.

        Raises:
            TookTooLong: The headers were not complete in time.
            RequestException: There was no answer.
        """
        with self._lock:
            self._ends_at, self._ended = time.monotonic() + self._seconds, False
        try:
            with self._session.post(
                url, data=body, headers=headers, timeout=timeout, allow_redirects=False, stream=True
            ) as response:
                # The client treats truncated headers as complete.
                if self._ended:
                    raise TookTooLong
                _read(response)
                return response.status_code
        except RequestException:
            if self._ended:
                raise TookTooLong from None
            raise
        finally:
            with self._lock:
                self._ends_at = None

    def end_if_overdue(self) -> None:
        """End the present request if it is overdue. Called by another thread.

        Repeated calls are needed, because a request that is still connecting at its deadline has no socket yet.
        """
        # With the lock, so that this never ends the next request.
        with self._lock:
            if self._ends_at is not None and time.monotonic() >= self._ends_at:
                self._ended = True
                self._adapter.shut_down()


class _Adapter(HTTPAdapter):
    """Records the socket of its latest request; `requests` and urllib3 give no access to it before the headers."""

    def __init__(self) -> None:
        self._socket: Any = None
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not isinstance(pool.ConnectionCls, partial):
            pool.ConnectionCls = partial(self._connection, pool.ConnectionCls)
        return pool

    def _connection(self, make: Any, *args: Any, **kwargs: Any) -> Any:
        connection = make(*args, **kwargs)
        send = connection.send

        def send_and_record_socket(data: Any) -> None:
            send(data)
            # Recorded now, because the connection drops its socket before the body if the receiver will close it.
            self._socket = connection.sock

        connection.send = send_and_record_socket
        return connection

    def shut_down(self) -> None:
        """Shut the socket down, so that a thread that reads from it reads its end."""
        if self._socket is not None:
            # For TLS to a receiver through TLS to a proxy, the object is no socket but holds one. The method of a plain
            # socket is called: a TLS socket's own method would change the state that the reading thread uses.
            with suppress(OSError):
                socket.socket.shutdown(getattr(self._socket, "socket", self._socket), socket.SHUT_RDWR)


def _read(response: Response) -> None:
    """Read a short body. If the body is longer or breaks off, closing the response closes the connection."""
    if (response.raw.length_remaining or 0) > MAX_BODY_BYTES:
        return
    size = 0
    # Not decoded, because a few kB may decode to gigabytes.
    with suppress(HTTPError, OSError):
        for part in response.raw.stream(1024, decode_content=False):
            size += len(part)
            if size > MAX_BODY_BYTES:
                return
