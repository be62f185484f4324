"""Records of finished batches are delivered while later batches are handled, and delay the messages only briefly."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.delivery import BETWEEN_SECONDS
from include.streams.operations import outbox_delivery
from tests.integration.kafka.conftest import order
from tests.integration.kafka.test_outbox_delivery import ANNOUNCED, announce, announcing, make_receiver, states

pytestmark = pytest.mark.integration
__all__ = ["announcing", "make_receiver"]

HERE = "tests.integration.kafka.test_early_delivery"
MESSAGES = 1_200
seen: list[dict[str, int]] = []


def look_and_announce(connection, message) -> None:
    """The effect; at the last message, it also notes the states of the earlier rows."""
    if message.offset == MESSAGES - 1:
        name, _, _ = ANNOUNCED[message.topic]
        query = text("select kind || ' ' || state, count(*) from outbox where consumer = :name group by 1")
        seen.append({kind: number for kind, number in connection.execute(query, {"name": name})})
    announce(connection, message)


def test_records_of_finished_batches_are_delivered_before_the_chunk_ends(announcing, make_topic, make_receiver, send):
    seen.clear()
    results = make_topic()
    _, conn_id = make_receiver()
    topic, consumer = announcing(results, [conn_id], chunk_size=MESSAGES, max_messages_per_claim=MESSAGES)
    send(topic, *(order(str(n)) for n in range(MESSAGES)))
    assert tasks.claim_messages(replace(consumer, effect=f"{HERE}:look_and_announce"), "run") == []
    (before_the_last_batch,) = seen
    assert before_the_last_batch["message delivered"] == 1_000
    assert before_the_last_batch["request pending"] == 1_000, "requests wait for the end of the chunk"
    assert set(states(consumer)) == {"delivered"}


def test_slow_deliveries_delay_a_chunk_by_two_seconds_in_total(announcing, make_topic, send, monkeypatch):
    asked: list[float] = []

    def slow(*_: object, seconds: float) -> int:
        asked.append(seconds)
        time.sleep(min(seconds, 1.5))
        return 0

    monkeypatch.setattr(outbox_delivery, "deliver_written", slow)
    topic, consumer = announcing(make_topic(), chunk_size=2_000, max_messages_per_claim=2_000)
    send(topic, *(order(str(n)) for n in range(2_000)))
    assert tasks.claim_messages(consumer, "run") == []
    between, at_the_end = asked[:-1], asked[-1]
    assert len(between) == 2, "the budget of the chunk is used up after two batches"
    assert between[0] == BETWEEN_SECONDS
    assert between[1] <= BETWEEN_SECONDS - 1.5
    assert at_the_end > BETWEEN_SECONDS
