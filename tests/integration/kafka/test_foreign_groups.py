"""Another client uses the group's name: its membership and commits delay no message, and alarms name them."""

import asyncio
import time

import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka.admin import NewPartitions

from include.streams.kafka import tasks, trigger
from include.streams.kafka.connection import client_config
from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.kafka.watch import check_consumer
from tests.integration.kafka.conftest import alarms, committed, effects, numbers, order, wait_for_topics
from tests.integration.kafka.test_trigger import Firings, trigger_for

pytestmark = pytest.mark.integration


def commit_as_another(consumer, topic, partition: int, offset: int) -> None:
    with GroupOffsets(consumer.group) as group:
        group.commit({Partition(topic.name, partition): offset})


@pytest.fixture
def visitor():
    """Join a group as a console consumer does; returns once it is a member."""
    joined = []

    def join(group: str, topic) -> KafkaConsumer:
        config = {**client_config(), "group.id": group, "enable.auto.commit": False, "session.timeout.ms": 6000}
        member = KafkaConsumer({**config, "auto.offset.reset": "latest"})
        assigned = []
        member.subscribe([topic.name], on_assign=lambda _, partitions: assigned.extend(partitions))
        until = time.monotonic() + 30
        while not assigned:
            assert time.monotonic() < until
            member.poll(0.05)
        joined.append(member)
        return member

    yield join
    for member in joined:
        member.close()


def test_a_member_of_the_group_stops_nothing_and_is_named_until_it_leaves(
    make_topic, make_consumer, send, admin, visitor
):
    topic = make_topic()
    consumer = make_consumer(topic)
    member = visitor(consumer.group, topic)
    send(topic, order(1), order(2))
    tasks.claim_messages(consumer, "with a visitor")
    assert numbers(topic) == ["1", "2"]
    message = alarms(consumer)["commit_refused"]
    assert f"the committed offsets of group {consumer.group}" in message
    assert "--members" in message
    member.close()
    tasks.claim_messages(consumer, "without")
    assert committed(admin, consumer.group, topic) == {0: 2}
    assert alarms(consumer) == {}


def test_while_commits_are_refused_runs_start_until_all_is_claimed(
    make_topic, make_consumer, send, visitor, monkeypatch
):
    monkeypatch.setattr(trigger, "POSITIONS_SECONDS", 0.2)
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=2, chunk_size=2)
    visitor(consumer.group, topic)
    send(topic, *(order(n) for n in range(5)))

    async def scenario():
        async with Firings(trigger_for(consumer, min_interval=0.05)) as firings:
            for n in range(3):
                await firings.until(n + 1)
                await asyncio.to_thread(tasks.claim_messages, consumer, f"run {n}")
            # With the backoff alone, it would take ten seconds.
            assert firings.at[2] - firings.at[0] < 8
            await asyncio.sleep(0.7)
            assert firings.lags == [5, 3, 1]

    asyncio.run(scenario())
    assert len(numbers(topic)) == 5


def test_offsets_that_another_client_commits_delay_and_skip_nothing(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")

    async def scenario():
        async with Firings(trigger_for(consumer)) as firings:
            await asyncio.sleep(0.5)
            assert firings.at == []
            await asyncio.to_thread(commit_as_another, consumer, topic, 0, 3)
            await asyncio.to_thread(send, topic, order(2), order(3))
            await firings.until(1, timeout=5)
            assert firings.lags == [2]

    asyncio.run(scenario())
    assert check_consumer(consumer).behind == {topic.name: 2}
    message = alarms(consumer)["foreign_commits"]
    assert f"{topic.name}-0: 3, claimed up to 1" in message
    assert "No message is skipped" in message
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["1", "2", "3"]
    check_consumer(consumer)
    assert alarms(consumer) == {}


def test_a_claim_names_offsets_that_another_client_has_committed(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")
    send(topic, order(2), order(3))
    commit_as_another(consumer, topic, 0, 3)
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["1", "2", "3"]
    assert "claimed up to 1" in alarms(consumer)["foreign_commits"]


def test_an_added_partition_is_read_from_its_beginning(make_topic, make_consumer, send, admin):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic)
    tasks.claim_messages(consumer, "first")
    for future in admin.create_partitions([NewPartitions(topic.name, 2)]).values():
        future.result(10)
    wait_for_topics(admin, topic.name)
    send(topic, order(1), order(2), partition=1)
    commit_as_another(consumer, topic, 1, 2)
    tasks.claim_messages(consumer, "second")
    assert effects(topic) == [(1, 0, "1"), (1, 1, "2")]


def test_without_the_database_the_trigger_uses_committed_offsets(make_topic, make_consumer, send, monkeypatch, caplog):
    topic = make_topic()
    consumer = make_consumer(topic)
    reads = []

    def away(name):
        reads.append(name)
        raise ConnectionError("the database is away")

    monkeypatch.setattr(trigger, "read_positions", away)

    async def scenario():
        async with Firings(trigger_for(consumer, min_interval=0.05)) as firings:
            for n in range(2):
                await asyncio.to_thread(send, topic, order(n))
                await firings.until(n + 1)
                await asyncio.to_thread(tasks.claim_messages, consumer, f"run {n}")

    asyncio.run(scenario())
    assert reads == [consumer.name], "it is asked again after a while, not with every look"
    assert len([r for r in caplog.records if "using committed offsets" in r.getMessage()]) == 1


def test_the_trigger_reads_positions_once_for_each_claim(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic()
    consumer = make_consumer(topic)
    read, reads = trigger.read_positions, []
    monkeypatch.setattr(trigger, "read_positions", lambda name: reads.append(name) or read(name))

    async def scenario():
        async with Firings(trigger_for(consumer, min_interval=0.05)) as firings:
            await asyncio.sleep(1)
            assert len(reads) == 1
            for n in range(3):
                await asyncio.to_thread(send, topic, order(n))
                await firings.until(n + 1)
                await asyncio.to_thread(tasks.claim_messages, consumer, f"run {n}")
                await asyncio.sleep(0.3)

    asyncio.run(scenario())
    assert len(numbers(topic)) == 3
    assert len(reads) <= 5
