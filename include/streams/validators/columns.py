"""The columns of a contract (name, type, whether a value may be missing), and the row of an event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from functools import cache
from typing import Any

from include.streams.compat.models import model_schema
from include.streams.contracts import Contract, ContractUnion, ContractViolation, Reason, Topic
from include.streams.validators.coordinates import COORDINATES, LOG

# pydantic's name of a type -> Iceberg's name. Other types (lists, objects, unions) are stored as JSON text, which every
# engine can read. A nested type would need a migration with every change of the contract.
_TYPES = {
    "str": "string",
    "int": "long",
    "float": "double",
    "bool": "boolean",
    "datetime": "timestamptz",
    "date": "date",
}
_WRAPPERS = ("default", "nullable", "function-before", "function-after", "function-wrap")
JSON_TEXT = "json"
# The column of the clean table of a union that holds the name of the row's contract, as in the inbox.
CONTRACT = "contract"
# The Python types that a column accepts. A validator of a contract may return another type than the field's.
_PYTHON = {"string": str, "long": int, "double": float, "boolean": bool, "timestamptz": datetime, "date": date}
# Settings of a model that change how values are read, with the required values: those of `Contract`.
_KNOWN_CONFIG = {"strict": True, "extra_fields_behavior": "forbid", "allow_inf_nan": False}
_HARMLESS_CONFIG = {"title", "hide_input_in_errors"}
_LONG = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Column:
    """A field of a contract as a column. `kind` is an Iceberg type, or JSON_TEXT, which is stored as a string."""

    name: str
    kind: str
    required: bool

    @property
    def iceberg_type(self) -> str:
        return "string" if self.kind == JSON_TEXT else self.kind


@dataclass(frozen=True)
class Fields:
    """Pydantic's core schemas of a contract.

    Attributes:
        schemas: {field: core schema}.
        definitions: {reference: core schema} that the schemas refer to.
        is_plain: Whether only the schemas of the fields decide. False, for example, if the model has a validator.
    """

    schemas: Mapping[str, Any]
    definitions: Mapping[str, Any]
    is_plain: bool

    def resolved(self, schema: Any) -> Any:
        """The schema itself, or the definition to which it refers."""
        while schema["type"] == "definition-ref":
            schema = self.definitions[schema["schema_ref"]]
        return schema


@cache
def fields_of(contract: type[Contract]) -> Fields:
    """Read pydantic's core schemas of a contract's fields."""
    schema, definitions = model_schema(contract)
    is_plain = (
        schema["type"] == "model"
        and not schema.get("custom_init")
        and not schema.get("post_init")
        and schema["schema"]["type"] == "model-fields"
        and not schema["schema"].get("computed_fields")
        and {k: v for k, v in schema["config"].items() if k not in _HARMLESS_CONFIG} == _KNOWN_CONFIG
        and not any("validation_alias" in field for field in schema["schema"]["fields"].values())
    )
    while schema["type"] != "model-fields":
        schema = schema["schema"]
    return Fields({name: field["schema"] for name, field in schema["fields"].items()}, definitions, is_plain)


@cache
def columns_of(contract: type[Contract]) -> tuple[Column, ...]:
    """The contract's fields as columns, in their order.

    Args:
        contract: The contract.

    Raises:
        ValueError: A field has the name of a column that every clean table has.
    """
    fields = fields_of(contract)
    if taken := {"event_id", *COORDINATES, LOG} & fields.schemas.keys():
        raise ValueError(
            f"{contract.__name__}: each clean table has a column {', '.join(sorted(taken))}; rename the field"
        )
    return tuple(_column(name, schema, fields) for name, schema in fields.schemas.items())


@cache
def table_columns(topic: Topic) -> tuple[Column, ...]:
    """The columns of the topic's events in its clean table.

    The contracts of a union share one table: one commit then adds all rows of a run, and its counts balance. The row of
    an event has the name of its contract, and null in the columns that only other contracts have.

    Args:
        topic: The topic.

    Raises:
        ValueError: A field has the name of a column that every clean table has, or two contracts of a union have
            fields of one name and of different types.
    """
    if not isinstance(topic.contract, ContractUnion):
        return columns_of(topic.contract)
    columns = {CONTRACT: Column(CONTRACT, "string", required=True)}
    first: dict[str, str] = {}
    for contract in topic.contracts:
        for column in columns_of(contract):
            if column.name == CONTRACT:
                raise ValueError(
                    f"{contract.__name__}: each clean table of a union has a column {CONTRACT}; rename the field"
                )
            other = columns.setdefault(column.name, Column(column.name, column.kind, required=False))
            if other.kind != column.kind:
                raise ValueError(
                    f"topic {topic.name}: field {column.name} is of type {other.kind} in {first[column.name]} and of "
                    f"type {column.kind} in {contract.__name__}, and both share a column: rename it in one of them"
                )
            first.setdefault(column.name, contract.__name__)
    return tuple(columns.values())


def _column(name: str, schema: Any, fields: Fields) -> Column:
    required = True
    while (schema := fields.resolved(schema))["type"] in _WRAPPERS:
        required &= schema["type"] not in ("default", "nullable")
        schema = schema["schema"]
    kind = schema["type"]
    if kind == "enum":
        kind = schema.get("sub_type", JSON_TEXT)
    elif kind == "literal":
        kinds = {type(value).__name__ for value in schema["expected"]}
        kind = kinds.pop() if len(kinds) == 1 else JSON_TEXT
    return Column(name, _TYPES.get(kind, JSON_TEXT), required)


def row_of(event: Contract) -> dict[str, Any]:
    """The event as a row.

    Args:
        event: A parsed event.

    Returns:
        {column: value}, with the event id.

    Raises:
        ContractViolation: A column cannot hold a value, such as an integer of more than 64 bits, or the contract's own
            code fails. No other exception is raised, because it would stop the lane at this message.
    """
    try:
        row = {**dict(_values(event)), "event_id": event.event_id}
        # Raises for an id that is no text, and for text that no file takes (half a surrogate pair).
        row["event_id"].encode()
        return row
    except ContractViolation:
        raise
    except Exception as error:
        text = f"the contract's own code raised {type(error).__name__} for the event's id or values"
        raise ContractViolation(Reason.rejected, text) from error


def _values(event: Contract) -> Iterator[tuple[str, Any]]:
    as_json: dict[str, Any] = {}
    for column in columns_of(type(event)):
        value = getattr(event, column.name)
        if column.kind == JSON_TEXT and value is not None:
            as_json = as_json or event.model_dump(mode="json")
            value = json.dumps(as_json[column.name], ensure_ascii=False, separators=(",", ":"))
        elif column.kind == "long" and isinstance(value, int) and value not in _LONG:
            # The contract sets no bound, but the column has 64 bits.
            raise ContractViolation(Reason.out_of_bounds, f"{column.name} (too large for a table)")
        value = value.value if isinstance(value, Enum) else value
        if column.iceberg_type == "double" and type(value) is int:
            # Pydantic does not convert the default of a field.
            value = float(value)
        if not isinstance(value, _PYTHON[column.iceberg_type]) and (value is not None or column.required):
            text = f"{column.name}: the contract's own code made it a {type(value).__name__}"
            raise ContractViolation(Reason.rejected, text)
        if isinstance(value, str):
            value.encode()
        yield column.name, value
