"""An unacknowledged message is always an error."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from include.streams.kafka.connection import UnsafeKafkaConnection
from include.streams.kafka.producer import AcknowledgedProducer, DeliveryFailed, OutgoingRecord
from tests.clients import reader_at

pytestmark = pytest.mark.integration

MAX_BYTES = 2_000
# Random bytes, because the broker's limit is for the compressed size.
TOO_LARGE = os.urandom(MAX_BYTES + 1_000)


@pytest.fixture
def config(services) -> dict[str, str]:
    return services.endpoints()["kafka"]["client_config"]


@pytest.fixture
def connect(config, monkeypatch) -> Callable[..., str]:
    """Declare an Airflow connection with these settings added; returns its id."""

    def declare(**settings: Any) -> str:
        conn_id = f"kafka_{uuid.uuid4().hex[:8]}"
        extra = {**config, **{name.replace("_", "."): value for name, value in settings.items()}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "kafka", "extra": extra}))
        return conn_id

    return declare


@pytest.fixture
def topic(config) -> str:
    """A topic of one partition that takes small messages only."""
    name = f"small.{uuid.uuid4().hex[:8]}"
    admin = AdminClient(config)
    (future,) = admin.create_topics([NewTopic(name, 1, 1, config={"max.message.bytes": str(MAX_BYTES)})]).values()
    future.result(30)
    return name


@pytest.fixture
def values(config, topic) -> Callable[[], list[bytes]]:
    """The content of the topic, read by another client."""

    def read() -> list[bytes]:
        reader = reader_at({**config, "enable.partition.eof": True}, TopicPartition(topic, 0, 0))
        found = []
        while (record := reader.poll(20)) is not None and record.error() is None:
            found.append(record.value())
        reader.close()
        return found

    return read


@pytest.fixture
def stop_broker(services) -> Iterator[Callable[[], None]]:
    """Stop the broker; it is started again after the test."""
    yield lambda: services.stop("kafka")
    services.start("kafka")


def messages(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"key", value) for value in values]


def produce(topic: str, conn_id: str, *values: bytes, delivery_callback: str | None = None) -> None:
    """The provider's operator, run without a scheduler."""
    operator = ProduceToTopicOperator(
        task_id="produce",
        kafka_config_id=conn_id,
        topic=topic,
        producer_function=messages,
        producer_function_args=values,
        delivery_callback=delivery_callback,
        synchronous=False,
    )
    operator.execute({})


OURS = "include.streams.kafka.producer.raise_on_delivery_failure"


def test_everything_is_acknowledged_when_the_block_ends(connect, topic, values):
    with AcknowledgedProducer(connect()) as producer:
        for n in range(100):
            producer.send(topic, key=b"k", value=b"%d" % n, headers=[("h", None)])
    assert producer.acknowledged == 100
    assert values() == [b"%d" % n for n in range(100)]


def test_a_message_too_large_for_the_broker_fails_only_its_flush(connect, topic, values):
    producer = AcknowledgedProducer(connect())
    producer.send(topic, key=None, value=TOO_LARGE)
    with pytest.raises(DeliveryFailed, match=f"1 messages not acknowledged; the first: topic {topic}: .*MSG_SIZE"):
        producer.flush()
    producer.send(topic, key=None, value=b"small")
    producer.flush()
    assert producer.acknowledged == 1
    assert values() == [b"small"]


def test_a_refused_record_is_found_with_few_requests(connect, topic, values, monkeypatch):
    """With one request per record, a broker that takes 30 ms to answer would leave no time for the last of 500."""
    producer = AcknowledgedProducer(connect())
    sends, send = [], producer._send_and_wait
    monkeypatch.setattr(producer, "_send_and_wait", lambda *given: sends.append(1) or send(*given))
    records = [OutgoingRecord(topic, None, b"%d" % n, []) for n in range(100)]
    records[60] = OutgoingRecord(topic, None, TOO_LARGE, [])
    answers = producer.try_sending(records, seconds=30)
    assert [(n, answer.code) for n, answer in enumerate(answers) if answer] == [(60, "MSG_SIZE_TOO_LARGE")]
    assert sorted(values()) == sorted(record.value for record in records if record.value != TOO_LARGE)
    assert len(sends) <= 20


def send_in_a_block(conn_id: str, topic: str, *values: bytes, then: Exception | None = None) -> None:
    with AcknowledgedProducer(conn_id) as producer:
        for value in values:
            producer.send(topic, key=None, value=value)
        if then:
            raise then


def test_a_failed_delivery_fails_the_block_but_hides_no_error(connect, topic):
    conn_id = connect()
    with pytest.raises(DeliveryFailed):
        send_in_a_block(conn_id, topic, TOO_LARGE)
    with pytest.raises(LookupError):
        send_in_a_block(conn_id, topic, TOO_LARGE, then=LookupError())


def test_a_message_above_the_clients_limit_is_not_sent(connect, topic, values):
    producer = AcknowledgedProducer(connect(message_max_bytes=1_500))
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        producer.send(topic, key=None, value=TOO_LARGE)
    producer.flush()
    assert values() == []


def test_an_unreachable_broker_fails_the_delivery_until_it_returns(connect, topic, values, stop_broker, services):
    conn_id = connect(delivery_timeout_ms=1_500)
    producer = AcknowledgedProducer(conn_id)
    producer.send(topic, key=None, value=b"before")
    producer.flush()
    stop_broker()
    producer.send(topic, key=None, value=b"lost?")
    with pytest.raises(DeliveryFailed, match="_MSG_TIMED_OUT"):
        producer.flush()
    with pytest.raises(DeliveryFailed, match="_MSG_TIMED_OUT"):
        produce(topic, conn_id, b"lost?", delivery_callback=OURS)
    services.start("kafka")
    # Like a task's retry, with enough time for a broker that has just returned.
    later = connect(delivery_timeout_ms=60_000)
    send_in_a_block(later, topic, b"after")
    produce(topic, later, b"last", delivery_callback=OURS)
    assert values() == [b"before", b"after", b"last"]


def test_the_stock_operator_fails_with_the_callback(connect, topic, values):
    conn_id = connect()
    with pytest.raises(DeliveryFailed, match=f"topic {topic}: .*MSG_SIZE_TOO_LARGE"):
        produce(topic, conn_id, b"first", TOO_LARGE, delivery_callback=OURS)
    produce(topic, conn_id, b"retried", delivery_callback=OURS)
    assert values()[-1] == b"retried"


def test_the_stock_operator_alone_succeeds_without_delivering(connect, topic, values):
    # The reason for the callback: when this test fails, the provider has fixed it, and the callback can be removed.
    produce(topic, connect(), TOO_LARGE)
    assert values() == []


def test_a_full_local_queue_loses_nothing(connect, topic, values):
    with AcknowledgedProducer(connect(queue_buffering_max_messages=10, linger_ms=50)) as producer:
        for n in range(300):
            producer.send(topic, key=b"k", value=b"%d" % n)
    assert producer.acknowledged == 300
    assert values() == [b"%d" % n for n in range(300)]


@pytest.mark.parametrize(
    ("setting", "value"), [("acks", 1), ("acks", "0"), ("request.required.acks", "1"), ("enable.idempotence", False)]
)
def test_a_connection_that_could_lose_messages_is_refused(connect, topic, values, setting, value):
    conn_id = connect(**{setting.replace(".", "_"): value})
    with pytest.raises(UnsafeKafkaConnection, match=rf"connection {conn_id}: {setting} is {value!r}; .*set it to"):
        send_in_a_block(conn_id, topic, b"never sent")
    assert values() == []
