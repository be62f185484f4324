"""A chunk that takes long, or has unreadable partitions, delays neither other chunks nor its own remaining messages."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from sqlalchemy import Connection, text

from include.streams.kafka import handling, reading, tasks
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader, ReadingStalled
from include.streams.operations import database
from include.streams.operations.database import begin
from tests.clients import WithoutLeaders
from tests.integration.kafka.conftest import numbers, open_claims, order, record_effect

pytestmark = pytest.mark.integration


class Clock:
    """The monotonic clock, which an effect can advance."""

    passed = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed


clock = Clock()


def effect(connection: Connection, message: Message) -> None:
    if message.event.number == "slow":
        clock.passed += 3_600
    elif message.event.number == "hangs":
        # The exception that Airflow raises in a task after its execution_timeout.
        raise AirflowTaskTimeout("Timeout, PID: 1")
    elif message.event.number.startswith("locked"):
        take_lock(connection, message.event.number)
    record_effect(connection, message)


def take_lock(connection: Connection, name: str) -> None:
    connection.execute(text("select pg_advisory_xact_lock(hashtext(:name))"), {"name": name})


@pytest.fixture
def consumer(make_topic, make_consumer):
    return replace(make_consumer(make_topic(partitions=3), chunk_size=4), effect=f"{__name__}:effect")


def prepare(message: Message) -> str:
    return message.event.number


def effect_of_prepared(connection: Connection, message: Message, prepared: str) -> None:
    assert prepared == message.event.number
    effect(connection, message)


@pytest.fixture
def moved_clock(monkeypatch) -> None:
    monkeypatch.setattr(clock, "passed", 0.0)
    for module in (tasks, handling):
        monkeypatch.setattr(module, "time", clock)


def test_the_rest_of_a_slow_first_chunk_is_left_to_a_task(consumer, send, moved_clock):
    (topic,) = consumer.topics
    send(topic, order("slow"), partition=0)
    for partition in (1, 2):
        send(topic, *(order(f"{partition}-{n}") for n in range(3)), partition=partition)
    chunks = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["slow"]
    for chunk in chunks:
        tasks.handle_chunk(consumer, chunk, "run")
    assert sorted(numbers(topic)) == ["1-0", "1-1", "1-2", "2-0", "2-1", "2-2", "slow"]
    assert open_claims(consumer) == 0


def test_the_rest_of_a_slow_prepared_batch_is_left_to_a_task(consumer, send, moved_clock):
    consumer = replace(consumer, prepare=f"{__name__}:prepare", effect=f"{__name__}:effect_of_prepared")
    (topic,) = consumer.topics
    send(topic, order("first"), order("slow"), order("behind"), partition=0)
    (chunk,) = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["first", "slow"]
    tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["first", "slow", "behind"]
    assert open_claims(consumer) == 0


def test_after_a_timeout_of_the_claiming_task_all_chunks_get_tasks(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("before"), order("hangs"), *(order(f"behind {n}") for n in range(4)), partition=0)
    first, second = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == []
    tasks.handle_chunk(consumer, second, "run")
    assert numbers(topic) == ["behind 2", "behind 3"]
    with pytest.raises(AirflowTaskTimeout):
        tasks.handle_chunk(consumer, first, "run")
    assert open_claims(consumer) == 1


def test_messages_that_wait_for_locks_leave_time_for_later_messages(make_consumer, make_topic, send, monkeypatch):
    # If each message waited this long, the task would wait for 24 s.
    monkeypatch.setitem(database.TRANSACTION_SETTINGS, "lock_timeout", "2s")
    monkeypatch.setattr(handling, "LOCK_SECONDS", 2.0)
    topic = make_topic(partitions=1)
    consumer = replace(make_consumer(topic), effect=f"{__name__}:effect")
    locked = [f"locked {n}" for n in range(12)]
    send(topic, *map(order, locked), order("behind"))
    with begin() as other:
        for name in locked:
            take_lock(other, name)
        began = time.monotonic()
        (chunk,) = tasks.claim_messages(consumer, "run")
        assert time.monotonic() - began < 15
        assert numbers(topic) == ["behind"]
        assert open_claims(consumer) == 1
    # A retry starts with the full wait again.
    with begin() as other:
        take_lock(other, locked[0])
        threading.Timer(2, other.rollback).start()
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == [*locked, "behind"]
    assert open_claims(consumer) == 0


def test_after_each_unreadable_range_the_next_one_gets_less_time(make_topic, send, monkeypatch):
    monkeypatch.setattr(reading, "SILENCE_SECONDS", 4.0)
    monkeypatch.setattr(reading, "LEAST_SILENCE_SECONDS", 1.0)
    topic = make_topic(partitions=2)
    send(topic, order("a"), partition=0)
    send(topic, order("b"), partition=1)
    waited = []
    with GroupOffsets("reads", **CONSUMER_SETTINGS) as group:
        (identity,) = group.fetch_topic_ids([topic.name]).values()
        reader = RangeReader(group.consumer)
        for _ in range(4):
            # The log ends before the range ends.
            with pytest.raises(ReadingStalled, match=r"nothing after offset 1 for (\d) s") as stalled:
                list(reader.read(OffsetRange(topic.name, identity, 0, 0, 5)))
            waited.append(str(stalled.value).rpartition(" for ")[2].split()[0])
        (batch,) = reader.read(OffsetRange(topic.name, identity, 1, 0, 1))
    assert waited == ["4", "2", "1", "1"]
    assert [message.offset for message in batch] == [0]


def test_a_readable_range_does_not_lengthen_the_wait_again(make_topic, send, monkeypatch):
    monkeypatch.setattr(reading, "SILENCE_SECONDS", 4.0)
    monkeypatch.setattr(reading, "LEAST_SILENCE_SECONDS", 0.5)
    topic = make_topic(partitions=12)
    for partition in range(topic.partitions):
        send(topic, order(partition), partition=partition)
    read, stalled = [], []
    with GroupOffsets("reads", **CONSUMER_SETTINGS) as group:
        (identity,) = group.fetch_topic_ids([topic.name]).values()
        reader = RangeReader(group.consumer)
        began = time.monotonic()
        for partition in range(topic.partitions):
            # As if one of three brokers is away: good, good, bad.
            end = 5 if partition % 3 == 2 else 1
            try:
                (batch,) = reader.read(OffsetRange(topic.name, identity, partition, 0, end))
                read += [message.partition for message in batch]
            except ReadingStalled:
                stalled.append(partition)
        took = time.monotonic() - began
    assert stalled == [2, 5, 8, 11]
    assert read == [0, 1, 3, 4, 6, 7, 9, 10]
    # 4, 2, 1 and 0.5 s; with the full time for each range, 16 s.
    assert took < 14


def test_a_broker_that_names_no_leaders_fails_no_range(make_topic, send):
    topic = make_topic(partitions=1)
    send(topic, order("a"))
    with GroupOffsets("reads", **CONSUMER_SETTINGS) as group:
        (identity,) = group.fetch_topic_ids([topic.name]).values()
        reader = RangeReader(WithoutLeaders(group.consumer))
        (batch,) = reader.read(OffsetRange(topic.name, identity, 0, 0, 1))
    assert [message.offset for message in batch] == [0]
