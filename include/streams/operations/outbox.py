"""Outbox: messages and requests that are written in the transaction of the effect, to be delivered afterwards.

This module only inserts rows. `outbox_delivery.py` delivers them, at least once. The rows of one consumer to one
destination are a route. The receiver gets the row's id as idempotency key, the same for every delivery of the row.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, func, insert

from include.streams.operations.tables import outbox

if TYPE_CHECKING:
    from include.streams.contracts import Contract, Topic

# The task that wrote a row has this long to deliver it, because it handles the rest of its chunk first. After this time
# the Dag delivers the row: the task may have been killed.
WRITER_SECONDS = 30.0
_GATHERED = "include.streams.operations.outbox"
# The names of W3C trace context. Rows that are written within `tracing` have these headers.
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_trace: ContextVar[Mapping[str, bytes]] = ContextVar("trace headers of the outbox")


class Route(NamedTuple):
    """The rows of one consumer to one destination; `kind` is `message` or `request`."""

    consumer: str
    kind: str
    destination: str


Written = dict[Route, list[UUID]]


@contextmanager
def gathered(connection: Connection) -> Iterator[Written]:
    """Collect the rows that are added in the block, and insert them at its end in one statement.

    For a transaction with many effects. The caller must also deliver the rows: the Dag does not deliver them for
    WRITER_SECONDS.

    Args:
        connection: A connection in the transaction of the rows.

    Yields:
        The ids of the rows by route; complete only after the block.
    """
    rows: list[dict[str, Any]] = []
    written: Written = {}
    # Read once: a lost connection has no `info`, and the block's own error must reach the caller.
    info = connection.info
    info[_GATHERED] = rows
    try:
        yield written
    finally:
        del info[_GATHERED]
    if rows:
        connection.execute(_INSERT_GATHERED, rows)
    for row in rows:
        written.setdefault(Route(row["consumer"], row["kind"], row["destination"]), []).append(row["id"])


@contextmanager
def tracing(headers: Mapping[str, bytes]) -> Iterator[None]:
    """Give the rows that are added in the block these trace headers, for the receivers' traces.

    Args:
        headers: The valid trace headers of the message whose effect adds the rows.

    Yields:
        None.
    """
    token = _trace.set(headers)
    try:
        yield
    finally:
        _trace.reset(token)


_INSERT = insert(outbox)
_INSERT_GATHERED = insert(outbox).values(due_at=func.now() + timedelta(seconds=WRITER_SECONDS))


def add_message(connection: Connection, *, consumer: str, topic: "Topic", event: "Contract") -> None:
    """Add a Kafka message, to be sent once this transaction is committed.

    Args:
        connection: A connection in the transaction.
        consumer: The consumer whose effect adds the message; its alarms name a message that is not delivered.
        topic: The topic of the message.
        event: The message's content; it gives the key too.
    """
    key, value, headers = topic.outgoing(event)
    traced = [*headers, *_trace.get({}).items()]
    _add(connection, Route(consumer, "message", topic.name), key, value, traced)


def add_record(
    connection: Connection,
    *,
    consumer: str,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> None:
    """Add a raw Kafka record, to be sent once this transaction is committed.

    Args:
        connection: A connection in the transaction.
        consumer: The consumer whose alarms name a record that is not delivered.
        topic: The topic's name.
        key: The record's key; None for none.
        value: The record's value; None for none.
        headers: Names and values in the record's order; a name may occur several times. The delivery appends
            `idempotency-key`.
    """
    _add(connection, Route(consumer, "message", topic), key, value, headers)


def record_headers(row: Row) -> list[tuple[str, bytes | None]]:
    """The headers of the record for a row of kind `message`.

    Args:
        row: The row.

    Returns:
        (name, value) of each: the row's own headers, then its id as `idempotency-key`.
    """
    return [*_own_headers(row), ("idempotency-key", str(row.id).encode())]


def request_headers(row: Row) -> dict[str, str]:
    """The headers of the request for a row of kind `request`.

    Args:
        row: The row.

    Returns:
        {name: value}: its trace headers, and its id as `Idempotency-Key`.
    """
    traced = {name: value.decode("ascii", "replace") for name, value in _own_headers(row) if value is not None}
    return {**traced, "Idempotency-Key": str(row.id)}


def _own_headers(row: Row) -> list[tuple[str, bytes | None]]:
    return [(name, None if part is None else b64decode(part)) for name, part in json.loads(row.headers or "[]")]


def add_request(connection: Connection, *, consumer: str, conn_id: str, payload: Mapping[str, Any]) -> None:
    """Add an HTTP POST of JSON, to be sent once this transaction is committed.

    Args:
        connection: A connection in the transaction.
        consumer: The consumer whose alarms name a request that is not delivered.
        conn_id: The Airflow HTTP connection of the receiver. While it is not defined, rows are skipped.
        payload: The body; values that are not JSON are converted with `str`.
    """
    body = json.dumps(payload, ensure_ascii=False, sort_keys=True, default=str).encode()
    _add(connection, Route(consumer, "request", conn_id), None, body)


def _add(
    connection: Connection,
    route: Route,
    key: bytes | None,
    body: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] | None = None,
) -> None:
    if headers is None:
        # A raw record, such as a dead letter, keeps exactly its own headers.
        headers = list(_trace.get({}).items())
    kept = json.dumps([[name, None if part is None else b64encode(part).decode()] for name, part in headers])
    row = {"id": uuid4(), **route._asdict(), "key": key, "body": body, "headers": kept if headers else None}
    gathering = connection.info.get(_GATHERED)
    if gathering is None:
        connection.execute(_INSERT, row)
    else:
        gathering.append(row)
