"""The memory of a task: a compressed record is small for the broker and large for its reader.

And of a delivery: five hundred rows of the outbox may be small or large.
"""

import os

import pytest
from sqlalchemy import text

from include.streams.kafka.connection import client_config, producer_config
from include.streams.operations import outbox
from include.streams.operations.database import begin
from tests import forks
from tests.clients import producer_to
from tests.integration.kafka.conftest import make_all_due, order, read_all

pytestmark = pytest.mark.integration

MESSAGES, SIZE = 25, 20_000_000
# The messages have 500 MB in total. The limit allows some copies of one message, and those that the client read ahead.
LIMIT_MB = 400
CLAIM = """
import resource
from include.streams.kafka.tasks import claim_messages, handle_chunk
from tests.integration.kafka.test_memory import consumer_of

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

consumer = consumer_of({topic!r})
before = peak_mb()
for chunk in claim_messages(consumer, "run"):
    handle_chunk(consumer, chunk, "run")
grown = peak_mb() - before
assert grown < {limit}, f"{{grown}} MB"
open({result!r}, "w").write(str(grown))
"""
# The rows have 180 MB in total.
ROWS, ROW_SIZE, DELIVERY_LIMIT_MB = 200, 900_000, 90
DELIVER = """
import resource
from include.streams.kafka.delivery import deliver_due
from include.streams.operations.outbox_delivery import due_routes

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

# Connects.
due_routes()
before = peak_mb()
deliver_due([])
grown = peak_mb() - before
assert grown < {limit}, f"{{grown}} MB"
"""


def consumer_of(topic: str):
    from datetime import timedelta

    from include.streams.contracts import Topic
    from include.streams.kafka.consumers import Consumer
    from tests.integration.kafka.conftest import Order

    declared = Topic(topic, Order, key="number", partitions=1, retention=timedelta(days=1))
    effect = "tests.integration.kafka.conftest:record_effect"
    return Consumer(name=topic, topics=(declared,), effect=effect, max_messages_per_claim=500, chunk_size=500)


def test_only_a_few_large_messages_are_in_memory_at_once(make_topic, operations, tmp_path):
    topic = make_topic(partitions=1)
    large = {"message.max.bytes": 100_000_000, "compression.type": "zstd", "linger.ms": 0}
    producer = producer_to({**producer_config(client_config()), **large}, topic.name)
    for number in range(MESSAGES):
        producer.produce(topic.name, value=order(number) + b" " * SIZE, key=b"k", partition=0)
        assert producer.flush(60) == 0
    result = tmp_path / "grown"
    assert forks.run(CLAIM.format(topic=topic.name, limit=LIMIT_MB, result=str(result)), 300) == 0
    assert int(result.read_text()) > 0
    assert len(read_all(topic.dead_letter_name)) == MESSAGES


def test_only_a_few_large_outbox_rows_are_in_memory_at_once(make_topic, make_consumer):
    results = make_topic(partitions=1)
    consumer = make_consumer(make_topic())
    for _ in range(ROWS):
        with begin() as connection:
            outbox.add_record(
                connection,
                consumer=consumer.name,
                topic=results.name,
                key=None,
                value=os.urandom(ROW_SIZE),
                headers=[],
            )
    make_all_due(consumer)
    assert forks.run(DELIVER.format(limit=DELIVERY_LIMIT_MB), 300) == 0
    with begin() as connection:
        left = text("select state, count(*) from outbox where consumer = :name group by 1")
        assert connection.execute(left, {"name": consumer.name}).all() == [("delivered", ROWS)]
