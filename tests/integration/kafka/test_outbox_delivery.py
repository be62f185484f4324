"""Delivery is independent of handling: no receiver fails a run, or delays a message or another receiver."""

import json
import os
import threading
import time
import uuid

import pytest
from confluent_kafka import TopicPartition
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, consumer_config
from include.streams.kafka.delivery import deliver_due
from include.streams.operations import outbox, outbox_delivery
from include.streams.operations.database import begin
from tests.clients import reader_at
from tests.integration.kafka.conftest import (
    Order,
    alarms,
    deliver_now,
    make_all_due,
    numbers,
    open_claims,
    order,
    read_all,
    record_effect,
)
from tests.integration.kafka.test_handling import Receiver, outbox_states

pytestmark = pytest.mark.integration

SEVEN = Order(version=1, number="7", amount=1)


@pytest.fixture
def make_receiver(monkeypatch):
    """A receiver with its own Airflow connection; returns (server, connection id)."""
    servers = []

    def make(conn_id=None):
        server = Receiver()
        servers.append(server)
        conn_id = conn_id or f"webhook_{uuid.uuid4().hex[:8]}"
        connection = {"conn_type": "http", "host": "127.0.0.1", "port": server.server_port, "schema": "http"}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
        return server, conn_id

    yield make
    for server in servers:
        server.shutdown()


ANNOUNCED = {}


def announce(connection, message) -> None:
    """The tests' effect, plus outbox rows for the topic and the connections that ANNOUNCED names for the topic."""
    record_effect(connection, message)
    consumer, results, conn_ids = ANNOUNCED[message.topic]
    if results:
        outbox.add_message(connection, consumer=consumer, topic=results, event=message.event)
    for conn_id in conn_ids:
        outbox.add_request(connection, consumer=consumer, conn_id=conn_id, payload={"number": message.event.number})


@pytest.fixture
def announcing(make_topic, make_consumer):
    """A function that makes a topic and a consumer whose effect adds rows to the outbox."""

    def make(results=None, conn_ids=(), **kwargs):
        topic = make_topic()
        consumer = make_consumer(topic, **kwargs)
        consumer = type(consumer)(
            **{**consumer.__dict__, "effect": "tests.integration.kafka.test_outbox_delivery:announce"}
        )
        ANNOUNCED[topic.name] = (consumer.name, results, conn_ids)
        return topic, consumer

    return make


def add_requests(consumer, conn_id, *payloads):
    with begin() as connection:
        for payload in payloads:
            outbox.add_request(connection, consumer=consumer.name, conn_id=conn_id, payload={"n": payload})


def states(consumer):
    return [state for _, state in outbox_states(consumer)]


def test_a_delivery_resets_the_time_of_an_undefined_connection(announcing, make_receiver, send, monkeypatch):
    """Otherwise a wrong answer "not defined" in a much later outage would skip requests at once."""
    server, conn_id = make_receiver()
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    connection = os.environ[variable]
    topic, consumer = announcing(conn_ids=[conn_id])
    query = text("select undefined_since is null from outbox_routes where consumer = :name")
    for defined in (False, True):
        with monkeypatch.context() as patch:
            patch.setenv(variable, connection) if defined else patch.delenv(variable)
            send(topic, order(str(defined)))
            tasks.claim_messages(consumer, f"run-{defined}")
        with begin() as database:
            assert database.scalars(query, {"name": consumer.name}).all() == [defined]
    assert states(consumer) == ["pending", "delivered"]
    assert len(server.seen) == 1


def test_a_run_delivers_what_it_wrote_once_with_idempotency_keys(announcing, make_topic, make_receiver, send):
    server, conn_id = make_receiver()
    results = make_topic(partitions=1)
    topic, consumer = announcing(results, [conn_id])
    send(topic, *(order(n) for n in range(30)))
    for run in ("first", "second"):
        tasks.claim_messages(consumer, run)
    deliver_now(consumer)
    assert set(outbox_states(consumer)) == {("message", "delivered"), ("request", "delivered")}
    assert sorted(int(payload["number"]) for _, payload in server.seen) == list(range(30))
    assert len({key for key, _ in server.seen}) == 30
    records = read_all(results.name)
    assert [record.key() for record in records] == [str(n).encode() for n in range(30)]
    assert {name for record in records for name, _ in record.headers()} == {"idempotency-key"}


@pytest.mark.parametrize("fault", ["answers 503", "refuses connections", "never answers"])
def test_a_receiver_that_is_away_fails_no_run_and_delays_no_message(
    announcing, make_topic, make_receiver, send, monkeypatch, fault
):
    monkeypatch.setattr("include.streams.operations.webhooks.READ_SECONDS", 0.5)
    server, conn_id = make_receiver()
    if fault == "answers 503":
        server.status = 503
    elif fault == "refuses connections":
        server.shutdown()
        server.server_close()
    else:
        # The operating system accepts the connection, but no process reads from it.
        server.shutdown()
    results = make_topic()
    topic, consumer = announcing(results, [conn_id])
    for run in range(3):
        send(topic, *(order(f"{run}-{n}") for n in range(20)))
        assert tasks.claim_messages(consumer, f"run {run}") == []
    assert len(numbers(topic)) == 60
    assert open_claims(consumer) == 0
    assert sorted(outbox_states(consumer)) == [("message", "delivered")] * 60 + [("request", "pending")] * 60


def test_runs_send_nothing_to_a_receiver_that_is_known_to_be_away(announcing, make_receiver, send):
    server, conn_id = make_receiver()
    server.status = 503
    topic, consumer = announcing(conn_ids=[conn_id])
    for run in range(5):
        send(topic, order(run))
        tasks.claim_messages(consumer, f"run {run}")
    assert len(server.seen) == 1


def test_delivery_continues_within_a_minute_of_the_receivers_return(announcing, make_receiver, send):
    server, conn_id = make_receiver()
    server.status = 503
    topic, consumer = announcing(conn_ids=[conn_id])
    send(topic, *(order(n) for n in range(20)))
    tasks.claim_messages(consumer, "run")
    for _ in range(10):
        deliver_now(consumer)
    with begin() as connection:
        query = "select failures, retry_at - now() as wait from outbox_routes where consumer = :name"
        route = connection.execute(text(query), {"name": consumer.name}).one()
        due = text("select max(due_at - now()) from outbox where consumer = :name")
        latest = connection.scalar(due, {"name": consumer.name})
    assert route.failures == 11
    assert 50 < route.wait.total_seconds() <= 60
    assert latest.total_seconds() <= 60
    server.status = 200
    assert deliver_now(consumer) == 20
    assert set(states(consumer)) == {"delivered"}


def test_a_receiver_that_hangs_delays_no_other(make_topic, make_consumer, make_receiver):
    hanging, hanging_id = make_receiver()
    healthy, healthy_id = make_receiver()
    consumer = make_consumer(make_topic())
    hanging.shutdown()
    add_requests(consumer, hanging_id, *range(40))
    deliver = threading.Thread(target=deliver_now, args=[consumer])
    deliver.start()
    time.sleep(0.3)
    # These rows become due while the other receiver does not answer.
    add_requests(consumer, healthy_id, 1)
    until = time.monotonic() + 5
    while not healthy.seen:
        assert time.monotonic() < until, "the row waits for another receiver"
        time.sleep(0.02)
    hanging.server_close()
    deliver.join(30)


def test_a_refused_request_delays_no_later_request(make_topic, make_consumer, make_receiver, monkeypatch):
    server, conn_id = make_receiver()
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(3))
    server.status = 422
    deliver_now(consumer)
    assert [payload["n"] for _, payload in server.seen] == [0, 1, 2]
    assert deliver_due([consumer]) == 0
    assert len(server.seen) == 3, "a row that was refused waits for its turn"
    monkeypatch.setattr(outbox_delivery, "MAX_ATTEMPTS", 2)
    deliver_now(consumer)
    assert states(consumer) == ["failed"] * 3
    assert "3 rows were refused 2 times" in alarms(consumer)["outbox_failed"]


def test_an_unanswered_request_delays_no_later_request(make_topic, make_consumer, make_receiver, monkeypatch):
    server, conn_id = make_receiver()
    answered = server.RequestHandlerClass.do_POST

    def fail_the_first(handler):
        handler.server.status = 500 if handler.headers["Idempotency-Key"] == poison else 200
        answered(handler)

    monkeypatch.setattr(server.RequestHandlerClass, "do_POST", fail_the_first)
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(4))
    with begin() as connection:
        first = text("select id from outbox where consumer = :name order by sequence limit 1")
        poison = str(connection.scalar(first, {"name": consumer.name}))
    deliver_now(consumer)
    with begin() as connection:
        connection.execute(text("update outbox_routes set retry_at = now()"))
    deliver_due([consumer])
    assert states(consumer) == ["pending", "delivered", "delivered", "delivered"]


def test_a_record_that_kafka_always_refuses_is_refused_alone(make_topic, make_consumer, send):
    results = make_topic(partitions=1, config={"max.message.bytes": "2000"})
    topic = make_topic()
    consumer = make_consumer(topic)
    with begin() as connection:
        for n in range(9):
            value = os.urandom(5000) if n == 4 else str(n).encode()
            outbox.add_record(connection, consumer=consumer.name, topic=results.name, key=None, value=value, headers=[])
    deliver_now(consumer)
    assert states(consumer) == ["delivered"] * 4 + ["pending"] + ["delivered"] * 4
    assert sorted(record.value() for record in read_all(results.name)) == [str(n).encode() for n in range(9) if n != 4]
    with begin() as connection:
        row = connection.execute(
            text("select attempts, last_error from outbox where consumer = :name and state = 'pending'"),
            {"name": consumer.name},
        ).one()
    assert row.attempts == 1
    assert "MSG_SIZE_TOO_LARGE" in row.last_error


def test_several_refused_records_delay_no_other_record_of_their_batch(make_topic, make_consumer):
    """If a batch has several bad records, the broker reports a special error for the good records."""
    results = make_topic(partitions=1, compacted=True)
    consumer = make_consumer(make_topic())
    with begin() as connection:
        for key in (b"a", None, b"b", None, b"c"):
            outbox.add_record(connection, consumer=consumer.name, topic=results.name, key=key, value=b"1", headers=[])
    deliver_now(consumer)
    assert states(consumer) == ["delivered", "pending", "delivered", "pending", "delivered"]
    assert [record.key() for record in read_all(results.name)] == [b"a", b"b", b"c"]
    with begin() as connection:
        errors = text("select attempts, last_error from outbox where consumer = :name and state = 'pending'")
        refused = connection.execute(errors, {"name": consumer.name}).all()
        away = text("select count(*) from outbox_routes where consumer = :name and failures > 0")
        assert connection.scalar(away, {"name": consumer.name}) == 0
    assert [row.attempts for row in refused] == [1, 1]
    assert all("INVALID_RECORD" in row.last_error for row in refused)


def test_a_missing_topic_delays_no_other_and_gets_its_records_later(make_topic, make_consumer):
    results = make_topic(partitions=1)
    consumer = make_consumer(make_topic())
    missing = f"orders.{uuid.uuid4().hex[:8]}"
    with begin() as connection:
        for name in (missing, results.name):
            outbox.add_record(connection, consumer=consumer.name, topic=name, key=None, value=b"1", headers=[])
    started = time.monotonic()
    deliver_now(consumer)
    assert time.monotonic() - started < 10
    assert states(consumer) == ["pending", "delivered"]
    make_topic(missing, partitions=1)
    deliver_now(consumer)
    assert states(consumer) == ["delivered", "delivered"]
    assert [record.value() for record in read_all(missing)] == [b"1"]


def test_requests_without_a_connection_are_kept_as_skipped(announcing, send):
    topic, consumer = announcing(conn_ids=["not_defined"])
    send(topic, *(order(n) for n in range(20)))
    tasks.claim_messages(consumer, "run")
    # Looked up a second time, because Airflow gives the same answer while its own database is away.
    assert states(consumer) == ["pending"] * 20
    add_requests(consumer, "not_defined", 1)
    deliver_now(consumer)
    assert states(consumer) == ["skipped"] * 21


def test_a_connection_that_cannot_be_looked_up_delays_no_other(make_topic, make_consumer, make_receiver, monkeypatch):
    _, healthy_id = make_receiver()
    consumer = make_consumer(make_topic())
    monkeypatch.setenv("AIRFLOW_CONN_UNREADABLE", "{cannot be read")
    add_requests(consumer, "unreadable", 1)
    add_requests(consumer, healthy_id, 2)
    assert deliver_now(consumer) == 1
    assert states(consumer) == ["pending", "delivered"]
    # The connection was found, and is not found when it is used.
    monkeypatch.setattr("include.streams.operations.webhooks.is_defined", lambda conn_id: True)
    add_requests(consumer, healthy_id, 3)
    assert deliver_now(consumer) == 1
    assert states(consumer) == ["pending", "delivered", "delivered"]


def test_rows_of_a_killed_task_become_due_and_are_delivered(make_topic, make_consumer, make_receiver):
    server, conn_id = make_receiver()
    consumer = make_consumer(make_topic())
    with begin() as connection, outbox.gathered(connection):
        outbox.add_request(connection, consumer=consumer.name, conn_id=conn_id, payload={"n": 1})
    # Not due yet: the task that wrote the row may still deliver it.
    deliver_due([consumer])
    assert server.seen == []
    deliver_now(consumer)
    assert states(consumer) == ["delivered"]


def test_rows_of_a_transaction_that_rolls_back_are_not_delivered(announcing, make_receiver, send):
    server, conn_id = make_receiver()
    topic, consumer = announcing(conn_ids=[conn_id])
    send(topic, order("good"), order("poison", -2), order("never", -1))
    tasks.claim_messages(consumer, "run")
    assert [payload["number"] for _, payload in server.seen] == ["good"]
    assert states(consumer) == ["delivered"]


def test_two_concurrent_processes_deliver_each_row_once(make_topic, make_consumer, make_receiver):
    server, conn_id = make_receiver()
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(300))
    deliver_now()
    add_requests(consumer, conn_id, *range(300, 600))
    threads = [threading.Thread(target=deliver_due, args=[[consumer]]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # `make_all_due` has skipped the first half, like rows of other tests.
    assert sorted(payload["n"] for _, payload in server.seen) == list(range(300, 600))


def test_locked_rows_are_checked_again_after_a_second(make_topic, make_consumer, monkeypatch):
    """Without the wait, the run would query for the rows in a stream of transactions without pauses."""
    topic, consumer = make_topic(partitions=1), make_consumer(make_topic())
    with begin() as connection:
        outbox.add_record(connection, consumer=consumer.name, topic=topic.name, key=None, value=b"1", headers=[])
    make_all_due(consumer)
    turns, deliver_some = [], outbox_delivery._deliver_some
    monkeypatch.setattr(
        outbox_delivery, "_deliver_some", lambda *args, **kw: turns.append(args) or deliver_some(*args, **kw)
    )
    with begin() as holder:
        holder.execute(text("select from outbox where consumer = :name for update"), {"name": consumer.name})
        assert deliver_due([consumer], seconds=10) == 0
        assert len(turns) == 1
        until = time.monotonic() + 5
        while not any(route.consumer == consumer.name for route in outbox_delivery.due_routes()):
            assert time.monotonic() < until, "the row waits for longer"
            time.sleep(0.1)
    assert deliver_due([consumer]) == 1
    with begin() as connection:
        left = text("select count(*) from outbox_routes where consumer = :name")
        assert connection.scalar(left, {"name": consumer.name}) == 0


def _partition(topic, number):
    config = {**consumer_config(client_config(), "independent"), "enable.partition.eof": True}
    reader = reader_at(config, TopicPartition(topic.name, number, 0))
    while (record := reader.poll(10)) is not None and record.error() is None:
        yield record
    reader.close()
