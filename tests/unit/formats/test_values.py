"""A value has the same JSON text whatever its format is, and damaged bytes never do more than raise NotDecodable."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from io import BytesIO
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from fastavro import schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Base64Bytes, BaseModel, Field

from include.streams import Avro, Contract
from include.streams.contracts.types import Day, Identifier, UtcTime
from include.streams.formats import JsonSchema, NotDecodable, NotDerivable, NotEncodable, Protobuf
from include.streams.formats.avro import AvroWriter, _parsed
from include.streams.formats.codecs import codec_of
from include.streams.formats.protobuf import ProtobufWriter, compiled
from include.streams.formats.registry import SchemaText


class Kind(StrEnum):
    small = "small"
    large = "large"


class Part(BaseModel):
    number: int
    note: str | None = None


class Everything(Contract):
    version: Literal[1]
    name: Identifier
    count: int
    weight: float
    is_ready: bool
    at: UtcTime
    day: Day
    amount: Annotated[Decimal, Field(max_digits=10, decimal_places=2)]
    exact: Decimal
    uid: UUID
    kind: Kind
    choice: Literal["x", "y"]
    parts: list[Part]
    part: Part | None = None
    tags: dict[str, int]
    lasts: timedelta
    raw: Base64Bytes

    @property
    def event_id(self) -> str:
        return self.name


def everything(**changes: Any) -> Everything:
    fields: dict[str, Any] = {
        "version": 1,
        "name": "a",
        "count": -5,
        "weight": 1.5,
        "is_ready": True,
        "at": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
        "day": date(2026, 1, 2),
        "amount": Decimal("12.30"),
        "exact": Decimal("1.23456"),
        "uid": UUID(int=5),
        "kind": Kind.large,
        "choice": "x",
        "parts": [Part(number=1), Part(number=2, note="ä\U0001f600")],
        "tags": {"k": 1},
        "lasts": timedelta(seconds=1.5),
        "raw": base64.b64encode(b"\0\xff?>"),
    }
    return Everything(**{**fields, **changes})


FORMATS = {"avro": Avro(namespace="a.b"), "protobuf": Protobuf(namespace="a.b"), "json_schema": JsonSchema()}
EVERY_FORMAT = pytest.mark.parametrize("declared", FORMATS.values(), ids=FORMATS)


@EVERY_FORMAT
@pytest.mark.parametrize("event", [everything(), everything(part=Part(number=3), parts=[], tags={}, count=2**53)])
def test_an_event_is_the_same_after_it_was_encoded_and_decoded(declared, event):
    writer = codec_of("t", declared, Everything).own_writer
    payload, indexes = writer.encode(json.loads(event.model_dump_json()))
    assert Everything.model_validate_json(writer.decode(payload, indexes)) == event


@EVERY_FORMAT
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_not_decodable_or_another_text(declared, data):
    writer = codec_of("t", declared, Everything).own_writer
    payload, indexes = writer.encode(json.loads(everything().model_dump_json()))
    cut = data.draw(st.integers(0, len(payload)))
    damaged = payload[:cut] + data.draw(st.binary(max_size=20)) + payload[data.draw(st.integers(cut, len(payload))) :]
    try:
        text = writer.decode(damaged, indexes)
    except NotDecodable:
        return
    if declared.kind != "JSON":
        json.loads(text)


def avro(schema: Any, value: Any, reader: Any = None) -> Any:
    writer = AvroWriter(
        _parsed(SchemaText("AVRO", json.dumps(schema))),
        None if reader is None else _parsed(SchemaText("AVRO", json.dumps(reader))),
    )
    data = BytesIO()
    schemaless_writer(data, writer.parsed, value)
    return json.loads(writer.decode(data.getvalue()))


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        ({"type": "long", "logicalType": "timestamp-millis"}, datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        ({"type": "long", "logicalType": "local-timestamp-micros"}, datetime(2026, 1, 1), "2026-01-01T00:00:00"),
        ({"type": "int", "logicalType": "time-millis"}, datetime(2026, 1, 1, 1, 2, 3).time(), "01:02:03"),
        (["null", "string", {"type": "array", "items": "int"}], [1], [1]),
        ({"type": "fixed", "name": "F", "size": 2}, b"\0\xff", "AP8="),
        ("double", float("nan"), "NaN"),
        ({"type": "map", "values": "bytes"}, {"k": b"\0"}, {"k": "AA=="}),
    ],
)
def test_avro_types_have_their_texts(schema, value, text):
    assert avro(schema, value) == text


LIST = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}


def test_a_value_that_is_nested_too_deeply_does_not_crash_the_process():
    code = f"""
from include.streams.formats.avro import AvroWriter, _parsed
from include.streams.formats.registry import SchemaText
import json
writer = AvroWriter(_parsed(SchemaText("AVRO", {json.dumps(LIST)!r})))
try:
    writer.decode(b"\\2" * 60_000 + b"\\0")
except Exception as error:
    print(error.reason)
print(len(writer.decode(b"\\2" * 20 + b"\\0")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["not_decodable", str(len('{"next":}' * 21 + "null"))]


def test_an_array_of_items_without_bytes_is_refused():
    with pytest.raises(NotDecodable) as caught:
        avro({"type": "array", "items": "null"}, [])
    assert caught.value.reason == "foreign_schema"


def test_a_time_is_not_cut_to_the_precision_of_its_schema():
    writer = AvroWriter(_parsed(SchemaText("AVRO", '{"type": "long", "logicalType": "timestamp-millis"}')))
    with pytest.raises(NotEncodable):
        writer.encode("2026-01-01T00:00:00.000001Z")


PROTO = """
syntax = "proto3";
package a.b;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
import "google/type/date.proto";
message Other { int32 x = 1; }
message Main {
  enum Colour { UNKNOWN = 0; RED = 1; }
  message Inner { string text = 1; Main again = 2; }
  int64 whole = 1;
  optional string maybe = 2;
  oneof choice { string word = 3; Inner inner = 4; }
  Colour colour = 5;
  map<int32, Inner> inners = 6;
  google.protobuf.Timestamp at = 7;
  google.protobuf.Int64Value wrapped = 8;
  google.protobuf.Struct free = 9;
  google.type.Date day = 10;
  repeated bytes parts = 11;
  uint64 large = 12;
}
"""


@pytest.fixture(scope="module")
def proto() -> ProtobufWriter:
    return ProtobufWriter(compiled(SchemaText("PROTOBUF", PROTO)), None, ("a.b.Main",))


def test_protobuf_types_have_their_texts_both_ways(proto):
    document = {
        "whole": 2**60,
        "inner": {"text": "t", "again": {"whole": 0, "colour": "UNKNOWN", "inners": {}, "parts": [], "large": 0}},
        "colour": "RED",
        "inners": {"7": {"text": "seven"}},
        "at": "2026-01-01T00:00:00.000001Z",
        "wrapped": 0,
        "free": {"a": [1.0, None]},
        "day": {"year": 2026, "month": 1, "day": 2},
        "parts": ["AA=="],
        "large": 2**63,
    }
    payload, indexes = proto.encode(document)
    assert indexes == (1,)
    assert json.loads(proto.decode(payload, indexes)) == document


@pytest.mark.parametrize(
    "document",
    [{"unknown": 1}, {"whole": "1"}, {"whole": True}, {"colour": "BLUE"}, {"at": "2026-01-01"}, [], {"parts": ["?"]}],
)
def test_a_document_that_does_not_fit_protobuf_is_not_encodable(proto, document):
    with pytest.raises(NotEncodable):
        proto.encode(document)


def test_protobuf_bytes_of_another_message_are_not_decodable(proto):
    for payload in (b"\x9a\x06\x01x", b"\x08", b"\x1a\x02\xff\xfe"):
        with pytest.raises(NotDecodable):
            proto.decode(payload, (1,))
    with pytest.raises(NotDecodable) as other:
        proto.decode(b"", (0,))
    assert other.value.reason == "foreign_schema"


def test_protobuf_fields_are_read_by_their_numbers():
    old = SchemaText("PROTOBUF", 'syntax = "proto3"; message M { int32 price = 1; string gone = 2; }')
    new = SchemaText("PROTOBUF", 'syntax = "proto3"; message M { int64 amount = 1; string note = 3; }')
    writer = ProtobufWriter(compiled(old), ProtobufWriter(compiled(new)))
    payload, indexes = writer.encode({"price": 5, "gone": "x"})
    assert json.loads(writer.decode(payload, indexes)) == {"amount": 5, "note": ""}


class Odd(Contract):
    version: Literal[1]
    any: Any

    @property
    def event_id(self) -> str:
        return ""


@pytest.mark.parametrize("declared", [Avro(), Protobuf()])
def test_a_field_without_a_type_in_the_format_is_named(declared):
    with pytest.raises(NotDerivable, match=r"Odd\.any"):
        assert codec_of("odd", declared, Odd).own


@pytest.mark.parametrize(
    "settings_", [{"subject": "other"}, {"schema_id_in": "tail"}, {"records": ("no name!",)}, {"compatibility": "ALL"}]
)
def test_a_format_that_cannot_work_is_refused(settings_):
    with pytest.raises(ValueError, match=r"choose|full name"):
        Avro(**settings_)
