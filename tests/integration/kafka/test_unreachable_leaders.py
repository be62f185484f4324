"""A broker that clients cannot reach: the partitions that it leads wait, and all others continue.

A cluster has two brokers. Clients reach the second broker through a gate that the tests shut. The controller does not
use the gate, so the second broker stays the leader of its partitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from sqlalchemy import text

from include.streams.contracts import Topic
from include.streams.kafka import delivery, offsets, tasks
from include.streams.kafka.claims import positions_of
from include.streams.kafka.connection import admin_config, client_config, producer_config
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.delivery import OwnDelivery, RecordTransport, deliver_due
from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.kafka.reset import reset_consumer
from include.streams.kafka.watch import check_consumer
from include.streams.operations import outbox
from include.streams.operations.database import begin
from stack import jvm, ports
from stack.supervisor import MARKER
from tests.clients import producer_to
from tests.conftest import start_stack
from tests.integration.kafka.conftest import Order, alarms, make_all_due, numbers, open_claims, order, wait_for_topics
from tests.integration.kafka.test_trigger import Firings, trigger_for

pytestmark = pytest.mark.integration

CONN_ID = "kafka_two_brokers"


class Gate:
    """Forwards connections to a port. When it is shut, it refuses new connections and ends open ones."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self._target = port, target
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        listener, self._listener = self._listener, None
        for connection in [listener, *self._open]:
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, broker]
                for source, target in ((client, broker), (broker, client)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory) -> Iterator[tuple[dict[str, Any], Gate]]:
    """The client settings of the cluster, and the gate before its second broker."""
    stack = start_stack(tmp_path_factory.mktemp("two_brokers"), ("kafka",))
    kafka = stack.kafka
    kafka.prepare()
    for name in ("second", "gate"):
        ports.choose(stack.state, name, print)
    gate = Gate(stack.state.get("port.gate"), stack.state.get("port.second"))
    folder = kafka.folder / "second"
    folder.mkdir()
    settings = {
        **kafka.server_settings(),
        "process.roles": "broker",
        "node.id": "2",
        "listeners": f"CLIENT://127.0.0.1:{stack.state.get('port.second')}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{gate.port}",
        "log.dirs": str(folder / "data"),
    }
    config = folder / "server.properties"
    config.write_text(jvm.properties(settings))
    meta = dict(line.split("=", 1) for line in (kafka.data / "meta.properties").read_text().splitlines() if "=" in line)

    def command(main: str, *arguments: str) -> list[str]:
        return jvm.command(kafka.java, "-Xmx384m", kafka.jars, folder, main, *arguments)

    format_ = command("kafka.tools.StorageTool", "format", f"--cluster-id={meta['cluster.id']}", "-c", str(config))
    subprocess.run(format_, check=True, capture_output=True)
    gate.open()
    # With the stack's marker, so that a removal of the stack also ends this process.
    environment = {**os.environ, MARKER: str(stack.folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command("kafka.Kafka", str(config)), stdout=log, stderr=log, env=environment)
    client = stack.endpoints()["kafka"]["client_config"]
    until = time.monotonic() + 60
    while len(AdminClient(client).list_topics(timeout=10).brokers) < 2:
        assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
        time.sleep(0.5)
    yield client, gate
    process.kill()
    process.wait()
    gate.shut()
    stack.remove()


@pytest.fixture
def gate(brokers, operations, monkeypatch) -> Iterator[Gate]:
    """The open gate before the second broker. The connection's clients do not wait long for missing answers."""
    client, gate = brokers
    connection = {"conn_type": "kafka", "extra": client}
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))
    monkeypatch.setattr(offsets, "REQUEST_TIMEOUT_SECONDS", 1.5)
    yield gate
    gate.shut()
    gate.open()


@pytest.fixture
def make(gate) -> Callable[..., Topic]:
    """Create a topic of orders whose partitions are led by these brokers."""
    admin = AdminClient(admin_config(client_config(CONN_ID)))

    def made(*leaders: int) -> Topic:
        name = f"orders.{uuid.uuid4().hex[:8]}"
        topic = Topic(name, Order, key="number", partitions=len(leaders), retention=timedelta(days=1))
        new = [
            NewTopic(topic.name, replica_assignment=[[leader] for leader in leaders], num_partitions=len(leaders)),
            NewTopic(topic.dead_letter_name, replica_assignment=[[1]], num_partitions=1),
        ]
        for future in admin.create_topics(new).values():
            future.result(30)
        wait_for_topics(admin, topic.name, topic.dead_letter_name)
        return topic

    return made


@pytest.fixture
def put(gate) -> Callable[..., None]:
    """Send orders of these numbers to a partition."""

    def put(topic: Topic, partition: int, *numbers: str) -> None:
        producer = producer_to(producer_config(client_config(CONN_ID)), topic.name)
        for number in numbers:
            producer.produce(topic.name, order(number), partition=partition)
        assert producer.flush(30) == 0

    return put


def test_partitions_of_an_unreachable_broker_wait_and_others_continue(make, make_consumer, put, gate):
    topic, other, behind = make(1, 2), make(1), make(2)
    consumer = make_consumer(topic, other, behind, conn_id=CONN_ID)
    for each in (topic, other, behind):
        put(each, 0, f"first of {each.name}")
    put(topic, 1, "first of 1")
    tasks.claim_messages(consumer, "before")
    put(topic, 0, "0")
    put(topic, 1, "1")
    put(other, 0, "other")
    put(behind, 0, "behind")

    gate.shut()
    tasks.claim_messages(consumer, "shut")
    assert numbers(topic) == [f"first of {topic.name}", "0", "first of 1"]
    assert numbers(other)[1:] == ["other"]
    check_consumer(consumer)
    # No other alarm is open: the log does not count as truncated.
    assert alarms(consumer).keys() == {"partitions_away"}
    text = alarms(consumer)["partitions_away"]
    assert f"{topic.name}-1: its leader does not answer" in text
    assert f"{behind.name}-0: its leader does not answer" in text
    assert "2 partitions" in text

    gate.open()
    tasks.claim_messages(consumer, "open")
    assert numbers(topic) == [f"first of {topic.name}", "0", "first of 1", "1"]
    assert numbers(behind)[1:] == ["behind"]
    check_consumer(consumer)
    assert alarms(consumer) == {}
    assert open_claims(consumer) == 0


def test_runs_start_for_partitions_that_can_be_reached(make, make_consumer, put, gate, caplog):
    topic = make(1, 2)
    consumer = make_consumer(topic, conn_id=CONN_ID)
    tasks.claim_messages(consumer, "before")
    put(topic, 0, "0")
    put(topic, 1, "1")
    gate.shut()

    async def scenario() -> None:
        async with Firings(trigger_for(consumer, conn_id=CONN_ID)) as firings:
            await firings.until(1, timeout=60)
            assert firings.lags == [1]

    asyncio.run(scenario())
    assert f"partitions left out: {{'{topic.name}-1': 'its leader does not answer'}}" in caplog.text


def test_if_no_broker_answers_a_claim_fails_and_is_retried(make, make_consumer, put, gate):
    topic = make(2)
    consumer = make_consumer(topic, conn_id=CONN_ID)
    put(topic, 0, "0")
    gate.shut()
    with pytest.raises(KafkaException):
        tasks.claim_messages(consumer, "run")
    with begin() as connection:
        assert not connection.scalar(text("select count(*) from claims where consumer = :c"), {"c": consumer.name})
    gate.open()
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["0"]


def test_the_first_claim_of_a_topic_waits_for_all_partitions(make, make_consumer, put, gate):
    topic, other = make(1, 2), make(1)
    consumer = make_consumer(topic, other, conn_id=CONN_ID)
    put(topic, 0, "0")
    put(topic, 1, "handled by the program before", "1")
    put(other, 0, "other")
    with GroupOffsets(consumer.group, CONN_ID) as group:
        group.commit({Partition(topic.name, 1): 1})
    gate.shut()
    tasks.claim_messages(consumer, "shut")
    assert numbers(topic) == []
    assert numbers(other) == ["other"]
    gate.open()
    tasks.claim_messages(consumer, "open")
    assert numbers(topic) == ["0", "1"]


def test_fetching_one_partitions_offsets_waits_for_no_other_leader(make, put, gate):
    topic = make(1, 2)
    put(topic, 0, "a")
    with GroupOffsets("looks", CONN_ID) as group:
        gate.shut()
        current = group.fetch_offsets_sync([topic.name], needs_committed=False, only=Partition(topic.name, 0))
        assert [(partition.number, at.end) for partition, at in current.items()] == [(0, 1)]
        assert group.left_out == {}


def test_a_log_that_cannot_be_compared_does_not_count_as_truncated(make, put, gate):
    topic = make(1, 2)
    for partition in range(2):
        put(topic, partition, "a")
    with GroupOffsets("compares", CONN_ID, **CONSUMER_SETTINGS) as group:
        current = group.fetch_offsets_sync([topic.name])
        gate.shut()
        seen = {partition: (1, at.leader_epoch) for partition, at in current.items()}
        assert group.find_truncated_logs(seen) == (set(), {Partition(topic.name, 1)})
        assert group.find_open_transactions(current) == {}
        assert group.left_out.keys() == {Partition(topic.name, 1)}


def test_a_partition_that_could_not_be_compared_is_claimed_later(make, make_consumer, put, gate, monkeypatch):
    topic = make(1, 2)
    consumer = make_consumer(topic, conn_id=CONN_ID)
    for partition in range(2):
        put(topic, partition, f"first of {partition}")
    tasks.claim_messages(consumer, "before")
    with begin() as connection:
        # As if each broker had become the leader again since.
        seen = "update positions set leader_epoch = -1 where consumer = :c"
        connection.execute(text(seen), {"c": consumer.name})
    for partition in range(2):
        put(topic, partition, f"second of {partition}")
    compare = GroupOffsets.find_truncated_logs

    def shut(group, positions):
        gate.shut()
        return compare(group, positions)

    with monkeypatch.context() as patch:
        patch.setattr(GroupOffsets, "find_truncated_logs", shut)
        tasks.claim_messages(consumer, "shut")
    assert numbers(topic) == ["first of 0", "second of 0", "first of 1"]
    gate.open()
    tasks.claim_messages(consumer, "open")
    assert numbers(topic) == ["first of 0", "second of 0", "first of 1", "second of 1"]
    assert alarms(consumer) == {}


def test_a_reset_waits_for_all_partitions(make, make_consumer, put, gate):
    topic = make(1, 2)
    consumer = make_consumer(topic, conn_id=CONN_ID)
    tasks.claim_messages(consumer, "before")
    gate.shut()
    with pytest.raises(ValueError, match=r"not every partition answers now: 1 \(its leader does not answer\)"):
        reset_consumer(consumer.name, topic.name, conn_id=CONN_ID)
    with begin() as connection:
        assert len(positions_of(connection, consumer.name)) == 2


def keys_of(topic: Topic, partition: int) -> Iterator[bytes]:
    """Keys that the client sends to this partition of a topic."""
    producer = AcknowledgedProducer(CONN_ID)
    keys: list[bytes] = []

    def note(key: bytes, record: Any) -> None:
        if record.partition() == partition:
            keys.append(key)

    for number in range(200):
        key = b"%d" % number
        producer._producer.produce(topic.name, b"", key=key, on_delivery=lambda _, r, key=key: note(key, r))
    producer.flush()
    return itertools.cycle(keys)


@pytest.fixture
def results(make, make_consumer, monkeypatch) -> tuple[Topic, Consumer, Iterator[bytes], Iterator[bytes]]:
    """A topic that is a consumer's only receiver, and the keys of the topic's two partitions."""
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 3.0)
    topic = make(1, 2)
    return topic, make_consumer(make(1), conn_id=CONN_ID), keys_of(topic, 0), keys_of(topic, 1)


def write(topic: Topic, consumer: Consumer, *keys: bytes) -> outbox.Written:
    """Add rows for these keys, as a task does."""
    with begin() as connection, outbox.gathered(connection) as written:
        for key in keys:
            outbox.add_record(
                connection, consumer=consumer.name, topic=topic.name, key=key, value=b"result", headers=[]
            )
    return written


def rows(consumer: Consumer) -> list[tuple[str, int, bool]]:
    """(state, attempts, whether it waits for the next attempt) of the outbox's rows."""
    with begin() as connection:
        query = "select state, attempts, due_at > now() and last_error is not null from outbox where consumer = :c"
        return [tuple(row) for row in connection.execute(text(f"{query} order by sequence"), {"c": consumer.name})]


def failures(consumer: Consumer) -> int | None:
    """How often the route's receiver counted as away; None if the route has no row."""
    with begin() as connection:
        query = text("select failures from outbox_routes where consumer = :c")
        return connection.scalar(query, {"c": consumer.name})


DELIVERED, WAITS = ("delivered", 0, False), ("pending", 0, True)


def test_records_for_a_partition_that_is_away_delay_no_other(results, gate, monkeypatch):
    topic, consumer, good, away = results
    gate.shut()
    # More than one batch; each batch has a record for the partition that is away.
    monkeypatch.setattr(RecordTransport, "rows_at_once", 10)
    write(topic, consumer, *(next(away if n % 10 == 0 else good) for n in range(50)))
    make_all_due(consumer)
    assert deliver_due([consumer]) == 45
    with begin() as connection:
        took = text("select max(delivered_at) - min(delivered_at) from outbox where consumer = :c")
        assert connection.scalar(took, {"c": consumer.name}) < timedelta(seconds=6), "each batch waits"
    assert rows(consumer) == [WAITS if n % 10 == 0 else DELIVERED for n in range(50)]
    assert failures(consumer) == 0

    # Tasks still deliver their own rows. A task with only such a record does not report the topic as away.
    began = time.monotonic()
    for keys in ([next(away)], [next(good), next(away), next(good)]):
        with AcknowledgedProducer(CONN_ID) as producer:
            OwnDelivery(producer).deliver(write(topic, consumer, *keys))
    assert time.monotonic() - began < 7
    assert rows(consumer)[50:] == [WAITS, DELIVERED, WAITS, DELIVERED]
    assert failures(consumer) == 0

    gate.open()
    make_all_due(consumer)
    assert deliver_due([consumer]) == 7
    assert set(rows(consumer)) == {DELIVERED}
    assert failures(consumer) is None


def test_many_records_that_wait_for_a_partition_are_tried_in_one_batch(results, gate, monkeypatch):
    topic, consumer, good, away = results
    gate.shut()
    monkeypatch.setattr(RecordTransport, "rows_at_once", 10)
    write(topic, consumer, *(next(away) for _ in range(100)))
    with begin() as connection:
        # These rows have waited for an hour, with more attempts than a refused row may have.
        old = "update outbox set last_error = 'away', created_at = now() - interval '1 hour' where consumer = :c"
        connection.execute(text(old), {"c": consumer.name})
    write(topic, consumer, next(good))
    make_all_due(consumer)
    began = time.monotonic()
    assert deliver_due([consumer]) == 1
    assert time.monotonic() - began < 8, "the good record waits for many batches"
    assert rows(consumer) == [WAITS] * 100 + [DELIVERED]
    assert failures(consumer) == 0
    with begin() as connection:
        due = "select count(distinct due_at), max(due_at) <= now() + interval '1 minute' from outbox"
        where = "where consumer = :c and state = 'pending'"
        assert tuple(connection.execute(text(f"{due} {where}"), {"c": consumer.name}).one()) == (1, True)

    gate.open()
    make_all_due(consumer)
    assert deliver_due([consumer]) == 100
    assert set(rows(consumer)) == {DELIVERED}


def test_a_topic_without_any_leader_is_away(make, make_consumer, gate, monkeypatch):
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 3.0)
    topic = make(2)
    consumer = make_consumer(make(1), conn_id=CONN_ID)
    gate.shut()
    write(topic, consumer, b"1", b"2")
    make_all_due(consumer)
    assert deliver_due([consumer]) == 0
    assert failures(consumer) == 1
