"""Protobuf schemas that are derived from contracts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from include.streams.formats.errors import NotDerivable
from include.streams.formats.fields import FieldType, fields_of, mark_of

# The number of a field: `Field(json_schema_extra={"x-proto-number": 7})`. By default, its place in the contract.
NUMBER = "x-proto-number"
_SIMPLE: dict[Any, str] = {
    bool: "bool",
    int: "int64",
    float: "double",
    str: "string",
    bytes: "bytes",
    datetime: "google.protobuf.Timestamp",
    timedelta: "google.protobuf.Duration",
    # Texts, as in JSON.
    date: "string",
    time: "string",
    Decimal: "string",
    UUID: "string",
    Enum: "string",
}
_IMPORTS = {"google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration"}


def proto_schema(model: type[BaseModel], package: str = "") -> str:
    """The Protobuf file of a contract.

    A field's number is its place in the contract, so add fields at the end only, or give them numbers.

    Args:
        model: The contract; its message is the first one of the file.
        package: The package of the file.

    Returns:
        The text of the file.

    Raises:
        NotDerivable: A field has a type that Protobuf cannot express.
    """
    messages: dict[str, list[str]] = {}
    _add_message(model, messages)
    body = "\n".join("\n".join(lines) for lines in messages.values())
    imports = [f'import "google/protobuf/{file}.proto";' for kind, file in _IMPORTS.items() if kind in body]
    head = ['syntax = "proto3";', *([f"package {package};"] if package else []), *imports]
    return "\n".join(head) + "\n\n" + body + "\n"


def _add_message(model: type[BaseModel], messages: dict[str, list[str]]) -> None:
    name = model.__name__
    if name in messages:
        return
    messages[name] = []
    lines = [f"message {name} {{"]
    numbers: set[int] = set()
    for place, (field_name, info, kind) in enumerate(fields_of(model), start=1):
        number = mark_of(info, NUMBER) or place
        if number in numbers:
            raise NotDerivable(f"{name}.{field_name}: its number {number} is already used; give it another {NUMBER!r}")
        numbers.add(number)
        lines.append(f"  {_declaration(kind, f'{name}.{field_name}', info.annotation)} {field_name} = {number};")
        for nested in _models(kind):
            _add_message(nested, messages)
    messages[name] = [*lines, "}"]


def _models(kind: FieldType | None) -> Iterator[type[BaseModel]]:
    if kind is not None:
        if kind.model is not None:
            yield kind.model
        for item in kind.items:
            yield from _models(item)


def _declaration(kind: FieldType | None, path: str, annotation: Any) -> str:
    if kind is not None and kind.kind in (list, dict) and not kind.is_nullable:
        item = kind.items[0]
        inner = None if item.is_nullable else _single(item)
        if inner is not None:
            return f"repeated {inner}" if kind.kind is list else f"map<string, {inner}>"
    elif kind is not None and (single := _single(kind)) is not None:
        # Presence: without it, an unset field and its zero are the same.
        return single if kind.kind is BaseModel or not kind.is_nullable else f"optional {single}"
    raise NotDerivable(
        f"{path}: Protobuf has no type for {annotation} that keeps its JSON; change the field, or give the format a "
        "schema file"
    )


def _single(kind: FieldType) -> str | None:
    """The name of the type of one value; None if Protobuf has none."""
    if kind.kind is BaseModel:
        return kind.model.__name__ if kind.model is not None else None
    if kind.kind is datetime and not kind.is_aware:
        return "string"
    return _SIMPLE.get(kind.kind)
