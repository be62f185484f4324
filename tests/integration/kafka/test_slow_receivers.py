"""A receiver that answers slowly, without end, or at length: a request takes a limited time, and counts once."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from sqlalchemy import text

from include.streams.operations import outbox_delivery
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import deliver_now
from tests.integration.kafka.test_outbox_delivery import add_requests, states

pytestmark = pytest.mark.integration

# The time between two bytes. It is shorter than READ_SECONDS, so that no single receive takes too long.
PAUSE_SECONDS = 0.3
Answer = Callable[[socket.socket], None]


class Wire:
    """A receiver that answers each request with the bytes that `answer` sends, and counts connections and requests."""

    def __init__(self, answer: Answer) -> None:
        self.connections = self.requests = 0
        self._open: list[socket.socket] = []
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                size = 0
                while line.strip():
                    name, _, value = line.partition(b":")
                    size = int(value) if name.lower() == b"content-length" else size
                    line = lines.readline()
                lines.read(size)
                self.requests += 1
                self._answer(connection)

    def close(self) -> None:
        """End, also for a delivery that hangs."""
        self._listening.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def make_wire(monkeypatch) -> Iterator[Callable[[Answer], tuple[Wire, str]]]:
    made: list[Wire] = []

    def make(answer: Answer) -> tuple[Wire, str]:
        wire = Wire(answer)
        made.append(wire)
        conn_id = f"wire_{uuid.uuid4().hex[:8]}"
        connection = {"conn_type": "http", "host": "127.0.0.1", "port": wire.port, "schema": "http"}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
        return wire, conn_id

    yield make
    for wire in made:
        wire.close()


def trickle(connection: socket.socket, data: bytes) -> None:
    """Send the bytes one by one, again and again without end."""
    while True:
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])
            time.sleep(PAUSE_SECONDS)


def slow_status(connection: socket.socket) -> None:
    trickle(connection, b"HTTP/1.1 200 " + b"O" * 1000)


def slow_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    trickle(connection, b"X-Slow: " + b"x" * 1000)


def slow_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    trickle(connection, b"x")


def slow_chunk_size(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    trickle(connection, b"0")


def slow_last_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    trickle(connection, b"x")


def event_stream(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    trickle(connection, b"5\r\n:hi\r\n\r\n")


def endless_redirect(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n")
    while True:
        connection.sendall(b"x" * 100_000)


def delivered_within(seconds: float, consumer) -> None:
    deliver = threading.Thread(target=deliver_now, args=[consumer], daemon=True)
    deliver.start()
    deliver.join(seconds)
    assert not deliver.is_alive(), "the delivery hangs"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        # The client would treat truncated headers as complete.
        (slow_status, "pending"),
        (slow_headers, "pending"),
        # The status is the answer.
        (slow_body, "delivered"),
        (slow_chunk_size, "delivered"),
        (slow_last_body, "delivered"),
        (event_stream, "delivered"),
    ],
)
def test_a_request_with_a_trickled_answer_ends_at_its_deadline(
    make_topic, make_consumer, make_wire, monkeypatch, answer, state
):
    monkeypatch.setattr("include.streams.operations.webhooks.READ_SECONDS", 1, raising=True)
    monkeypatch.setattr("include.streams.operations.webhooks.REQUEST_SECONDS", 2, raising=False)
    wire, conn_id = make_wire(answer)
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, 1)
    delivered_within(15, consumer)
    assert states(consumer) == [state]
    assert wire.requests == 1
    if state == "pending":
        with begin() as connection:
            error = connection.scalar(text("select last_error from outbox where consumer = :n"), {"n": consumer.name})
        assert error == f"{conn_id} did not answer within 2 s"


def test_the_body_of_a_redirect_is_not_read(make_topic, make_consumer, make_wire):
    _, conn_id = make_wire(endless_redirect)
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, 1)
    delivered_within(10, consumer)
    with begin() as connection:
        query = text("select attempts, last_error from outbox where consumer = :name")
        row = connection.execute(query, {"name": consumer.name}).one()
    assert (row.attempts, row.last_error) == (1, f"{conn_id} answered 302")


def test_a_slow_receiver_delays_a_delivery_only_for_a_limited_time(make_topic, make_consumer, make_wire, monkeypatch):
    monkeypatch.setattr("include.streams.operations.webhooks.REQUEST_SECONDS", 2, raising=False)
    monkeypatch.setattr(outbox_delivery, "TURN_SECONDS", 3.0)
    wire, conn_id = make_wire(slow_headers)
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(40))
    delivered_within(20, consumer)
    assert set(states(consumer)) == {"pending"}
    assert wire.requests < 40


HEAD = b"HTTP/1.1 200 OK\r\n"
ORDINARY = {
    "no body": HEAD + b"Content-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "short body": HEAD + b'Content-Length: 11\r\n\r\n{"ok": true',
    "10 kB": HEAD + b"Content-Length: 10000\r\n\r\n" + b"x" * 10_000,
    "chunked": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_requests_to_a_fast_receiver_share_few_connections(make_topic, make_consumer, make_wire, kind):
    wire, conn_id = make_wire(lambda connection: connection.sendall(ORDINARY[kind]))
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(200))
    assert deliver_now(consumer) == 200
    assert (wire.requests, wire.connections) == (200, 8)


def test_the_connection_is_closed_after_a_long_answer(make_topic, make_consumer, make_wire):
    long = HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    wire, conn_id = make_wire(lambda connection: connection.sendall(long))
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(5))
    assert deliver_now(consumer) == 5
    assert (wire.requests, wire.connections) == (5, 5)
