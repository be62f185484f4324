"""Locks of a worker that vanished or is stopped are released soon; a working task keeps its locks."""

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from include.streams.kafka.handling import HandlingFailed
from include.streams.kafka.messages import Message
from include.streams.kafka.tasks import claim_messages, handle_chunk
from include.streams.operations.database import WHOLE_TASK, _engine, begin, engine
from tests.integration.database.conftest import as_json
from tests.integration.kafka.conftest import (
    admin,
    make_consumer,
    make_topic,
    numbers,
    operations,
    order,
    record_effect,
    send,
)

__all__ = ["admin", "make_consumer", "make_topic", "operations", "send"]

pytestmark = pytest.mark.integration

SOON = {"lock_timeout": "5s"}


def lock(connection: Connection, name: str) -> None:
    connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


@pytest.fixture
def name() -> str:
    return f"test {uuid.uuid4().hex[:8]}"


def iptables(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root; through sudo only on GitHub, where a test changes nobody's own machine."""
    command = ["iptables", "-w", *arguments]
    if os.geteuid() != 0:
        command = ["sudo", "-n", *command]
    return subprocess.run(command, capture_output=True, text=True)


@contextmanager
def cut(port: int) -> Iterator[None]:
    """Drop every packet of a client's connection, so that neither side notices that the other is gone."""
    rules = [["INPUT", "-i", "lo", "-p", "tcp", side, str(port), "-j", "DROP"] for side in ("--sport", "--dport")]
    try:
        for rule in rules:
            iptables("-A", *rule).check_returncode()
        yield
    finally:
        for rule in rules:
            iptables("-D", *rule)


@pytest.fixture
def can_cut() -> None:
    """Skip the test, but fail in the workflow on GitHub, where nobody would notice that it never runs."""
    in_workflow = bool(os.environ.get("GITHUB_ACTIONS"))
    give_up = pytest.fail if in_workflow else pytest.skip
    if os.geteuid() != 0 and not in_workflow:
        give_up("cutting a connection needs root")
    try:
        tried = iptables("-L", "INPUT")
    except FileNotFoundError as error:
        give_up(f"cutting a connection needs iptables: {error}")
    if tried.returncode:
        give_up(f"iptables may not be used here: {tried.stderr}")


@pytest.fixture
def impatient(operations, services, monkeypatch) -> Iterator[None]:
    """Make the connection `operations_db` wait for a lock for at most 0.2 s."""
    engine().dispose()
    _engine.cache_clear()
    url = services.endpoints()["databases"]["operations_db"]
    monkeypatch.setenv("AIRFLOW_CONN_OPERATIONS_DB", as_json(url, server_settings={"lock_timeout": "200ms"}))
    yield
    engine().dispose()
    _engine.cache_clear()


def test_the_lock_of_a_vanished_client_is_released_soon(can_cut, connection_with, name):
    fast = {"tcp_keepalives_idle": 1, "tcp_keepalives_interval": 1, "tcp_keepalives_count": 1, "tcp_user_timeout": 1000}
    vanishing, waiting = connection_with(**fast), connection_with(**SOON)
    with engine(vanishing).connect() as gone:
        lock(gone, name)
        with cut(gone.scalar(text("select inet_client_port()"))), begin(waiting) as connection:
            lock(connection, name)
        with pytest.raises(OperationalError):
            gone.commit()


def test_the_lock_of_a_stopped_client_is_released_after_the_limit(connection_with, name):
    stopped, waiting = connection_with(idle_in_transaction_session_timeout="300ms"), connection_with(**SOON)
    with engine(stopped).connect() as idle:
        lock(idle, name)
        with begin(waiting) as connection:
            lock(connection, name)
        with pytest.raises(DBAPIError, match="idle-in-transaction"):
            idle.execute(text("select 1"))


def test_a_working_task_keeps_its_lock(connection_with, name):
    working = connection_with(idle_in_transaction_session_timeout="200ms")
    waiting = connection_with(lock_timeout="600ms")
    with begin(working, patience=WHOLE_TASK) as busy:
        lock(busy, name)
        with pytest.raises(OperationalError) as caught, begin(waiting) as connection:
            lock(connection, name)
        assert isinstance(caught.value.orig, LockNotAvailable)
        assert busy.scalar(text("select 1")) == 1


def test_a_task_may_wait_for_a_working_task_beyond_the_limit(connection_with, name):
    conn_id = connection_with(lock_timeout="100ms")
    got = threading.Event()

    def wait_for_it() -> None:
        with begin(conn_id, patience=WHOLE_TASK) as connection:
            lock(connection, name)
            got.set()

    with begin() as busy:
        lock(busy, name)
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert not got.wait(0.5)
    thread.join(10)
    assert got.is_set()


def lock_number(connection: Connection, message: Message) -> None:
    """An effect that needs a lock first."""
    lock(connection, f"{message.topic} {message.event.number}")
    record_effect(connection, message)


@pytest.mark.usefixtures("impatient")
def test_a_message_that_waits_for_a_lock_delays_no_other(make_topic, make_consumer, send):
    topic = make_topic(partitions=1)
    consumer = replace(make_consumer(topic), effect=f"{__name__}:lock_number")
    send(topic, *(order(number) for number in range(3)))
    with begin() as other:
        lock(other, f"{topic.name} 1")
        (chunk,) = claim_messages(consumer, "run")
        assert numbers(topic) == ["0", "2"]
        with pytest.raises(HandlingFailed, match="1 of 1 messages failed"):
            handle_chunk(consumer, chunk, "run")
    handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["0", "1", "2"]


def test_transactions_have_limits_and_connections_keepalives(services):
    shown = {
        "lock_timeout": "1min",
        "idle_in_transaction_session_timeout": "5min",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "4",
        "tcp_user_timeout": "30000",
    }
    for _ in range(2):
        with begin() as connection:
            assert {name: connection.scalar(text(f"show {name}")) for name in shown} == shown
    with engine().connect() as connection, connection.begin():
        assert connection.scalar(text("show lock_timeout")) == "1min"
