"""What a StatsD collector gets of a run, and of the checks of the Dag `maintain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.watch import check_consumer
from include.streams.landing.gauges import show_gauges
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from tests.collector import Listener, listening
from tests.integration.kafka.conftest import numbers, order

pytestmark = pytest.mark.integration


@pytest.fixture
def collector() -> Iterator[Listener]:
    with listening() as listener:
        yield listener


def named(name: str, *values: Any) -> str:
    return ".".join([name, *(str(value).replace(".", "__") for value in values)])


def test_a_run_counts_outcomes_reasons_and_lag(collector: Listener, make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a"), order("b"), order("a"), order("a", 2), b"bad", order("never", -1), order("later", -2))
    check_consumer(consumer)
    waiting = collector.drain()
    assert waiting[named("streams.consumer.lag", consumer.name, topic.name)] == ["7|g"]
    (age,) = waiting[named("streams.consumer.oldest_message.age", consumer.name, topic.name)]
    assert float(age.removesuffix("|g")) >= 0

    chunks = tasks.claim_messages(consumer, "run")
    assert len(chunks) == 1, "an effect has failed, so the chunk is returned"
    got = collector.drain()
    of = (consumer.name, topic.name)
    assert got[named("streams.messages", *of, "handled")] == ["1|c", "1|c"] or got[
        named("streams.messages", *of, "handled")
    ] == ["2|c"]
    assert got[named("streams.messages", *of, "duplicate")] == ["1|c"]
    assert got[named("streams.messages", *of, "dead_letter")] == ["3|c"]
    reasons = {
        name.rpartition(".")[2]: value for name, value in got.items() if name.startswith("streams.dead_letters.")
    }
    assert reasons == {"not_json": ["1|c"], "conflict": ["1|c"], "rejected": ["1|c"]}
    assert got[named("streams.effects.failed", *of)] == ["1|c"]
    assert got[named("messaging.client.consumed.messages", *of)] == ["7|c"]
    assert got[named("messaging.process.duration", *of)]
    assert got[named("streams.consumer.lag", *of)] == ["0|g"]
    assert sorted(numbers(topic)) == ["a", "b"]

    # A repeated chunk records nothing again, so its messages are not counted again.
    with pytest.raises(Exception, match="failed"):
        tasks.handle_chunk(consumer, chunks[0], "run")
    assert not [name for name in collector.drain() if name.startswith(("streams.messages.", "streams.dead_letters."))]


def test_gauges_are_sent_for_what_is_declared_also_with_zero(collector: Listener, make_topic, make_consumer, send):
    topic = make_topic()
    consumer, idle = make_consumer(topic), make_consumer(topic)
    send(topic, order("later", -2))
    tasks.claim_messages(consumer, "run")
    with begin() as connection:
        open_alarm(connection, consumer.name, AlarmKind.lag, "a test")
        connection.execute(
            text(
                "insert into outbox (consumer, kind, destination, body, created_at, due_at) values "
                "(:name, 'message', 'nowhere', 'x', now() - interval '1 hour', now() + interval '1 day')"
            ),
            {"name": consumer.name},
        )
    collector.drain()
    try:
        show_gauges([consumer.name, idle.name], [*AlarmKind], [topic.name])
    finally:
        with begin() as connection:
            close_alarm(connection, consumer.name, AlarmKind.lag)
            connection.execute(text("delete from outbox where consumer = :name"), {"name": consumer.name})
    got = {name: float(values[-1].removesuffix("|g")) for name, values in collector.drain().items()}
    assert got[named("streams.consumer.open_claims", consumer.name)] == 1
    assert got[named("streams.consumer.oldest_claim.age", consumer.name)] > 0
    assert got[named("streams.consumer.open_claims", idle.name)] == 0
    assert got[named("streams.outbox.rows", consumer.name, "pending")] == 1
    assert 3600 <= got[named("streams.outbox.oldest.age", consumer.name)] < 3700
    assert got[named("streams.outbox.rows", idle.name, "failed")] == 0
    assert got[named("streams.alarms.open", "lag")] >= 1
    assert {named("streams.alarms.open", kind) for kind in AlarmKind} <= set(got)
    assert got[named("streams.landing.missing_offsets", topic.name)] == 0


def test_gauges_that_cannot_be_read_raise_nothing(collector: Listener, operations, monkeypatch, caplog):
    def away():
        raise OSError("no database")

    monkeypatch.setattr("include.streams.landing.gauges.begin", away)
    show_gauges(["c"], ["lag"], ["t"])
    assert collector.drain() == {}
    assert "no gauges are sent: OSError: no database" in caplog.text
