"""Samples that are made from a JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaffold.errors import Refused
from scaffold.schemas import from_schema
from tests.unit.scaffold.samples import chosen

ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["order_id", "placed_at", "amount_cents", "customer", "state"],
    "properties": {
        "order_id": {"type": "string", "pattern": "^SO-[0-9]{8}$"},
        "placed_at": {"type": "string", "format": "date-time"},
        "amount_cents": {"type": "integer", "minimum": 1, "maximum": 100_000_000},
        "customer": {"$ref": "#/$defs/customer"},
        "state": {"enum": ["open", "paid"]},
        "note": {"type": ["string", "null"], "maxLength": 400},
        "lines": {"type": "array", "items": {"type": "object", "properties": {"sku": {"type": "string"}}}},
    },
    "$defs": {
        "customer": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "maxLength": 40}},
        }
    },
}


def written(folder: Path, schema: object, name: str = "order.json") -> Path:
    path = folder / name
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return path


def test_a_schema_gives_samples_that_keep_it_and_bounds(tmp_path: Path):
    samples, schemas = from_schema(written(tmp_path, ORDER))
    choice = chosen(samples, schemas=schemas)
    (contract,) = choice.contracts
    found = {each.name: (each.guess.name, each.guess.bounds, each.is_required) for each in contract.fields}
    assert found == {
        "order_id": ("Identifier", {}, True),
        "placed_at": ("UtcTime", {}, True),
        "amount_cents": ("int", {"ge": "1", "le": "100000000"}, True),
        "customer_name": ("Line", {"max_length": "40"}, True),
        "state": ("Line", {"max_length": "200"}, True),
        "note": ("Line", {"max_length": "400"}, False),
    }
    assert choice.id_field == "order_id"


def test_each_alternative_of_a_schema_gives_samples(tmp_path: Path):
    def event(kind: str, **properties: object) -> dict:
        return {
            "type": "object", "required": ["id", "kind", *properties],
            "properties": {"id": {"type": "string", "format": "uuid"}, "kind": {"const": kind}, **properties},
        }  # fmt: skip

    schema = {"oneOf": [event("placed", amount={"type": "integer"}), event("paid", method={"type": "string"})]}
    samples, _ = from_schema(written(tmp_path, schema))
    assert {sample.document["kind"] for sample in samples} == {"placed", "paid"}
    assert len({sample.document["id"] for sample in samples}) == len(samples)


@pytest.mark.parametrize(
    ("name", "schema", "said"),
    [
        ("a.avsc", "{}", "Avro is not supported; give a JSON Schema"),
        ("a.proto", "syntax", "Protobuf is not supported"),
        ("a.json", {"type": "record", "fields": []}, "it is no JSON Schema; Avro and Protobuf are not supported"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", {"type": "string"}, "describes no object"),
        (
            "a.json",
            {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "not": {}}}},
            "no document could be made that keeps it (a: ",
        ),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, name: str, schema: object, said: str):
    with pytest.raises(Refused) as refused:
        from_schema(written(tmp_path, schema, name))
    assert said in str(refused.value)
