"""A run with large records holds only a few of them in memory at a time."""

from __future__ import annotations

import json

import pytest

from include.streams.kafka.connection import client_config, producer_config
from include.streams.landing.planning import claim_landed
from tests import forks
from tests.clients import producer_to
from tests.integration.kafka.conftest import order, read_all
from tests.integration.landing.test_run import land

pytestmark = pytest.mark.integration

SIZE = 4_000_000
# Of 240 MB in total: room for some copies of a few records.
CONFLICTS, LIMIT_MB = 60, 450
# As a query's result, their texts would exceed the limit of DuckDB's memory.
JUNK = 100
PART = """
import json, resource
from datetime import timedelta
from include.streams.contracts import Topic
from include.streams.landing.clean import commit_clean
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.validation import validate_unit
from tests.integration.kafka.conftest import Order

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

of = Topic(topic, Order, key="number", partitions=1, retention=timedelta(days=1), landed=True, max_bytes=max_bytes)
lane = LandingConsumer(name=name, topic=of)
before = peak_mb()
found = validate_unit(lane, given, "run") if part == "validate" else commit_clean(lane, [given], "run")
open(result, "w").write(json.dumps({**found, "grown": peak_mb() - before}))
"""


@pytest.fixture
def large(landed_topic, lane, tmp_path):
    """A maker of a lane whose topic has large records; returns what does a part of its run in a process of its own."""

    def make(values: list[bytes]):
        topic = landed_topic(partitions=1, max_bytes=SIZE + 1_000)
        consumer = lane(topic, min_messages_per_unit=10_000)
        config = {**producer_config(client_config()), "compression.type": "zstd"}
        producer = producer_to(config, topic.name)
        for first in range(0, len(values), 10):
            padded = [value + b" " * (SIZE - len(value)) for value in values[first : first + 10]]
            for value in padded:
                producer.produce(topic.name, value, key=b"k", partition=0)
                assert producer.flush(60) == 0
            land(topic, 0, first, *padded)
        (unit,) = claim_landed(consumer, "run")

        def process(part: str, given=unit):
            result = tmp_path / part
            arguments = part, consumer.name, topic.name, given, SIZE + 1_000, str(result)
            code = f"part, name, topic, given, max_bytes, result = {arguments!r}\n{PART}"
            assert forks.run(code, 300) == 0
            return json.loads(result.read_text())

        return topic, process

    return make


def test_large_records_that_break_their_contract_become_dead_letters(large):
    topic, process = large([b"junk"] * JUNK)
    found = process("validate")
    assert (found["good"], found["dead_lettered"]) == (0, JUNK)
    assert len(read_all(topic.dead_letter_name)) == JUNK


def test_large_records_in_conflict_are_in_memory_a_few_at_a_time(large):
    topic, process = large([order(1, amount) for amount in range(CONFLICTS)])
    found = process("commit", process("validate"))
    assert (found["clean"], found["dead_lettered"]) == (1, CONFLICTS - 1)
    assert len(read_all(topic.dead_letter_name)) == CONFLICTS - 1
    assert found["grown"] < LIMIT_MB
