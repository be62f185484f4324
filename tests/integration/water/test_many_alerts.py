"""The number of statements for alerts grows with the batches, not with the alerts, except for the row of each alert."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.delivery import OwnDelivery, RecordTransport, deliver_due
from include.streams.kafka.reading import RangeReader
from include.streams.kafka.topics import create_topics
from include.streams.operations.database import begin
from include.streams.operations.webhooks import Requests
from include.water.alerts.effect import WEBHOOK_CONN_ID
from include.water.consumers import RAISE_ALERTS
from include.water.topics import ALERTS_RAISED, LEAKS_DETECTED, LeakDetected
from tests.clients import producer_to
from tests.integration.kafka.conftest import make_all_due, operations
from tests.integration.kafka.test_many_partitions import statements
from tests.integration.kafka.test_outbox_delivery import make_receiver
from tests.unit.water.test_topics import example

__all__ = ["make_receiver", "operations", "statements"]

pytestmark = pytest.mark.integration

# The batch size of messages and of outbox rows: small, so that a few hundred alerts are several batches.
BATCH = 50
# The most statements for one more batch of messages and of outbox rows (13 when this was written). One statement per
# alert would be 50 of each kind.
OF_A_BATCH = 20


@pytest.fixture(autouse=True)
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "RangeReader", partial(RangeReader, batch_size=BATCH))
    monkeypatch.setattr(RecordTransport, "rows_at_once", BATCH)
    monkeypatch.setattr(Requests, "rows_at_once", BATCH)


@pytest.fixture
def consumer(operations) -> Iterator[Consumer]:
    """The declared consumer with a topic of its own; the claiming task handles all messages in one chunk."""
    topic = replace(LEAKS_DETECTED, name=f"leaks.{uuid.uuid4().hex[:8]}", partitions=1)
    create_topics([topic, ALERTS_RAISED])
    consumer = replace(RAISE_ALERTS, name=topic.name, topics=(topic,), max_messages_per_claim=5_000, chunk_size=5_000)
    yield consumer
    with begin() as connection:
        for table in ("outbox", "outbox_routes"):
            connection.execute(text(f"delete from {table} where consumer = :name"), {"name": RAISE_ALERTS.name})
        connection.execute(text("delete from alerts where source_topic = :name"), {"name": topic.name})


def raise_alerts(consumer: Consumer, number: int) -> None:
    """Send leaks, each of which becomes an alert, and handle them in one run."""
    (topic,) = consumer.topics
    run = uuid.uuid4().hex[:8]
    producer = producer_to(producer_config(client_config()), topic.name)
    for n in range(number):
        key, value = topic.serialize(example(LeakDetected, leak_key=f"harbour/2026-11-21/{run}-{n}"))
        producer.produce(topic.name, value, key=key, partition=0)
    assert producer.flush(30) == 0
    assert tasks.claim_messages(consumer, run) == []


def states(kind: str) -> dict[str, int]:
    with begin() as connection:
        query = text("select state, count(*) from outbox where consumer = :name and kind = :kind group by 1")
        return {state: count for state, count in connection.execute(query, {"name": RAISE_ALERTS.name, "kind": kind})}


def used(statements: list[tuple[str, int]], what: Callable[[], object]) -> tuple[int, int]:
    """(statements that write an alert, other statements)."""
    statements.clear()
    what()
    own = sum(statement.startswith("INSERT INTO alerts (alert_id") for statement, _ in statements)
    return own, len(statements) - own


def test_the_statements_of_a_run_grow_with_its_batches(consumer, statements):
    """Messages are delivered, and requests skipped: the webhook's connection is not defined."""
    raise_alerts(consumer, 1)
    with begin() as connection:
        # The first rows of an undefined connection wait for a second lookup; these are later rows.
        connection.execute(text("update outbox_routes set undefined_since = now() - interval '1 hour'"))
    others = {}
    for batches in (1, 2, 4):
        number = batches * BATCH
        own, others[batches] = used(statements, partial(raise_alerts, consumer, number))
        assert own == number
    assert others[2] - others[1] <= OF_A_BATCH
    assert others[4] - others[2] <= 2 * OF_A_BATCH
    assert states("message") == {"delivered": 1 + 7 * BATCH}
    assert states("request") == {"pending": 1, "skipped": 7 * BATCH}


def test_the_statements_of_a_delivery_grow_with_its_batches(consumer, statements, make_receiver, monkeypatch):
    """The Dag `deliver_outbox` delivers rows that tasks have left."""
    server, _ = make_receiver(WEBHOOK_CONN_ID)
    others = {}
    for batches in (1, 2, 4):
        with monkeypatch.context() as patch:
            patch.setattr(OwnDelivery, "deliver", lambda *_, **__: None)
            raise_alerts(consumer, batches * BATCH)
        make_all_due(replace(consumer, name=RAISE_ALERTS.name))
        _, others[batches] = used(statements, partial(deliver_due, [RAISE_ALERTS]))
    assert others[2] - others[1] <= OF_A_BATCH
    assert others[4] - others[2] <= 2 * OF_A_BATCH
    assert len(server.seen) == 7 * BATCH
    assert states("message") == states("request") == {"delivered": 7 * BATCH}
