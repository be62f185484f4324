"""A message's trace headers travel on: with what its effect sends, and with its dead letter and its replay."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from include.streams.contracts import Registry
from include.streams.contracts.repairs import Repairs
from include.streams.kafka import replay as replaying
from include.streams.kafka import tasks
from include.streams.kafka.messages import Message
from include.streams.operations import outbox
from tests.integration.kafka import conftest
from tests.integration.kafka.conftest import deliver_now, order, read_all
from tests.integration.kafka.test_handling import receiver

__all__ = ["receiver"]
pytestmark = pytest.mark.integration

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FIRST, SECOND = (f"00-{TRACE}-{span * 16}-01" for span in "12")
STATE = b"vendor=1"
ANSWERS: dict[str, Any] = {}


def announce(connection, message: Message) -> None:
    """Writes a message and a request, as effects do."""
    conftest.record_effect(connection, message)
    consumer, topic = ANSWERS[message.topic]
    outbox.add_message(connection, consumer=consumer, topic=topic, event=message.event)
    outbox.add_request(connection, consumer=consumer, conn_id="test_webhook", payload={"number": message.event.number})


def traced(record) -> dict[str, bytes | None]:
    return {name: value for name, value in record.headers() or [] if name.startswith("trace")}


def test_messages_and_requests_of_an_effect_carry_the_headers(make_topic, make_consumer, send, receiver):
    topic, answers = make_topic(), make_topic()
    consumer = make_consumer(topic)
    object.__setattr__(consumer, "effect", f"{__name__}:announce")
    ANSWERS[topic.name] = (consumer.name, answers)
    send(topic, order("a"), headers=[("traceparent", FIRST.encode()), ("tracestate", STATE)])
    send(topic, order("b"), headers=[("traceparent", SECOND.encode())])
    send(topic, order("c"), headers=[("traceparent", b"00-abc\r\nX-Injected: 1"), ("tracestate", STATE)])
    send(topic, order("d"))

    with TracerProvider().get_tracer(__name__).start_as_current_span("task") as span:
        tasks.claim_messages(consumer, "run")
    deliver_now(consumer)

    assert [f"{link.context.span_id:016x}" for link in span.links] == ["1" * 16, "2" * 16]  # type: ignore[attr-defined]
    by_number = {answers.parse(record.value()).number: traced(record) for record in read_all_of(answers)}  # type: ignore[attr-defined]
    assert by_number == {
        "a": {"traceparent": FIRST.encode(), "tracestate": STATE},
        "b": {"traceparent": SECOND.encode()},
        "c": {},
        "d": {},
    }
    requests = {
        payload["number"]: {name.lower(): value for name, value in headers.items() if name.lower().startswith("trace")}
        for (_, payload), headers in zip(receiver.seen, receiver.headers, strict=True)
    }
    assert requests == {
        "a": {"traceparent": FIRST, "tracestate": "vendor=1"},
        "b": {"traceparent": SECOND},
        "c": {},
        "d": {},
    }
    assert not any("x-injected" in {name.lower() for name in headers} for headers in receiver.headers)


def read_all_of(topic) -> list:
    return [record for partition in range(topic.partitions) for record in read_all(topic.name, partition)]


def test_a_dead_letter_and_its_replay_keep_the_headers(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    headers = [("traceparent", FIRST.encode()), ("tracestate", STATE)]
    send(topic, order("a").replace(b"number", b"id"), key=b"a", headers=headers)
    tasks.claim_messages(consumer, "run")
    (letter,) = read_all(topic.dead_letter_name)
    assert traced(letter) == dict(headers)

    repairs = Repairs()
    repairs.renamed(topic, {"id": "number"})
    selection = {"topic": topic.name, "limit": 10, "dry_run": False, "again": False}
    topics = Registry(topic)
    replaying.replay(replaying.plan_replay(selection, topics), selection, "replay", topics=topics, repairs=repairs)
    replayed = read_all_of(topic)[-1]
    assert dict(replayed.headers())["replay.count"] == b"1"
    assert traced(replayed) == dict(headers)
