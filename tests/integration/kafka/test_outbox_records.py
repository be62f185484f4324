"""A raw Kafka record in the outbox reaches its topic unchanged, with an idempotency key."""

import pytest
from sqlalchemy import text

from include.streams.operations import outbox
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import deliver_now, read_all

pytestmark = pytest.mark.integration

HEADERS = [("trace", b"00-abc"), ("", b""), ("none", None), ("trace", b"\xff\x00second"), ("größe", b"ok")]


def test_a_raw_record_arrives_with_headers_in_order_and_a_key(make_topic, make_consumer):
    topic = make_topic()
    consumer = make_consumer(topic)
    with begin() as connection:
        for key, value in ((b"\xff\x00key", b"\xff\x00value"), (None, None), (b"", b"")):
            outbox.add_record(
                connection,
                consumer=consumer.name,
                topic=topic.dead_letter_name,
                key=key,
                value=value,
                headers=HEADERS,
            )
    deliver_now(consumer)
    records = read_all(topic.dead_letter_name)
    assert [(r.key(), r.value()) for r in records] == [(b"\xff\x00key", b"\xff\x00value"), (None, None), (b"", b"")]
    with begin() as connection:
        query = text("select id from outbox where consumer = :name and state = 'delivered' order by sequence")
        ids = [str(row.id).encode() for row in connection.execute(query, {"name": consumer.name})]
    assert [r.headers() for r in records] == [[*HEADERS, ("idempotency-key", id)] for id in ids]
