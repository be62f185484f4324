"""Landed topics, connectors with short intervals, and landed records, on a real Kafka Connect."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from include.streams.contracts import Topic
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.topics import create_topics
from include.streams.landing import connectors
from include.streams.landing.connect import Connect
from include.streams.landing.connector_status import ConnectorStatus, sink_progress
from include.streams.landing.tables import connector_name, load_landing_table, table_name
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from tests.clients import producer_to
from tests.integration.kafka.conftest import Order

# A test waits for commits, and after a kill also for the end of the dead members' sessions.
FAST = {
    "iceberg.control.commit.interval-ms": "500",
    "iceberg.control.commit.timeout-ms": "400",
    "iceberg.kafka.session.timeout.ms": "3000",
    "iceberg.kafka.heartbeat.interval.ms": "1000",
    "iceberg.kafka.transaction.timeout.ms": "5000",
    "consumer.override.session.timeout.ms": "3000",
    "consumer.override.heartbeat.interval.ms": "1000",
}


@pytest.fixture(scope="session", autouse=True)
def watched(services) -> None:
    """The tables of landing tables and of the watchdog in the operational database."""
    upgrade()


@pytest.fixture
def connect(connect_services) -> Connect:
    return Connect()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the project's template and the test's own files."""
    shutil.copy(connectors.FOLDER / connectors.TEMPLATE, tmp_path)
    return tmp_path


@pytest.fixture
def make_topic(connect_services, folder) -> Iterator[Callable[..., Topic]]:
    """Create a topic to land, with short intervals for its connector, which is removed afterwards."""
    made: list[Topic] = []

    def make(partitions: int = 2) -> Topic:
        topic = Topic(
            f"orders.{uuid.uuid4().hex[:8]}", Order, key="number", partitions=partitions,
            retention=timedelta(days=1), landed=True,
        )  # fmt: skip
        create_topics([topic])
        configure(folder, topic, FAST)
        made.append(topic)
        return topic

    yield make
    for topic in made:
        Connect().delete(connector_name(topic))


def configure(folder: Path, topic: Topic, settings: dict[str, str]) -> None:
    """Write settings for this topic's connector only."""
    (folder / f"{connector_name(topic)}.json").write_text(json.dumps(settings))


Sent = dict[tuple[int, int], str | None]


def send(topic: Topic, values: list[bytes | None]) -> Sent:
    """Produce to the partitions in turn; returns the records that should land: {(partition, offset): text}."""
    producer = producer_to(producer_config(client_config()), topic.name)
    sent: Sent = {}

    def delivered(error, message) -> None:
        assert error is None, error
        value = message.value()
        sent[message.partition(), message.offset()] = None if value is None else value.decode()

    for number, value in enumerate(values):
        producer.produce(topic.name, value, partition=number % topic.partitions, on_delivery=delivered)
        producer.poll(0)
    assert producer.flush(30) == 0
    assert len(sent) == len(values)
    return sent


def rows(topic: Topic) -> list[tuple[str, int, int, str | None]]:
    """The landing table without its times, which may be outside the calendar; read with PyIceberg."""
    names = "topic", "partition", "offset", "value"
    found = load_landing_table(topic).scan(selected_fields=names).to_arrow().to_pylist()
    return sorted((row["topic"], row["partition"], row["offset"], row["value"]) for row in found)


def expected(topic: Topic, sent: Sent) -> list[tuple[str, int, int, str | None]]:
    return sorted((topic.name, *place, value) for place, value in sent.items())


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def wait_until_landed(topic: Topic, sent: Sent) -> None:
    """Wait until enough rows have landed, by the table's own count; only then are rows read."""
    wait_for(lambda: landed_records(topic) >= len(sent))


def landed_records(topic: Topic) -> int:
    snapshot = load_landing_table(topic).current_snapshot()
    return int(snapshot.summary["total-records"]) if snapshot and snapshot.summary else 0


def connector_status(connect: Connect, topic: Topic) -> ConnectorStatus:
    return ConnectorStatus.of(connect, connector_name(topic))


def wait_until_read(topic: Topic) -> None:
    """Wait until the sink's tasks have committed all offsets, independent of the table."""
    wait_for(lambda: (found := sink_progress(topic)).sink is not None and not found.lag)


@pytest.fixture
def refuse_commits(landing_services) -> Iterator[Callable[[Topic], Callable[[], None]]]:
    """Make the catalog refuse commits of a topic's landing table; the returned function ends this."""
    url = landing_services.endpoints()["databases"]["landing_catalog"]
    created: list[str] = []

    def allow(name: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute(f"drop function if exists {name} cascade")  # type: ignore[arg-type]

    def refuse(topic: Topic) -> Callable[[], None]:
        table = table_name(topic)
        name = f"refuse_{table}"
        created.append(name)
        with psycopg.connect(url) as connection:
            connection.execute(
                f"create function {name}() returns trigger language plpgsql as "  # type: ignore[arg-type]
                "$$ begin raise exception 'refused'; end $$"
            )
            connection.execute(
                f"create trigger {name} before update on iceberg_tables for each row "  # type: ignore[arg-type]
                f"when (new.table_name = '{table}') execute function {name}()"
            )
        return lambda: allow(name)

    yield refuse
    for name in created:
        allow(name)


def alarms(source: str) -> dict[str, str]:
    """{kind: message} of the open alarms."""
    with begin() as connection:
        query = text("select kind, message from alarms where source = :source and closed_at is null")
        return dict(connection.execute(query, {"source": source}).all())
