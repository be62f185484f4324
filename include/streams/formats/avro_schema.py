"""Avro schemas that are derived from contracts."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Union
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from include.streams.formats.errors import NotDerivable
from include.streams.formats.fields import FieldType, default_of, fields_of, mark_of

# The names that a field had before, for Avro's resolution: `Field(json_schema_extra={"x-aliases": ["old_name"]})`.
ALIASES = "x-aliases"
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIMPLE: dict[Any, Any] = {
    bool: "boolean",
    int: "long",
    float: "double",
    str: "string",
    bytes: "bytes",
    date: {"type": "int", "logicalType": "date"},
    time: {"type": "long", "logicalType": "time-micros"},
    # Avro has no duration that keeps microseconds: an ISO 8601 text.
    timedelta: "string",
    UUID: {"type": "string", "logicalType": "uuid"},
}


def avro_schema(model: type[BaseModel], namespace: str = "") -> dict[str, Any]:
    """The Avro schema of a contract.

    Args:
        model: The contract.
        namespace: The namespace of its records.

    Returns:
        The schema of a record with the contract's name. A field without a default stays required for every reader.

    Raises:
        NotDerivable: A field has a type that Avro cannot express.
    """
    schema = _record(model, set())
    return {**schema, "namespace": namespace} if namespace else schema


def _record(model: type[BaseModel], known: set[str]) -> Any:
    name = model.__name__
    if name in known:
        return name
    known.add(name)
    fields = []
    for field_name, info, kind in fields_of(model):
        if kind is None:
            raise NotDerivable(
                f"{name}.{field_name}: Avro has no type for {info.annotation}; change the field, or give the format a "
                "schema file"
            )
        default = default_of(info)
        has_default = default is not PydanticUndefined
        entry: dict[str, Any] = {"name": field_name, "type": _type(kind, name, field_name, known)}
        if kind.is_nullable:
            branches = entry["type"] if isinstance(entry["type"], list) else [entry["type"]]
            # The default belongs to the first branch.
            first_null = not has_default or default is None
            entry["type"] = ["null", *branches] if first_null else [*branches, "null"]
        if has_default:
            entry["default"] = _default(default, kind, f"{name}.{field_name}")
        if aliases := mark_of(info, ALIASES):
            entry["aliases"] = list(aliases)
        fields.append(entry)
    return {"type": "record", "name": name, "fields": fields}


def _type(kind: FieldType, model: str, field: str, known: set[str]) -> Any:
    if kind.kind is list:
        return {"type": "array", "items": _nested(kind.items[0], model, field, known)}
    if kind.kind is dict:
        return {"type": "map", "values": _nested(kind.items[0], model, field, known)}
    if kind.kind is BaseModel:
        assert kind.model is not None
        return _record(kind.model, known)
    if kind.kind is Union:
        return [_type(branch, model, field, known) for branch in kind.items]
    if kind.kind is Enum:
        return _enum(kind, model, field, known)
    if kind.kind is Decimal:
        if kind.digits is None:
            return "string"
        return {"type": "bytes", "logicalType": "decimal", "precision": kind.digits[0], "scale": kind.digits[1]}
    if kind.kind is datetime:
        logical = "timestamp-micros" if kind.is_aware else "local-timestamp-micros"
        return {"type": "long", "logicalType": logical}
    return _SIMPLE[kind.kind]


def _nested(kind: FieldType, model: str, field: str, known: set[str]) -> Any:
    inner = _type(kind, model, field, known)
    if not kind.is_nullable:
        return inner
    return ["null", *(inner if isinstance(inner, list) else [inner])]


def _enum(kind: FieldType, model: str, field: str, known: set[str]) -> Any:
    if not all(_SYMBOL.fullmatch(choice) for choice in kind.choices):
        return "string"
    name = kind.name or f"{model}_{field}"
    if name in known:
        return name
    known.add(name)
    return {"type": "enum", "name": name, "symbols": list(kind.choices)}


def _default(default: Any, kind: FieldType, path: str) -> Any:
    if default is None or (isinstance(default, bool | int | float | str) and not isinstance(default, Enum)):
        return default
    value = to_jsonable_python(default)
    if kind.kind in (Enum, list, dict, str) and value is not None:
        return value
    raise NotDerivable(f"{path}: a default of this type cannot be written into an Avro schema; make the field nullable")
