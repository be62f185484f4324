"""The waiting time of a message starts when it could first be seen, and ends when it is handled."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.consumers import Shape
from include.streams.kafka.watch import check_consumer
from include.streams.operations.database import begin
from tests.clients import producer_to
from tests.integration.kafka.conftest import alarms, numbers, order, whole_run

pytestmark = pytest.mark.integration

DAYS_AGO, LATER = timedelta(days=-3), timedelta(days=3)


@pytest.fixture
def send_dated(services):
    """Send a message with a timestamp that is this far from now."""

    def produce(topic, value: bytes, away: timedelta) -> None:
        producer = producer_to(producer_config(client_config()), topic.name)
        at = round((datetime.now(UTC) + away).timestamp() * 1000)
        producer.produce(topic.name, value, partition=0, timestamp=at)
        producer.flush(30)

    return produce


def an_hour_passes(consumer) -> None:
    with begin() as connection:
        older = text("update log_ends set seen_at = seen_at - interval '1 hour' where consumer = :name")
        connection.execute(older, {"name": consumer.name})


# The topic accepts and keeps records with any timestamp.
KEPT = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(10 * 24 * 3600 * 1000)}


def test_old_messages_of_a_device_that_was_offline_are_not_late(make_topic, make_consumer, send_dated):
    topic = make_topic(config=KEPT)
    consumer = make_consumer(topic)
    check_consumer(consumer)
    send_dated(topic, order(1), DAYS_AGO)
    check_consumer(consumer)
    assert alarms(consumer) == {}
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["1"]
    assert alarms(consumer) == {}


@pytest.mark.parametrize("away", [DAYS_AGO, timedelta(), LATER], ids=["old", "now", "ahead"])
def test_a_backlog_is_late_whatever_timestamps_its_messages_have(make_topic, make_consumer, send_dated, away):
    topic = make_topic(config=KEPT)
    consumer = make_consumer(topic)
    send_dated(topic, order(1), away)
    check_consumer(consumer)
    an_hour_passes(consumer)
    check_consumer(consumer)
    if away == timedelta():
        # Its timestamp is later than the last check, but at that check the log already included it.
        assert check_consumer(consumer).waiting[topic.name] >= timedelta(hours=1)
    assert f"wait too long to be claimed ({topic.name}: " in alarms(consumer)["age"]
    tasks.claim_messages(consumer, "run")
    check_consumer(consumer)
    assert alarms(consumer) == {}


def test_a_consumer_that_keeps_up_between_checks_is_not_late(make_topic, make_consumer, send_dated):
    topic = make_topic(config=KEPT)
    consumer = make_consumer(topic)
    for n in range(3):
        check_consumer(consumer)
        an_hour_passes(consumer)
        check_consumer(consumer)
        send_dated(topic, order(n), DAYS_AGO)
        tasks.claim_messages(consumer, f"run {n}")
    assert alarms(consumer) == {}
    with begin() as connection:
        rows = text("select count(*) from log_ends where consumer = :name")
        assert connection.scalar(rows, {"name": consumer.name}) == topic.partitions


def test_messages_of_a_cleared_old_run_are_not_late(make_topic, make_consumer, send_dated):
    topic = make_topic(config=KEPT)
    consumer = make_consumer(topic)
    send_dated(topic, order(1), DAYS_AGO)
    tasks.claim_messages(consumer, "run")
    with begin() as connection:
        older = text("update claims set claimed_at = claimed_at - interval '1 day' where consumer = :name")
        connection.execute(older, {"name": consumer.name})
    whole_run(consumer, "run")
    assert alarms(consumer) == {}


def test_messages_that_wait_for_their_runs_count_as_lag(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message, max_lag=4)
    send(topic, *(order(n) for n in range(6)))
    keys = tasks.claim_partition_keys(consumer, "fan out")
    assert f"6 messages behind, limit 4 ({topic.name}: 6)" in alarms(consumer)["lag"]
    for key in keys[:3]:
        tasks.handle_message(consumer, key, f"run of {key}")
        check_consumer(consumer)
        assert "lag" in alarms(consumer)
    tasks.claim_partition_keys(consumer, "nothing new")
    assert "lag" in alarms(consumer), "3 wait, above half of the limit"
    tasks.handle_message(consumer, keys[3], "one more")
    check_consumer(consumer)
    assert alarms(consumer) == {}
