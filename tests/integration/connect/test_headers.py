"""The headers that a contract needs land with each record, for any headers of the record."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from confluent_kafka import Producer

from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.topics import create_topics
from include.streams.landing import connectors, snapshot
from include.streams.landing.connect import Connect
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.repair import repair
from include.streams.landing.tables import connector_name, load_landing_table
from include.streams.landing.verification import verify_next_claim
from tests import webhooks
from tests.integration.connect.conftest import (
    FAST,
    configure,
    connector_status,
    landed_records,
    wait_for,
    wait_until_read,
)

pytestmark = pytest.mark.integration

TYPE, ID = webhooks.TYPE_HEADER, webhooks.ID_HEADER
ODD: list[list[tuple[str, bytes | None]]] = [
    [],
    [(TYPE, b"push")],
    [(ID, b"1")],
    [(TYPE, None), (ID, b"")],
    [(TYPE, b"\xff\x00"), (ID, "é".encode()), ("", b"x"), ("other", b"y")],
    [(TYPE, b"push"), (ID, b"2"), (ID.lower(), b"3")],
]
TWICE: list[tuple[str, bytes | None]] = [(TYPE, b"first"), (ID, b"4"), (TYPE, b"last")]


@pytest.fixture
def topic(connect_services, folder):
    topic = webhooks.topic(name=f"hooks.{uuid.uuid4().hex[:8]}", landed=True, partitions=1)
    create_topics([topic])
    configure(folder, topic, FAST)
    yield topic
    Connect().delete(connector_name(topic))


def send(topic, all_headers: list[list[tuple[str, bytes | None]]]) -> None:
    producer = Producer(producer_config(client_config()))
    for number, headers in enumerate(all_headers):
        producer.produce(topic.name, f'{{"n":{number}}}'.encode(), headers=headers, partition=0)
    assert producer.flush(30) == 0


def landed(topic) -> dict[int, tuple[bytes | None, bytes | None, str]]:
    found = load_landing_table(topic).scan().to_arrow().to_pylist()
    names = (header_column(TYPE), header_column(ID), HEADERS_LANDED)
    return {row["offset"]: tuple(row[name] for name in names) for row in found}


def expected(all_headers: list[list[tuple[str, bytes | None]]]) -> dict[int, tuple[bytes | None, bytes | None, str]]:
    return {
        offset: (dict(headers).get(TYPE), dict(headers).get(ID), f"{TYPE},{ID}")
        for offset, headers in enumerate(all_headers)
    }


def test_headers_land_as_bytes_for_any_content(topic, folder, connect):
    connectors.apply([topic], folder=folder)
    send(topic, ODD)
    wait_for(lambda: landed_records(topic) >= len(ODD))
    assert landed(topic) == expected(ODD)
    assert connectors.apply([topic], folder=folder) == [], "nothing is left to change"


def test_a_record_with_a_repeated_header_is_repaired_and_stops_nothing(topic, folder, connect, monkeypatch):
    # When a second task joins, the first reads the records again. By then its transform knows the schema, and the first
    # record lands too.
    configure(folder, topic, {**FAST, "tasks.max": "1"})
    connectors.apply([topic], folder=folder)
    # The transform fails at the record that comes first: it keeps the schema of a record, and a schema has no field
    # twice. A later record with the header twice has its last value.
    sent = [TWICE, ODD[1], TWICE, ODD[5]]
    send(topic, sent)
    wait_for(lambda: landed_records(topic) >= 3)
    wait_until_read(topic)
    assert connector_status(connect, topic).is_running
    monkeypatch.setattr(snapshot, "INNER_GRACE", timedelta())
    lane = LandingConsumer(name=f"hooks-{uuid.uuid4().hex[:8]}", topic=topic)
    due = verify_next_claim(lane).due
    assert [(gap.offsets.start, gap.offsets.end) for gap in due] == [(0, 1)]
    assert repair(topic, due).appended == 1
    assert landed(topic) == expected(sent)


def test_a_topic_without_picked_headers_has_no_transform_for_them(make_topic, folder):
    plain = make_topic()
    config = connectors.connector_config(plain, folder)
    assert "errors.tolerance" not in config
    assert connectors.HEADER_TRANSFORM not in config.values()
