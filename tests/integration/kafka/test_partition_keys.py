"""One Dag run per message: claims become partition keys, a key is handled once."""

import pytest

from include.kafka import tasks
from include.kafka.consumers import Shape
from tests.integration.kafka.conftest import effects, numbers, open_claims, order, read_all
from tests.integration.kafka.test_handling import outcomes, transact

pytestmark = pytest.mark.integration


def test_every_message_has_a_key_and_its_run_closes_the_claim(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    send(topic, order("c"), partition=1)
    keys = tasks.claim_partition_keys(consumer, "fan out")
    assert keys == [f"{topic.name}-0-0", f"{topic.name}-0-1", f"{topic.name}-1-0"]
    for key in reversed(keys):
        assert open_claims(consumer) == 1
        tasks.handle_message(consumer, key, f"run of {key}")
    assert effects(topic) == [(0, 0, "a"), (0, 1, "b"), (1, 0, "c")]
    assert open_claims(consumer) == 0


def test_a_key_that_is_handled_again_has_no_second_effect(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    for run in ("first", "second"):
        tasks.handle_message(consumer, key, run)
    assert numbers(topic) == ["a"]


def test_a_cleared_fan_out_gives_only_the_keys_that_are_still_open(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    first, second = tasks.claim_partition_keys(consumer, "fan out")
    tasks.handle_message(consumer, first, "run")
    send(topic, order("not of this claim"))
    assert tasks.claim_partition_keys(consumer, "fan out") == [second]


def test_bad_messages_and_holes_need_no_run(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, b"bad")
    transact(topic, topic.name, order("aborted"), commit=False)
    send(topic, order("good"), b"bad too")
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    assert open_claims(consumer) == 1
    tasks.handle_message(consumer, key, "run")
    assert numbers(topic) == ["good"]
    assert {letter.value() for letter in read_all(topic.dead_letter_name)} == {b"bad", b"bad too"}
    assert outcomes(consumer) == {"handled": 1, "dead_letter": 2}
    assert open_claims(consumer) == 0


def test_only_bad_messages_and_holes_close_the_claim_at_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, b"bad")
    transact(topic, topic.name, order("aborted"), commit=False)
    assert tasks.claim_partition_keys(consumer, "fan out") == []
    assert open_claims(consumer) == 0


def test_a_key_that_was_never_claimed_is_refused(make_topic, make_consumer, send):
    topic = make_topic()
    send(topic, order("a"))
    consumer = make_consumer(topic, shape=Shape.per_message)
    with pytest.raises(ValueError, match=f"{topic.name}-0-0"):
        tasks.handle_message(consumer, f"{topic.name}-0-0", "run")
