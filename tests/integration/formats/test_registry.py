"""Topics in Avro, Protobuf and JSON Schema against a real schema registry."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
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

from include.streams import Avro, Contract, ContractViolation, Topic
from include.streams.contracts.registering import register_schemas
from include.streams.contracts.repairs import Repairs
from include.streams.formats import JsonSchema, Protobuf, RegistryFormat, RegistryUnavailable, SchemaRefused
from include.streams.formats import registry as registries
from include.streams.formats.codecs import codec_of
from tests.integration.kafka.conftest import Order, order

pytestmark = pytest.mark.integration

FORMATS = {"avro": Avro(), "protobuf": Protobuf(), "json_schema": JsonSchema()}
EVERY_FORMAT = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def make_topic(schema_registry) -> Callable[..., Topic]:
    """A topic of orders in a format, prepared as `prepare_services` does; it needs no broker."""
    registries.registry.cache_clear()

    def make(declared: RegistryFormat, *, prepared: bool = True) -> Topic:
        name = f"orders.{uuid.uuid4().hex[:8]}"
        topic = Topic(name, Order, key="number", partitions=1, retention=timedelta(days=1), format=declared)
        if prepared:
            register_schemas([topic])
        return topic

    return make


@pytest.fixture
def client(schema_registry) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": schema_registry.registry.url})


def bought(number: str, amount: int = 1) -> Order:
    return Order(version=1, number=number, amount=amount)


def reason_of(topic: Topic, value: bytes, headers=()) -> str:
    with pytest.raises(ContractViolation) as caught:
        topic.parse(value, headers)
    return caught.value.reason


def forget_schemas() -> None:
    """Be a new process: without schemas and without a client."""
    codec_of.cache_clear()
    registries.registry.cache_clear()


@EVERY_FORMAT
@pytest.mark.parametrize("place", ["prefix", "header"])
def test_a_new_process_reads_what_another_has_written(make_topic, format_, place):
    topic = make_topic(dataclasses.replace(format_, schema_id_in=place))
    _, value, headers = topic.outgoing(bought("a", 7))
    assert bool(headers) == (place == "header")
    forget_schemas()
    assert topic.parse(value, headers) == bought("a", 7)
    if headers:
        with pytest.raises(TypeError, match="use `outgoing`"):
            topic.serialize(bought("a"))


@EVERY_FORMAT
def test_a_message_that_cannot_be_decoded_has_a_reason_of_its_own(make_topic, format_):
    topic, other = make_topic(format_), make_topic(Avro(namespace="other"))
    good = topic.serialize(bought("good"))[1]
    unknown = good[:1] + (2_000_000).to_bytes(4, "big") + good[5:]
    assert [reason_of(topic, value) for value in (b"", b"\0\0\0", order("plain"))] == ["no_schema_id"] * 3
    with pytest.raises(ContractViolation, match="unknown_schema: schema id 2000000: the registry does not know it"):
        topic.parse(unknown)
    assert reason_of(topic, other.serialize(bought("foreign"))[1]) == "foreign_schema"
    assert reason_of(topic, good[:-3]) == ("not_json" if format_.kind == "JSON" else "not_decodable")


@EVERY_FORMAT
def test_a_repair_gets_the_text_and_its_result_has_the_messages_format(make_topic, format_):
    topic = make_topic(format_)
    repairs = Repairs()

    @repairs.repair(topic)
    def doubled(value: bytes) -> bytes | None:
        return json.dumps({**json.loads(value), "amount": 8}).encode()

    valid = topic.serialize(bought("a", 4))[1]
    assert repairs.apply(topic, valid).repairs == ()
    # A producer that forgot the format.
    repaired = repairs.apply(topic, order("plain", "4"))
    assert (repaired.event, repaired.repairs) == (bought("plain", 8), ("doubled",))
    assert topic.parse(repaired.value, repaired.headers_of([])) == bought("plain", 8)


def test_a_registry_that_is_away_is_no_reason_for_a_dead_letter(make_topic, schema_registry):
    topic = make_topic(Avro())
    value = topic.serialize(bought("a"))[1]
    assert topic.parse(value) == bought("a")
    schema_registry.stop("registry")
    try:
        # A process keeps the schemas that it has read.
        assert topic.parse(value) == bought("a")
        forget_schemas()
        begin = time.monotonic()
        for _ in range(20):
            with pytest.raises(RegistryUnavailable, match="gives no answer"):
                topic.parse(value)
        assert time.monotonic() - begin < 4 * registries.TIMEOUT_SECONDS
    finally:
        schema_registry.start("registry")
    forget_schemas()
    assert topic.parse(value) == bought("a")


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
    forget_schemas()
    try:
        with pytest.raises(RegistryUnavailable, match="gives no answer"):
            topic.parse(value)
    finally:
        server.shutdown()
        registries.registry.cache_clear()


def test_a_missing_connection_is_one_clear_sentence(make_topic, monkeypatch):
    topic = make_topic(Avro(conn_id="no_registry"), prepared=False)
    with pytest.raises(RegistryUnavailable, match="the Airflow connection no_registry is not defined"):
        topic.parse(b"\0\0\0\0\1\0")


@pytest.mark.parametrize("place", ["prefix", "header"])
def test_messages_of_the_vendors_serializers_are_read(make_topic, client, place):
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
        assert topic.parse(value, context.headers) == bought("vendor", 3)


def record(*fields: dict, name: str = "Order") -> str:
    return json.dumps({"type": "record", "name": name, "fields": list(fields)})


VERSION, NUMBER = {"name": "version", "type": "int"}, {"name": "number", "type": "string"}
AMOUNT = {"name": "amount", "type": "long"}


def avro_value(client: SchemaRegistryClient, topic: Topic, schema: str, document: dict) -> bytes:
    conf = {"auto.register.schemas": True, "subject.name.strategy.type": "TOPIC"}
    return AvroSerializer(client, schema, conf=conf)(document, SerializationContext(topic.name, MessageField.VALUE))


def test_messages_of_other_versions_of_a_schema_are_resolved_by_avros_rules(make_topic, client, tmp_path):
    path = tmp_path / "order.avsc"
    path.write_text(record(VERSION, NUMBER, {**AMOUNT, "default": 5, "aliases": ["price"]}))
    topic = make_topic(Avro(schema=path))
    writers = {
        # The topic has a new field with a default.
        5: (record(VERSION, NUMBER), {}),
        2: (record(VERSION, NUMBER, AMOUNT, {"name": "removed", "type": "string"}), {"amount": 2, "removed": "x"}),
        3: (record(VERSION, NUMBER, {"name": "price", "type": "long"}), {"price": 3}),
        4: (record(VERSION, NUMBER, {"name": "amount", "type": "int"}), {"amount": 4}),
    }
    for amount, (schema, fields) in writers.items():
        value = avro_value(client, topic, schema, {"version": 1, "number": "n", **fields})
        assert topic.parse(value) == bought("n", amount)
    narrowed = (
        record(VERSION, NUMBER, {"name": "amount", "type": "double"}),
        {"version": 1, "number": "n", "amount": 4.0},
    )
    lacking = record(VERSION, AMOUNT), {"version": 1, "amount": 1}
    for schema, document in (narrowed, lacking):
        assert reason_of(topic, avro_value(client, topic, schema, document)) == "foreign_schema"


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


def test_a_schema_by_its_globally_unique_id_is_looked_up_for_the_topic(make_topic):
    topic = make_topic(Avro())
    header = SchemaId("AVRO", None, str(uuid.uuid4())).guid_to_bytes()
    # This registry has no such ids: the answer is not definite.
    with pytest.raises(RegistryUnavailable):
        topic.parse(b"\2", [("__value_schema_id", header)])
