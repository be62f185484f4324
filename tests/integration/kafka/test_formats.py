"""Topics in Avro, Protobuf and JSON Schema, with a real broker and a real schema registry."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Literal

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext

from include.streams import Avro, Contract, Topic, outbox
from include.streams.contracts import Registry
from include.streams.contracts.registering import register_schemas
from include.streams.contracts.repairs import Repairs
from include.streams.formats import JsonSchema, Protobuf, RegistryFormat, RegistryUnavailable, SchemaRefused
from include.streams.formats import registry as registries
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


@pytest.fixture
def client(schema_registry) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": schema_registry.registry.url})


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
    for each in (topic, plain):
        each.codec._writers.clear()
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


class _Slow(BaseHTTPRequestHandler):
    """A registry that answers as the test says."""

    status, seconds, body = 500, 0.0, b"{}"

    def do_GET(self) -> None:
        time.sleep(self.seconds)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "seconds", "body"),
    [
        (500, 0, b"{}"),
        (503, 0, b"<html>"),
        (401, 0, b'{"error_code": 401, "message": "no"}'),
        (404, 0, b"<html>not found</html>"),
        (404, 0, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'),
        (200, 0, b"<html>welcome</html>"),
        (200, 3, b"{}"),
    ],
)
def test_an_answer_that_is_not_definite_makes_no_dead_letter(make_topic, monkeypatch, status, seconds, body):
    topic = make_topic(Avro())
    value = topic.serialize(bought("a"))[1]
    handler = type("Handler", (_Slow,), {"status": status, "seconds": seconds, "body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AIRFLOW_CONN_SCHEMA_REGISTRY", json.dumps({"conn_type": "http", "host": address}))
    monkeypatch.setattr(registries, "TIMEOUT_SECONDS", 1.0)
    registries.registry.cache_clear()
    other = dataclasses.replace(topic, partitions=topic.partitions)
    other.codec._writers.clear()
    try:
        with pytest.raises(RegistryUnavailable, match="gives no answer"):
            other.parse(value)
    finally:
        server.shutdown()
        registries.registry.cache_clear()


def test_a_missing_connection_is_one_clear_sentence(make_topic, monkeypatch):
    topic = make_topic(Avro(conn_id="no_registry"), prepared=False)
    with pytest.raises(RegistryUnavailable, match="the Airflow connection no_registry is not defined"):
        topic.parse(b"\0\0\0\0\1\0")


@pytest.mark.parametrize("place", ["prefix", "header"])
def test_messages_of_the_vendors_serializers_are_read(make_topic, make_consumer, send, client, place):
    def framed(payload: bytes, context, schema_id) -> bytes:
        if place == "prefix":
            return schema_id.id_to_bytes() + payload
        context.headers.append(("__value_schema_id", schema_id.id_to_bytes()))
        return payload

    conf = {"auto.register.schemas": True, "subject.name.strategy.type": "TOPIC", "schema.id.serializer": framed}
    topics = [make_topic(each) for each in FORMATS.values()]
    document = {"version": 1, "number": "vendor", "amount": 3}
    for topic in topics:
        context = SerializationContext(topic.name, MessageField.VALUE, [])
        text = topic.codec.own.text
        if topic.format.kind == "AVRO":
            value = AvroSerializer(client, text, conf=conf)(document, context)
        elif topic.format.kind == "JSON":
            value = JSONSerializer(text, client, conf=conf)(document, context)
        else:
            make, _ = topic.codec.own_writer._type((0,))
            value = ProtobufSerializer(make, client, {**conf, "use.deprecated.format": False})(
                make(**document), context
            )
        send(topic, value, headers=context.headers)
    consumer = make_consumer(*topics)
    whole_run(consumer, "run")
    assert [numbers(topic) for topic in topics] == [["vendor"]] * 3


def record(*fields: dict, name: str = "Order") -> str:
    return json.dumps({"type": "record", "name": name, "fields": list(fields)})


VERSION, NUMBER = {"name": "version", "type": "int"}, {"name": "number", "type": "string"}
AMOUNT = {"name": "amount", "type": "long"}


def avro_value(client: SchemaRegistryClient, topic: Topic, schema: str, document: dict) -> bytes:
    conf = {"auto.register.schemas": True, "subject.name.strategy.type": "TOPIC"}
    return AvroSerializer(client, schema, conf=conf)(document, SerializationContext(topic.name, MessageField.VALUE))


def test_messages_of_other_versions_of_a_schema_are_resolved_by_avros_rules(
    make_topic, make_consumer, send, client, tmp_path
):
    path = tmp_path / "order.avsc"
    path.write_text(record(VERSION, NUMBER, {**AMOUNT, "default": 5, "aliases": ["price"]}))
    topic = make_topic(Avro(schema=path))
    consumer = make_consumer(topic)
    base = {"version": 1, "number": "n"}
    writers = {
        "added": (record(VERSION, NUMBER), {}),  # the topic has a new field with a default
        "removed": (record(VERSION, NUMBER, AMOUNT, {"name": "note", "type": "string"}), {"amount": 2, "note": "x"}),
        "renamed": (record(VERSION, NUMBER, {"name": "price", "type": "long"}), {"price": 3}),
        "widened": (record(VERSION, NUMBER, {"name": "amount", "type": "int"}), {"amount": 4}),
        "narrowed": (record(VERSION, NUMBER, {"name": "amount", "type": "double"}), {"amount": 4.0}),
        "lacking": (record(VERSION, AMOUNT), {"amount": 1}),
    }
    for number, (schema, fields) in writers.items():
        document = {**base, "number": number, **fields}
        send(topic, avro_value(client, topic, schema, {name: value for name, value in document.items()}))
    whole_run(consumer, "run")
    assert numbers(topic) == ["added", "removed", "renamed", "widened"]
    assert [reason for reason, _ in reasons(topic)] == ["foreign_schema"] * 2
    amounts = [topic.parse(record_.value()).amount for record_ in read_all(topic.name)[:4]]
    assert amounts == [5, 2, 3, 4]


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
def test_dead_letters_are_repaired_as_text_and_replayed_in_their_format(
    make_topic, make_consumer, send, client, format_, tmp_path
):
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


class Order2(Contract):
    contract_name = "Order"
    version: Literal[1]
    number: str
    amount: int
    currency: str

    @property
    def event_id(self) -> str:
        return self.number


Order2.__name__ = "Order"


@pytest.mark.parametrize(
    "format_", [Avro(compatibility="FULL"), JsonSchema(compatibility="FULL")], ids=["avro", "json"]
)
def test_a_schema_that_breaks_the_subjects_rule_is_refused_before_anything_is_produced(make_topic, format_):
    topic = make_topic(format_)
    changed = dataclasses.replace(topic, contract=Order2)
    with pytest.raises(SchemaRefused, match="compatibility is FULL") as refused:
        register_schemas([changed])
    if format_.kind == "AVRO":
        assert "reader_field_missing_default_value" in str(refused.value)
    with pytest.raises(SchemaRefused):
        changed.serialize(Order2(version=1, number="a", amount=1, currency="EUR"))


def test_preparing_names_what_it_registers_once(make_topic):
    topic = make_topic(Avro(compatibility="BACKWARD", subject="topic_record"), prepared=False)
    subject = f"{topic.name}-Order"
    first, second = register_schemas([topic]), register_schemas([topic])
    assert first[0] == f"subject {subject}: compatibility BACKWARD"
    assert first[1].startswith(f"subject {subject}: schema of topic {topic.name} registered, id ")
    assert second == []


def test_a_schema_that_somebody_else_registers_must_be_there(make_topic, client):
    topic = make_topic(Avro(registers=False), prepared=False)
    with pytest.raises(SchemaRefused, match=f"subject {topic.name}-value does not have the schema"):
        register_schemas([topic])
    client.register_schema(f"{topic.name}-value", Schema(topic.codec.own.text, "AVRO"))
    assert register_schemas([topic]) == []


@EVERY_FORMAT
def test_a_file_of_json_is_sent_in_the_topics_format(make_topic, make_consumer, format_):
    topic = make_topic(format_)
    messages = messages_of(Registry(topic), topic.name, values_in(order("a") + b"\n" + order("b")))
    send_messages(topic.name, messages, partition=0)
    consumer = make_consumer(topic)
    whole_run(consumer, "run")
    assert numbers(topic) == ["a", "b"]
    assert [record_.key() for record_ in read_all(topic.name)] == [b"a", b"b"]


def test_a_schema_by_its_globally_unique_id_is_looked_up_for_the_topic(make_topic):
    topic = make_topic(Avro())
    header = SchemaId("AVRO", None, str(uuid.uuid4())).guid_to_bytes()
    # This registry has no such ids: the answer is not definite.
    with pytest.raises(RegistryUnavailable):
        topic.parse(b"\2", [("__value_schema_id", header)])
