"""Compares bursts of the event lane by format: JSON, Avro, Protobuf and JSON Schema.

    python -m benchmarks.formats [--messages 5000] [--runs 3]

The services are PostgreSQL, Kafka and the schema registry, in a stack of their own. Each run claims the waiting
messages of a topic and handles them in chunks: it reads and decodes them, checks the contract, and writes inbox rows
and effects. It does the work of the tasks in this process, without Airflow's own time, so the formats differ more here
than in a deployment. The runs of the formats take turns, because the machine may be busy. The last line is a JSON
object.

- json, avro, protobuf, json_schema: messages per second; the median of the runs.
- event_<format>_ratio: that format's messages per second / those of JSON, the median of the ratios of each turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import Connection, text

from benchmarks.bench_stack import fresh_stack
from benchmarks.results import print_result
from include.streams import Avro, Consumer, Contract, Message, Protobuf, Topic
from include.streams.contracts.types import Identifier, UtcTime
from include.streams.formats import JSON, Format, JsonSchema

FORMATS: dict[str, Format] = {"json": JSON, "avro": Avro(), "protobuf": Protobuf(), "json_schema": JsonSchema()}
CHUNK = 500


class Leak(Contract):
    """A message with the types that messages usually have."""

    version: Literal[1]
    leak_key: Identifier
    district: Literal["harbour", "hills"]
    found_at: UtcTime
    litres_per_hour: Annotated[float, Field(ge=0, le=10**6)]
    meters: Annotated[list[Identifier], Field(max_length=10)]
    is_confirmed: bool
    note: Annotated[str, Field(max_length=200)] | None = None

    @property
    def event_id(self) -> str:
        return self.leak_key


def leak(number: int) -> Leak:
    return Leak(
        version=1,
        leak_key=f"L-{number:08}",
        district="harbour" if number % 2 else "hills",
        found_at=datetime(2026, 1, 2, 3, 4, 5, number, UTC),
        litres_per_hour=number / 7,
        meters=[f"M-{number + meter:06}" for meter in range(4)],
        is_confirmed=bool(number % 3),
        note="found at night" if number % 5 else None,
    )


def record(connection: Connection, message: Message) -> None:
    """The effect: a row."""
    event: Any = message.event
    row = {"key": event.leak_key, "litres": event.litres_per_hour}
    connection.execute(text("insert into bench_leaks values (:key, :litres)"), row)


def topic_of(name: str) -> Topic:
    return Topic(f"leaks.{name}", Leak, key="leak_key", partitions=1, retention=timedelta(days=1), format=FORMATS[name])


def send(topic: Topic, messages: int) -> None:
    from include.streams.kafka.producer import AcknowledgedProducer

    with AcknowledgedProducer() as producer:
        for number in range(messages):
            key, value, headers = topic.outgoing(leak(number))
            producer.send(topic.name, key=key, value=value, headers=[*headers], partition=0)


def burst(topic: Topic, run_id: str, messages: int) -> float:
    """Handle the topic's messages as a new consumer; returns messages per second."""
    from include.streams.kafka import tasks
    from include.streams.operations.database import begin
    from include.streams.operations.tables import Outcome

    name = f"{topic.name}-{run_id}"
    consumer = Consumer(
        name=name, topics=(topic,), effect=f"{__name__}:record", chunk_size=CHUNK, max_messages_per_claim=messages
    )
    began = time.perf_counter()
    for chunk in tasks.claim_messages(consumer, run_id):
        tasks.handle_chunk(consumer, chunk, run_id)
    seconds = time.perf_counter() - began
    with begin() as connection:
        handled = text("select count(*) from inbox where consumer = :name and outcome = :outcome")
        if connection.scalar(handled, {"name": name, "outcome": Outcome.handled}) != messages:
            raise AssertionError(f"{name}: not every message was handled")
    return messages / seconds


def measure(messages: int, runs: int) -> dict[str, Any]:
    from include.streams.contracts.registering import register_schemas
    from include.streams.kafka.topics import create_topics
    from include.streams.operations.database import begin
    from include.streams.operations.migrate import upgrade

    with fresh_stack(("postgres", "registry", "kafka")):
        upgrade()
        topics = {name: topic_of(name) for name in FORMATS}
        create_topics(topics.values())
        register_schemas(topics.values())
        with begin() as connection:
            connection.execute(text("create table bench_leaks (key text, litres double precision)"))
        for topic in topics.values():
            send(topic, messages)
        rates: dict[str, list[float]] = {name: [] for name in topics}
        # The first turn loads modules and schemas.
        for turn in range(runs + 1):
            for name, topic in topics.items():
                rate = burst(topic, f"turn-{turn}", messages)
                if turn:
                    rates[name].append(rate)
        ratios = {
            f"event_{name}_ratio": round(statistics.median(a / b for a, b in zip(own, rates["json"], strict=True)), 2)
            for name, own in rates.items()
            if name != "json"
        }
        return {"messages": messages, **{name: round(statistics.median(own)) for name, own in rates.items()}, **ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print_result("bench-formats", measure(options.messages, options.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
