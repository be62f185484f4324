"""A log that was truncated and filled again: it has other records at the same offsets.

The broker is stopped once for all tests of this file; its files are truncated as by an unclean leader election.
"""

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.consumers import Shape
from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.kafka.reset import reset_consumer
from include.streams.operations.database import begin
from tests.clients import producer_to
from tests.integration.kafka.conftest import alarms, numbers, open_claims, order

pytestmark = pytest.mark.integration


@pytest.fixture
def one_by_one(send):
    def send_each(topic, *values, **kwargs):
        for value in values:
            send(topic, value, **kwargs)

    return send_each


def test_a_refilled_log_stops_its_partition_and_its_records_are_new(make_topic, make_consumer, one_by_one, cut):
    topic, other, kept = make_topic(partitions=2), make_topic(partitions=1), make_topic(partitions=1)
    consumer = make_consumer(topic, other)
    requests = make_consumer(topic, shape=Shape.per_message)
    unharmed = make_consumer(kept)
    one_by_one(topic, *(order(f"old {n}") for n in range(6)))
    one_by_one(topic, order("beside"), partition=1)
    one_by_one(kept, order("kept"))
    tasks.claim_messages(consumer, "before")
    keys = tasks.claim_partition_keys(requests, "before")
    for key in keys[:4]:
        tasks.handle_message(requests, key, f"run of {key}")
    tasks.claim_messages(unharmed, "before")

    cut((topic, 0, 2))
    one_by_one(topic, *(order(f"new {n}") for n in range(8)))
    one_by_one(kept, order("after"))
    one_by_one(other, order("of another topic"))

    # A new leader alone does not stop the consumer.
    tasks.claim_messages(unharmed, "after")
    assert numbers(kept) == ["kept", "after"]
    # Other partitions and topics continue.
    tasks.claim_messages(consumer, "after")
    assert numbers(other) == ["of another topic"]
    stopped = alarms(consumer)["consumer_stopped"]
    assert f"the log of topic {topic.name} was truncated and filled again" in stopped
    assert f"python -m include.streams.kafka reset {consumer.name} {topic.name}" in stopped
    with pytest.raises(AirflowFailException, match="was truncated and filled again"):
        tasks.claim_messages(consumer, "with nothing else to claim")
    assert "new 0" not in numbers(topic)

    reset_consumer(consumer.name, topic.name)
    assert "consumer_stopped" not in alarms(consumer)
    tasks.claim_messages(consumer, "reset")
    handled = [number for number in numbers(topic) if number.startswith("new")]
    assert handled == [f"new {n}" for n in range(8)]
    assert len(numbers(topic)) == len(set(numbers(topic))) + 4, "the four requests had their effects before, once"
    assert open_claims(consumer) == 0

    # Messages that were claimed and not handled are reported as lost, and no old key gets a new message.
    changes = reset_consumer(requests.name, topic.name)
    assert any(f"{topic.name}-0 [4, 6): given up" in change for change in changes)
    assert f"{topic.name}-0 [4, 6)" in alarms(requests)["messages_lost"]
    with pytest.raises(AirflowFailException, match="given up when the consumer was reset"):
        tasks.handle_message(requests, keys[4], "too late")
    new = tasks.claim_partition_keys(requests, "reset")
    assert len(new) == 11
    for key in new:
        tasks.handle_message(requests, key, f"again {key}")
    # The old claim keeps its messages of the partition that was not truncated.
    assert tasks.claim_partition_keys(requests, "before") == []
    assert open_claims(requests) == 0
    with begin() as connection:
        rows = connection.execute(
            text("select outcome, count(*) from inbox where consumer = :name group by 1"), {"name": requests.name}
        )
        assert dict(rows.all()) == {"handled": 4 + 9, "duplicate": 2}


def test_logs_of_many_partitions_are_compared_at_once(make_topic, services):
    topic = make_topic(partitions=120)
    producer = producer_to(producer_config(client_config()), topic.name)
    for number in range(topic.partitions):
        producer.produce(topic.name, order(number), partition=number)
    producer.flush(30)
    partitions = [Partition(topic.name, number) for number in range(topic.partitions)]
    with GroupOffsets("compares", **CONSUMER_SETTINGS) as group:
        epoch = next(iter(group.fetch_offsets_sync([topic.name]).values())).leader_epoch
        assert group.find_truncated_logs({partition: (1, epoch) for partition in partitions}) == (set(), set())
        # Positions under a leader epoch that these logs have never had.
        assert group.find_truncated_logs({partition: (1, epoch + 9) for partition in partitions}) == (
            set(partitions),
            set(),
        )


def test_without_leader_epochs_no_log_is_compared(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")
    with begin() as connection:
        connection.execute(
            text("update positions set leader_epoch = null where consumer = :name"), {"name": consumer.name}
        )
    asked = []
    monkeypatch.setattr(GroupOffsets, "find_truncated_logs", lambda _, wanted: asked.append(wanted) or set())
    send(topic, order(2))
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["1", "2"]
    assert asked == []
    # It cannot be proved that the log is the same, so its messages are new after a reset. Each event still has one
    # effect.
    reset_consumer(consumer.name, topic.name)
    tasks.claim_messages(consumer, "third")
    assert numbers(topic) == ["1", "2"]
