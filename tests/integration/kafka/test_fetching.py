"""Reading a range of a long backlog fetches few of the messages after it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from confluent_kafka import Consumer

from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.offsets import GroupOffsets, OffsetRange
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader
from tests.clients import producer_to
from tests.integration.kafka.conftest import order

pytestmark = pytest.mark.integration

BACKLOG, RANGE = 30_000, 2_000


class Fetched:
    """The bytes and fetch requests of a client, from the client's own statistics."""

    def __init__(self) -> None:
        self._said: list[tuple[int, int]] = []
        self.settings = {**CONSUMER_SETTINGS, "statistics.interval.ms": 100, "stats_cb": self._note}

    def _note(self, text: str) -> None:
        brokers = json.loads(text)["brokers"].values()
        received = sum(broker["rxbytes"] for broker in brokers)
        self._said.append((received, sum(broker["req"].get("Fetch", 0) for broker in brokers)))

    def now(self, consumer: Consumer) -> tuple[int, int]:
        """(bytes received, fetch requests); waits for the client's next statistics, which it reports at a poll."""
        # While a batch is handled, nobody polls, so the statistics wait in the client's queue.
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert consumer.poll(0.1) is None
        return self._said[-1]


@pytest.fixture
def backlog(make_topic) -> str:
    topic = make_topic(partitions=1)
    # Each record is a separate batch, as from a producer that sends one record at a time.
    settings: dict[str, Any] = {**producer_config(client_config()), "batch.num.messages": 1}
    producer = producer_to(settings, topic.name)
    for number in range(BACKLOG):
        producer.produce(topic.name, value=order(number), partition=0)
        if number % 10_000 == 0:
            assert producer.flush(60) == 0
    assert producer.flush(60) == 0
    return topic.name


def test_reading_a_range_fetches_few_later_messages(backlog):
    fetched = Fetched()
    with GroupOffsets("reads", **fetched.settings) as group:
        (identity,) = group.fetch_topic_ids([backlog]).values()
        reader = RangeReader(group.consumer)
        for start in (0, RANGE):
            batches = reader.read(OffsetRange(backlog, identity, 0, start, start + RANGE))
            read = [message.offset for batch in batches for message in batch]
            assert read == list(range(start, start + RANGE))
            # As during the delivery of the last batch's effects: the client fetches nothing more.
            _, before = fetched.now(group.consumer)
            received, asked = fetched.now(group.consumer)
            assert asked == before
        # A record of this backlog takes about 115 bytes.
        assert received < 4 * 2 * RANGE * 115
