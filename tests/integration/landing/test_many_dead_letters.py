"""Very many dead letters: their unit takes little memory, and its time does not grow with their square."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from include.streams.kafka.dead_letters import DeadLetter
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.landing.dead_letters import publish_dead_letters
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table, topic_id
from include.streams.operations.database import begin
from tests import forks
from tests.integration.landing.test_run import consumer, land, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

LETTERS = 40_000
# As a list in the query, they would take some 450 MB.
LIMIT_MB = 250
VALIDATE = """
import resource
from datetime import timedelta
from include.streams.contracts import Topic
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.validation import validate_unit
from tests.integration.landing.test_run import Sale

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

of = Topic(topic, Sale, key="number", partitions=2, retention=timedelta(days=1), landed=True, event_time="sold_at")
before = peak_mb()
found = validate_unit(LandingConsumer(name=name, topic=of), unit, "run-1")
grown = peak_mb() - before
assert (found["good"], found["dead_lettered"]) == (1, letters), found
open(result, "w").write(str(grown))
"""


def test_recorded_dead_letters_take_little_memory(consumer, send, tmp_path):
    lane = consumer()
    values = [*[b"no json"] * LETTERS, sale(1)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    (unit,) = claim_landed(lane, "run-1")
    with begin() as connection:
        earlier = text(
            'insert into inbox (consumer, topic_id, partition, "offset", topic, contract, outcome, run_id) '
            "select :name, :id, 0, n, :topic, 'Sale', 'dead_letter', 'run-1' from generate_series(0, :last) n"
        )
        of = {"name": lane.name, "id": topic_id(load_landing_table(lane.topic)), "topic": lane.topic.name}
        connection.execute(earlier, {**of, "last": LETTERS - 1})
    result = tmp_path / "grown"
    arguments = lane.name, lane.topic.name, unit, LETTERS, str(result)
    assert forks.run(f"name, topic, unit, letters, result = {arguments!r}\n{VALIDATE}", 300) == 0
    assert int(result.read_text()) < LIMIT_MB


def test_waiting_dead_letters_are_not_compared_with_each_other(consumer, admin, monkeypatch):
    lane = consumer()
    admin.delete_topics([lane.topic.dead_letter_name])[lane.topic.dead_letter_name].result(30)
    compared = []
    monkeypatch.setattr(DeadLetter, "__eq__", lambda self, other: compared.append(1) or self is other)

    def bad(offset: int) -> DeadLetter:
        message = Message(
            topic=lane.topic.name, topic_id="id", partition=0, offset=offset, timestamp=None, key=None, value=b"",
            headers=(),
        )  # fmt: skip
        return DeadLetter(message, "not_json", "")

    def waiting() -> int:
        with begin() as connection:
            query = text("select count(*) from outbox where consumer = :name")
            return connection.scalar(query, {"name": lane.name}) or 0

    with AcknowledgedProducer(lane.conn_id) as producer:
        publish_dead_letters(lane, [bad(0)], run_id="run-1", producer=producer)
        assert waiting() == 1
        compared.clear()
        publish_dead_letters(lane, [bad(n) for n in range(200)], run_id="run-1", producer=producer)
    assert waiting() == 200, "the one on record is not held again"
    assert compared == []
