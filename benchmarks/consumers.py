"""The topics and consumers of the benchmarks' Dags, and the effect that all of them have."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, cast

from sqlalchemy import Connection, text

from include.streams.contracts import Contract, Registry, Topic
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.kafka.messages import Message
from include.streams.operations import outbox
from include.streams.operations.database import begin


class Probe(Contract):
    """A numbered message."""

    version: Literal[1]
    number: str

    @property
    def event_id(self) -> str:
        return self.number


def _topic(name: str, partitions: int) -> Topic:
    return Topic(name, Probe, key="number", partitions=partitions, retention=timedelta(days=1))


LAG_TOPIC = _topic("bench.lag", 3)
# The stock trigger's topic has as many partitions.
STOCK_TOPIC = _topic("bench.stock", 3)
SHARED_STREAM_TOPIC = _topic("bench.shared-stream", 3)
# One Dag run per message.
MESSAGES_TOPIC = _topic("bench.messages", 3)
# One Dag run per message handles only a few messages a second.
FAULTS_MESSAGES_TOPIC = _topic("faults.messages", 3)
FAULTS_TOPICS = (_topic("faults.one", 3), _topic("faults.two", 2))
TOPICS = Registry(LAG_TOPIC, STOCK_TOPIC, SHARED_STREAM_TOPIC, MESSAGES_TOPIC, FAULTS_MESSAGES_TOPIC, *FAULTS_TOPICS)

STOCK_CONN_ID = "kafka_stock"
FAULTS_WEBHOOK = "faults_webhook"
SHARED_STREAM_CONN_ID = "kafka_shared_stream"

LAG = Consumer(name="bench_lag", topics=(LAG_TOPIC,), effect="benchmarks.consumers:record")
MESSAGES = Consumer(
    name="bench_messages",
    topics=(MESSAGES_TOPIC,),
    effect="benchmarks.consumers:record",
    shape=Shape.per_message,
    max_messages_per_claim=200,
    chunk_size=200,
)
# Small claims, so that a fault hits many of them.
FAULTS = Consumer(
    name="faults",
    topics=FAULTS_TOPICS,
    effect="benchmarks.consumers:record_and_notify",
    max_messages_per_claim=300,
    chunk_size=100,
)
FAULTS_MESSAGES = Consumer(
    name="faults_messages",
    topics=(FAULTS_MESSAGES_TOPIC,),
    effect="benchmarks.consumers:record",
    shape=Shape.per_message,
    max_messages_per_claim=20,
    chunk_size=20,
)

TABLES = """
create table if not exists bench_effects (
    lane text, number text, at timestamptz default clock_timestamp(), messages_of_run integer
);
create index if not exists bench_effects_number on bench_effects (lane, number);
create table if not exists bench_switches (name text primary key);
"""


def add_effect(connection: Connection, lane: str, number: str) -> None:
    """Insert a row. The table has no unique key, so that a repeated effect is found."""
    values = {"lane": lane, "number": number}
    connection.execute(text("insert into bench_effects (lane, number) values (:lane, :number)"), values)


def record(connection: Connection, message: Message) -> None:
    """The effect of a message in this project's lane."""
    add_effect(connection, message.topic, cast(Probe, message.event).number)


def record_and_notify(connection: Connection, message: Message) -> None:
    """The same effect; messages of one of the topics also make a request to a webhook."""
    record(connection, message)
    if message.topic == FAULTS_TOPICS[1].name:
        payload = {"number": cast(Probe, message.event).number}
        outbox.add_request(connection, consumer=FAULTS.name, conn_id=FAULTS_WEBHOOK, payload=payload)


def record_directly(lane: str, numbers: list[str]) -> None:
    """The same effect, from a task that has the payloads; each row has the number of messages of its run."""
    statement = text("insert into bench_effects (lane, number, messages_of_run) values (:lane, :number, :count)")
    with begin() as connection:
        for number in numbers:
            connection.execute(statement, {"lane": lane, "number": number, "count": len(numbers)})


def record_payloads(lane: str, triggering_asset_events: Mapping[Any, Sequence[Any]]) -> None:
    """The effect of every event that started a run."""
    events = [event for events in triggering_asset_events.values() for event in events]
    record_directly(lane, [json.loads(event.extra["payload"])["number"] for event in events])


def stalled() -> bool:
    """Whether `make faults` makes claims fail."""
    with begin() as connection:
        return connection.scalar(text("select count(*) from bench_switches where name = 'stalled'")) == 1


def payload(message) -> str:
    """For the stock trigger: the value as text."""
    return message.value().decode()
