"""A transaction that does not end blocks its partition: an alarm names it, and the other partitions continue."""

import uuid

import pytest
from confluent_kafka import Producer
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.watch import check_consumer
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, numbers, order

pytestmark = pytest.mark.integration


@pytest.fixture
def transaction(services):
    """A producer in a transaction that holds one message in partition 0 of the topic."""
    begun = []

    def open_one(topic) -> Producer:
        producer = Producer({**producer_config(client_config()), "transactional.id": f"tx-{uuid.uuid4().hex[:8]}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topic.name, order("in the transaction"), partition=0)
        producer.flush(30)
        begun.append(producer)
        return producer

    return open_one


def an_hour_ago(source: str) -> None:
    with begin() as connection:
        older = text("update open_transactions set seen_at = seen_at - interval '1 hour' where source = :source")
        connection.execute(older, {"source": source})


def test_an_open_transaction_is_named_by_partition_and_offset_until_it_ends(
    make_topic, make_consumer, send, transaction
):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "before")
    producer = transaction(topic)
    send(topic, order("held up"))
    send(topic, order("elsewhere"), partition=1)
    tasks.claim_messages(consumer, "meanwhile")
    assert numbers(topic) == ["1", "elsewhere"], "other partitions go on"
    check_consumer(consumer)
    assert alarms(consumer) == {}, "it may end by itself"
    an_hour_ago(consumer.name)
    for _ in range(2):
        check_consumer(consumer)
    message = alarms(consumer)["transaction_open"]
    assert f"{topic.name}-0 at offset 1 since" in message
    assert "with 2 offsets behind it" in message
    assert "abort" in message
    producer.abort_transaction(30)
    # The broker writes the transaction's marker after it has answered.
    for _ in range(50):
        check_consumer(consumer)
        if not alarms(consumer):
            break
    assert alarms(consumer) == {}
    tasks.claim_messages(consumer, "after")
    assert numbers(topic) == ["1", "held up", "elsewhere"]


def test_successive_transactions_open_no_alarm(make_topic, make_consumer, transaction):
    topic = make_topic()
    consumer = make_consumer(topic)
    producer = transaction(topic)
    check_consumer(consumer)
    an_hour_ago(consumer.name)
    producer.commit_transaction(30)
    producer.begin_transaction()
    producer.produce(topic.name, order("in the next"), partition=0)
    producer.flush(30)
    check_consumer(consumer)
    assert alarms(consumer) == {}
    producer.abort_transaction(30)
