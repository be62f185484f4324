"""Deliver outbox rows as HTTP POSTs."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import Row

from include.streams.compat.connections import is_defined
from include.streams.operations.outbox import request_headers
from include.streams.operations.outbox_delivery import Answer, Attempt

if TYPE_CHECKING:
    from airflow.providers.http.hooks.http import HttpHook

    from include.streams.operations.bounded_http import Deadline

# To connect, and for each receive.
CONNECT_SECONDS, READ_SECONDS = 5, 10
# For one request as a whole: a receiver that answers one byte at a time would hold the delivery for hours.
REQUEST_SECONDS = 15
# Concurrent POSTs to one receiver, each over a connection that stays open.
CONNECTIONS = 8
# Status codes after which the receiver may accept the request later.
_TRY_LATER = {408, 425, 429}


class Requests:
    """The transport for rows that are HTTP POSTs; their destination is the id of an Airflow HTTP connection."""

    rows_at_once = 200
    is_one_receiver = True

    def __init__(self) -> None:
        self._skipped: dict[str, str | None] = {}

    def why_skipped(self, destination: str) -> str | None:
        """A text when the connection is not defined; None when it is defined.

        Raises:
            LookUpFailed: Airflow could not look up the connection.
        """
        if destination not in self._skipped:
            undefined = f"connection {destination} is not defined"
            self._skipped[destination] = None if is_defined(destination) else undefined
        return self._skipped[destination]

    def deliver(self, destination: str, rows: Sequence[Row], until: float) -> Attempt:
        """POST each row's JSON, with the row's id as Idempotency-Key, several at once.

        The connection's host may contain a path; its extra holds headers such as a token. No error shows the address,
        because the address of a chat program's webhook is its password.

        Args:
            destination: The id of the Airflow HTTP connection.
            rows: Rows of the outbox.
            until: No further request is started after this time of `time.monotonic`.

        Returns:
            The answers. `away` is set after as many consecutive requests without an answer as there are connections in
            use, but at least two, or when the connection cannot be used.
        """
        from airflow.providers.http.hooks.http import HttpHook

        from include.streams.operations.bounded_http import Deadline

        # Up to 15 rows are sent one after the other, in order, such as an opened alarm and then its close.
        workers = max(1, min(CONNECTIONS, len(rows) // CONNECTIONS))
        batch = _Batch(rows, until, workers)
        hook = HttpHook(method="POST", http_conn_id=destination)
        try:
            # The deadline outlasts the pool, which waits for its threads however this block ends.
            with Deadline() as deadline, ThreadPoolExecutor(workers) as pool:
                for work in [pool.submit(_work, hook, batch, deadline) for _ in range(workers)]:
                    work.result()
        except Exception as error:
            # The connection is invalid (it has no scheme, or its extra is not JSON), or was not found this time. The
            # answers that other threads got are kept.
            return replace(batch.attempt(), away=f"connection {destination} cannot be used: {type(error).__name__}")
        return batch.attempt()


class _Batch:
    """Rows that several threads send, and the answers to them."""

    def __init__(self, rows: Sequence[Row], until: float, workers: int) -> None:
        self._rows: Iterator[Row] = iter(rows)
        self._until = until
        self._workers = workers
        self._lock = threading.Lock()
        self._answers: dict[int, tuple[Answer, str]] = {}
        # How many of the latest requests had no answer, and how many of these are for rows that are not known to be
        # bad.
        self._unanswered, self._new_unanswered = 0, 0
        self._away: str | None = None

    def next_row(self) -> Row | None:
        with self._lock:
            if self._away is not None or time.monotonic() >= self._until:
                return None
            return next(self._rows, None)

    def note(self, row: Row, answer: Answer, error: str) -> None:
        with self._lock:
            self._answers[row.sequence] = (answer, error)
            if answer is not Answer.none:
                self._unanswered, self._new_unanswered = 0, 0
                return
            self._unanswered += 1
            self._new_unanswered += row.attempts == 0
            # At least two: one request that is never answered must not delay the following ones.
            if self._new_unanswered >= max(2, self._workers) or self._unanswered >= CONNECTIONS:
                self._away = error

    def attempt(self) -> Attempt:
        return Attempt(self._answers, self._away)


def _work(hook: "HttpHook", batch: _Batch, deadline: "Deadline") -> None:
    from requests import RequestException

    from include.streams.operations.bounded_http import TookTooLong

    session = hook.get_conn({"Content-Type": "application/json"})
    conn_id = hook.http_conn_id
    poster = deadline.poster(session, seconds=REQUEST_SECONDS)
    with session:
        while (row := batch.next_row()) is not None:
            try:
                status = poster.post(
                    hook.base_url,
                    body=row.body,
                    headers=request_headers(row),
                    timeout=(CONNECT_SECONDS, READ_SECONDS),
                )
            except TookTooLong:
                batch.note(row, Answer.none, f"{conn_id} did not answer within {REQUEST_SECONDS} s")
                continue
            except RequestException as error:
                batch.note(row, Answer.none, f"{conn_id} cannot be reached: {type(error).__name__}")
                continue
            if status >= 500 or status in _TRY_LATER:
                batch.note(row, Answer.none, f"{conn_id} answered {status}")
            elif status >= 300:
                batch.note(row, Answer.refused, f"{conn_id} answered {status}")
            else:
                batch.note(row, Answer.delivered, "")
