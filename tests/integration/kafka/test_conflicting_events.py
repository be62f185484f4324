"""An event with a known id and other content is a dead letter with an alarm; the first event stays."""

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.consumers import Shape
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, numbers, open_claims, order, read_all
from tests.integration.kafka.test_handling import outcomes
from tests.integration.kafka.test_prepared_effects import make_prepared, prepared

__all__ = ["make_prepared"]

pytestmark = pytest.mark.integration


def test_other_content_under_a_known_id_is_a_dead_letter_and_an_alarm(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a", 450), order("b", 1))
    tasks.claim_messages(consumer, "first")
    send(topic, order("a", 20_000), order("b", 1), partition=1)
    tasks.claim_messages(consumer, "second")
    assert sorted(numbers(topic)) == ["a", "b"]
    assert outcomes(consumer) == {"handled": 2, "duplicate": 1, "dead_letter": 1}
    (letter,) = read_all(topic.dead_letter_name)
    assert letter.value() == order("a", 20_000)
    assert dict(letter.headers())["dlq.reason"] == b"conflict"
    assert b"partition 0 offset 0" in dict(letter.headers())["dlq.detail"]
    assert f"{topic.name}-1@0" in alarms(consumer)["conflicting_events"]
    assert open_claims(consumer) == 0


def test_of_two_conflicting_events_in_one_batch_the_first_is_handled(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a", 1), order("a", 2), order("a", 1), order("b", 1))
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["a", "b"]
    assert outcomes(consumer) == {"handled": 2, "duplicate": 1, "dead_letter": 1}
    assert [letter.value() for letter in read_all(topic.dead_letter_name)] == [order("a", 2)]


def test_other_bytes_of_the_same_content_are_a_duplicate(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a", 1), b'{ "amount": 1, "number": "a",  "version": 1 }')
    tasks.claim_messages(consumer, "run")
    assert outcomes(consumer) == {"handled": 1, "duplicate": 1}
    assert alarms(consumer) == {}


def test_a_repeat_of_an_event_without_a_digest_is_a_duplicate(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a", 1))
    tasks.claim_messages(consumer, "first")
    with begin() as connection:
        connection.execute(text("update inbox set digest = null where consumer = :name"), {"name": consumer.name})
    send(topic, order("a", 2))
    tasks.claim_messages(consumer, "second")
    assert outcomes(consumer) == {"handled": 1, "duplicate": 1}


@pytest.mark.parametrize("shape", [Shape.chunked, Shape.per_message])
def test_a_conflicting_event_is_not_prepared(make_prepared, send, shape):
    topic, consumer = make_prepared(shape)
    send(topic, order("a", 1), order("a", 2))
    if shape is Shape.chunked:
        tasks.claim_messages(consumer, "run")
    else:
        for key in tasks.claim_partition_keys(consumer, "fan out"):
            tasks.handle_message(consumer, key, key)
    assert numbers(topic) == prepared == ["a"]
    assert outcomes(consumer) == {"handled": 1, "dead_letter": 1}
    assert open_claims(consumer) == 0
