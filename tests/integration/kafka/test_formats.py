"""Topics in Avro, Protobuf and JSON Schema, with a real broker and a real schema registry."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable

import pytest

from include.streams import Avro, Topic, outbox
from include.streams.contracts import Registry
from include.streams.contracts.registering import register_schemas
from include.streams.contracts.repairs import Repairs
from include.streams.formats import JsonSchema, Protobuf, RegistryFormat, RegistryUnavailable
from include.streams.formats import registry as registries
from include.streams.formats.codecs import codec_of
from include.streams.kafka import tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.handling import HandlingFailed
from include.streams.kafka.sending import messages_of, values_in
from include.streams.kafka.sending import send as send_messages
from include.streams.operations.database import begin
from tests.integration.kafka import test_replay
from tests.integration.kafka.conftest import (
    Order,
    deliver_now,
    numbers,
    open_claims,
    order,
    read_all,
    whole_run,
)
from tests.integration.kafka.test_handling import outcomes

pytestmark = pytest.mark.integration

FORMATS = {"avro": Avro(), "protobuf": Protobuf(), "json_schema": JsonSchema()}
EVERY_FORMAT = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def make_topic(make_topic, schema_registry) -> Callable[..., Topic]:
    """A topic of orders in a format, prepared as `prepare_services` does."""
    registries.registry.cache_clear()

    def make(declared: RegistryFormat, *, prepared: bool = True, **changes) -> Topic:
        topic = make_topic(format=declared, **changes)
        if prepared:
            register_schemas([topic])
        return topic

    return make


def bought(number: str, amount: int = 1) -> Order:
    return Order(version=1, number=number, amount=amount)


def reasons(topic: Topic) -> list[tuple[str, str]]:
    """(reason, detail) of each dead letter of the topic."""
    headers = [dict(letter.headers()) for letter in read_all(topic.dead_letter_name)]
    return [(each["dlq.reason"].decode(), each["dlq.detail"].decode()) for each in headers]


@EVERY_FORMAT
@pytest.mark.parametrize("place", ["prefix", "header"])
def test_events_of_an_effect_are_read_by_the_next_consumer(make_topic, make_consumer, format_, place):
    topic = make_topic(dataclasses.replace(format_, schema_id_in=place))
    consumer = make_consumer(topic)
    with begin() as connection:
        for number in ("a", "b"):
            outbox.add_message(connection, consumer=consumer.name, topic=topic, event=bought(number, 7))
    assert deliver_now(consumer) == 2
    whole_run(consumer, "run")
    assert (sorted(numbers(topic)), outcomes(consumer)) == (["a", "b"], {"handled": 2})


@EVERY_FORMAT
def test_messages_that_cannot_be_decoded_are_dead_letters_with_their_reasons(make_topic, make_consumer, send, format_):
    topic, other = make_topic(format_), make_topic(Avro(namespace="other"))
    consumer = make_consumer(topic)
    good = topic.serialize(bought("good"))[1]
    unknown = good[:1] + (2_000_000).to_bytes(4, "big") + good[5:]
    foreign = other.serialize(bought("foreign"))[1]
    bad = [b"", b"\0\0\0", order("plain"), unknown, foreign, good[:-3]]
    send(topic, good, *bad, None)
    whole_run(consumer, "run")
    assert (numbers(topic), outcomes(consumer)) == (["good"], {"handled": 1, "dead_letter": 7})
    found = reasons(topic)
    last = "not_json" if format_.kind == "JSON" else "not_decodable"
    assert [reason for reason, _ in found] == [
        "no_schema_id", "no_schema_id", "no_schema_id", "unknown_schema", "foreign_schema", last, "tombstone"
    ]  # fmt: skip
    assert found[3][1] == "schema id 2000000: the registry does not know it"
    # The bytes are kept as they were.
    assert [letter.value() for letter in read_all(topic.dead_letter_name)] == [*bad, None]


def test_a_registry_that_is_away_delays_messages_and_makes_no_dead_letter(
    make_topic, make_consumer, send, schema_registry
):
    topic, plain = make_topic(Avro()), make_topic(Avro())
    consumer = make_consumer(topic, plain)
    values = [topic.serialize(bought(f"n{number}"))[1] for number in range(20)]
    send(topic, *values)
    send(plain, plain.serialize(bought("plain"))[1])
    pids = schema_registry.pids("registry")
    schema_registry.stop("registry")
    assert pids
    # A new process has no schemas.
    registries.registry.cache_clear()
    codec_of.cache_clear()
    chunks = tasks.claim_messages(consumer, "run")
    for _ in range(2):
        with pytest.raises(HandlingFailed, match="the schema registry gives no answer"):
            tasks.handle_chunk(consumer, chunks[0], "run")
    assert (outcomes(consumer), reasons(topic), reasons(plain)) == ({}, [], [])
    schema_registry.start("registry")
    time.sleep(registries.AWAY_SECONDS)
    for chunk in chunks:
        tasks.handle_chunk(consumer, chunk, "run")
    assert outcomes(consumer) == {"handled": 21}
    assert open_claims(consumer) == 0


def test_each_message_has_its_run_and_its_event_in_one_run_per_message(make_topic, make_consumer, send):
    topic = make_topic(Avro())
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, topic.serialize(bought("a"))[1], b"no schema", topic.serialize(bought("b"))[1])
    keys = tasks.claim_partition_keys(consumer, "run")
    assert [tasks.read_message(consumer, key).event.number for key in keys] == ["a", "b"]
    for key in keys:
        tasks.handle_message(consumer, key, key)
    assert outcomes(consumer) == {"handled": 2, "dead_letter": 1}


def test_an_outage_delays_the_keys_of_the_topic_that_needs_the_registry_only(
    make_topic, make_consumer, send, monkeypatch
):
    topic = make_topic(Avro())
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, topic.serialize(bought("a"))[1])
    away = lambda *_: (_ for _ in ()).throw(RegistryUnavailable("the schema registry gives no answer"))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(topic.codec, "writer_of", away)
        with pytest.raises(RegistryUnavailable):
            tasks.claim_partition_keys(consumer, "run")
    assert len(tasks.claim_partition_keys(consumer, "run")) == 1


@EVERY_FORMAT
def test_dead_letters_are_repaired_as_text_and_replayed_in_their_format(make_topic, make_consumer, send, format_):
    topic = test_replay.declare(make_topic(format_))
    consumer = make_consumer(topic)
    # A producer that forgot the format, and an amount that the effect cannot take: only the first has a repair.
    send(topic, test_replay.renamed("forgotten"), order("plain"))
    whole_run(consumer, "run")
    assert outcomes(consumer) == {"dead_letter": 2}
    repairs = Repairs()
    repairs.renamed(topic, {"id": "number"})

    @repairs.repair(topic)
    def encoded(value: bytes) -> bytes | None:
        return json.dumps({**json.loads(value), "amount": 9}).encode()

    report = test_replay.read(test_replay.plan(topic, dry_run=False), repairs)
    assert test_replay.counts(report) == {"replayed": 2}
    whole_run(consumer, "again")
    assert sorted(numbers(topic)) == ["forgotten", "plain"]
    assert {topic.parse(each.value(), each.headers()).version for each in read_all(topic.name)[2:]} == {1}


@EVERY_FORMAT
def test_a_file_of_json_is_sent_in_the_topics_format(make_topic, make_consumer, format_):
    topic = make_topic(format_)
    messages = messages_of(Registry(topic), topic.name, values_in(order("a") + b"\n" + order("b")))
    send_messages(topic.name, messages, partition=0)
    consumer = make_consumer(topic)
    whole_run(consumer, "run")
    assert numbers(topic) == ["a", "b"]
    assert [record_.key() for record_ in read_all(topic.name)] == [b"a", b"b"]
