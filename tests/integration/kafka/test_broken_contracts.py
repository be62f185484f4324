"""A producer that breaks most messages raises an alarm, which closes when its messages are good again."""

import pytest

from include.streams.kafka import tasks
from include.streams.kafka.broken_contracts import ALARM
from include.streams.kafka.consumers import Shape
from include.streams.kafka.watch import check_consumer
from tests.integration.kafka.conftest import alarms, order

pytestmark = pytest.mark.integration


def test_broken_messages_raise_an_alarm_until_good_ones_follow(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(b"junk" for _ in range(30)), order(1))
    tasks.claim_messages(consumer, "first")
    alarm = alarms(consumer)[ALARM]
    assert "30 of the latest 31 messages (96 %)" in alarm
    assert "30 of them with not_json" in alarm
    assert "schema registry" not in alarm
    check_consumer(consumer)
    assert ALARM in alarms(consumer)
    send(topic, *(order(f"good {n}") for n in range(100)))
    tasks.claim_messages(consumer, "second")
    check_consumer(consumer)
    assert ALARM not in alarms(consumer)


def test_messages_framed_by_a_schema_registry_are_named(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(b"\0\0\0\0\7" + order(n) for n in range(12)))
    tasks.claim_messages(consumer, "run")
    assert "12 begin like messages of a schema registry" in alarms(consumer)[ALARM]


def test_some_bad_messages_among_good_ones_are_no_alarm(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(b"junk" if n % 4 == 0 else order(n) for n in range(60)))
    tasks.claim_messages(consumer, "run")
    assert ALARM not in alarms(consumer)


def test_good_messages_that_wait_for_their_runs_count_as_good(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, *(b"junk" for _ in range(12)), *(order(n) for n in range(60)))
    tasks.claim_partition_keys(consumer, "fan out")
    assert ALARM not in alarms(consumer)
