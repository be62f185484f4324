"""Avro: values to JSON texts and back.

The JSON text of a value: records and maps are objects, a union is the value of its branch, an enum is its symbol.
Bytes and fixed are base64. Of the logical types, times and dates are ISO 8601 (a timestamp in UTC with "Z"), decimals
and UUIDs are texts. NaN and the infinities are texts, because JSON has no such numbers.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from io import BytesIO
from typing import Any
from uuid import UUID

from include.streams.compat import recursive_avro
from include.streams.formats.avro_schema import avro_schema
from include.streams.formats.codec import Codec, Writer
from include.streams.formats.errors import NotDecodable, NotEncodable
from include.streams.formats.registry import SchemaText

_PRIMITIVE = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INTEGER_LIMITS = {"int": 1 << 31, "long": 1 << 63}


class AvroCodec(Codec):
    """The codec of a topic in Avro."""

    def _writer(self, schema: SchemaText) -> Writer:
        # A schema of the topic's own is its own reader.
        reader = None if schema is self.own else self.own
        return AvroWriter(_parsed(schema), None if reader is None else _parsed(reader))

    def derive(self, contract: Any) -> str:
        return json.dumps(avro_schema(contract, self.declared.namespace))

    def differences(self, earlier: SchemaText) -> list[str]:
        from avro.compatibility import ReaderWriterCompatibilityChecker
        from avro.schema import parse

        if self.own is None or earlier.references:
            return []
        own, other = parse(self.own.text), parse(earlier.text)
        checks = {"it cannot read earlier messages": (own, other), "earlier readers cannot read it": (other, own)}
        found = []
        for what, (reader, writer) in checks.items():
            result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
            kinds = [getattr(kind, "value", str(kind)) for kind in result.incompatibilities]
            found += [
                f"{what}: {kind} at {place}" for kind, place in zip(kinds, sorted(result.locations), strict=False)
            ]
        return found


class AvroWriter:
    """Reads and writes values of one schema.

    Args:
        parsed: The schema, parsed by fastavro.
        reader: The schema to read the values with, by Avro's rules of resolution; None for the same.
    """

    def __init__(self, parsed: Any, reader: Any = None) -> None:
        self.parsed = parsed
        self._named = _named(parsed)
        self.reader = None if reader is None or _plain(reader) == _plain(parsed) else reader
        read = self.reader if self.reader is not None else parsed
        nodes = list(_nodes(read, _named(read)))
        self.has_bytes = any(node.get("type") in ("bytes", "fixed") and not _is_decimal(node) for node in nodes)
        self.is_recursive = _is_recursive(parsed, self._named, ())
        if any(
            node.get("type") == "array" and _is_empty(node["items"], self._named, ())
            for node in _nodes(parsed, self._named)
        ):
            # A few bytes could claim any number of such items.
            raise NotDecodable("foreign_schema", "it has an array of items without bytes")

    def decode(self, payload: bytes, indexes: tuple[int, ...] = ()) -> bytes:
        from fastavro import schemaless_reader
        from fastavro.read import SchemaResolutionError
        from pydantic_core import to_json

        data = BytesIO(payload)
        try:
            if self.is_recursive:
                value = recursive_avro.read(data, self.parsed, self.reader)
            else:
                value = schemaless_reader(data, self.parsed, self.reader)
        except SchemaResolutionError:
            text = "the topic's schema cannot read it by Avro's rules of schema resolution"
            raise NotDecodable("foreign_schema", text) from None
        except ImportError:
            raise
        except Exception as error:
            text = f"the bytes do not fit the schema ({type(error).__name__})"
            raise NotDecodable("not_decodable", text) from None
        if (rest := len(payload) - data.tell()) > 0:
            raise NotDecodable("not_decodable", f"the bytes do not fit the schema: {rest} bytes are left over")
        try:
            return to_json(_without_bytes(value) if self.has_bytes else value, inf_nan_mode="strings")
        except Exception as error:
            raise NotDecodable("not_decodable", f"the value has no JSON text ({type(error).__name__})") from None

    def encode(self, document: Any) -> tuple[bytes, tuple[int, ...]]:
        from fastavro import schemaless_writer

        data = BytesIO()
        try:
            schemaless_writer(data, self.parsed, self._value(document, self.parsed, ""))
        except NotEncodable:
            raise
        except Exception as error:
            raise NotEncodable(f"the document does not fit the schema ({type(error).__name__})") from None
        return data.getvalue(), ()

    def records(self) -> tuple[str, ...]:
        branches = self.parsed if isinstance(self.parsed, list) else [self.parsed]
        return tuple(node["name"] for node in branches if isinstance(node, dict) and "name" in node)

    def _value(self, document: Any, schema: Any, path: str) -> Any:
        """The value that fastavro writes for a part of the document."""
        if isinstance(schema, list):
            return self._branch(document, schema, path)
        node = self._named.get(schema, {"type": schema}) if isinstance(schema, str) else schema
        kind = node["type"]
        if not isinstance(kind, str) or (kind not in _PRIMITIVE and kind in self._named):
            return self._value(document, kind, path)
        try:
            if kind == "record":
                return self._record(document, node, path)
            if kind == "array" and isinstance(document, list):
                return [self._value(item, node["items"], f"{path}[]") for item in document]
            if kind == "map" and isinstance(document, dict):
                return {name: self._value(item, node["values"], f"{path}.*") for name, item in document.items()}
            return _scalar(document, kind, node)
        except (ValueError, TypeError, ArithmeticError):
            raise NotEncodable(f"{path.lstrip('.') or '(message)'}: is no {node.get('logicalType', kind)}") from None

    def _record(self, document: Any, node: dict[str, Any], path: str) -> dict[str, Any]:
        fields = {field["name"]: field for field in node["fields"]}
        if not isinstance(document, dict):
            raise ValueError
        if unknown := document.keys() - fields.keys():
            raise NotEncodable(f"{path.lstrip('.') or '(message)'}: {len(unknown)} fields are not in the schema")
        value = {}
        for name, field in fields.items():
            if name in document:
                value[name] = self._value(document[name], field["type"], f"{path}.{name}")
            elif "default" not in field and not _takes_null(field["type"]):
                raise NotEncodable(f"{path}.{name}".lstrip(".") + ": is missing")
        return value

    def _branch(self, document: Any, branches: list[Any], path: str) -> Any:
        if document is None and "null" in branches:
            return None
        last: NotEncodable | None = None
        for branch in branches:
            node = self._named.get(branch, branch) if isinstance(branch, str) else branch
            try:
                value = self._value(document, branch, path)
            except NotEncodable as error:
                last = error
                continue
            if isinstance(node, dict) and "name" in node:
                return (node["name"], value)
            return value
        if last is not None and len([branch for branch in branches if branch != "null"]) == 1:
            raise last
        raise NotEncodable(f"{path.lstrip('.') or '(message)'}: fits no branch of its union")


def _scalar(document: Any, kind: str, node: dict[str, Any]) -> Any:
    """The value of a type without parts; raises ValueError, TypeError or ArithmeticError if it is of another type."""
    logical = node.get("logicalType")
    text = document if isinstance(document, str) else None
    if logical == "decimal":
        return _decimal(document, node)
    if logical == "uuid" and text is not None:
        return str(UUID(text)) if kind == "string" else UUID(text)
    if logical == "date" and text is not None:
        return date.fromisoformat(text)
    if logical in ("time-millis", "time-micros") and text is not None:
        return _exact(time.fromisoformat(text), logical)
    if logical in ("timestamp-millis", "timestamp-micros") and text is not None:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return _exact(moment.astimezone(UTC), logical)
    if logical in ("local-timestamp-millis", "local-timestamp-micros") and text is not None:
        return _exact(datetime.fromisoformat(text), logical)
    if kind in ("bytes", "fixed"):
        content = base64.b64decode(document, validate=True)
        if kind == "fixed" and len(content) != node["size"]:
            raise ValueError
        return content
    if kind == "enum" and document in node["symbols"]:
        return document
    is_number = isinstance(document, int | float) and not isinstance(document, bool)
    if kind in ("float", "double") and (is_number or document in _FLOATS):
        return _FLOATS[document] if isinstance(document, str) else float(document)
    fits = {
        "null": document is None,
        "boolean": isinstance(document, bool),
        "string": text is not None,
        "int": is_number and isinstance(document, int),
        "long": is_number and isinstance(document, int),
    }
    limit = _INTEGER_LIMITS.get(kind)
    if not fits.get(kind, False) or (limit is not None and not -limit <= int(document) < limit):
        raise ValueError
    return document


def _decimal(document: Any, node: dict[str, Any]) -> Decimal:
    number = Decimal(document if isinstance(document, str) else repr(document))
    scale = node.get("scale", 0)
    if not number.is_finite() or number != number.quantize(Decimal(1).scaleb(-scale)):
        raise ValueError
    return number


def _exact(moment: Any, logical: str) -> Any:
    """The time itself, unless its schema would cut digits off: then what was written is not what was meant."""
    if logical.endswith("-millis") and moment.microsecond % 1_000:
        raise ValueError
    return moment


def _parsed(schema: SchemaText) -> Any:
    """The schema, parsed by fastavro; raises NotDecodable if it is no Avro schema."""
    from fastavro import parse_schema

    named: dict[str, Any] = {}

    def load(each: SchemaText) -> Any:
        for _, reference in each.references:
            load(reference)
        return parse_schema(json.loads(each.text), named_schemas=named)

    try:
        return load(schema)
    except Exception as error:
        raise NotDecodable("foreign_schema", f"the schema cannot be used ({type(error).__name__})") from None


def _named(parsed: Any) -> dict[str, Any]:
    """{full name: schema} of the named types of a parsed schema."""
    for node in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(node, dict) and "__named_schemas" in node:
            return node["__named_schemas"]
    return {}


def _plain(node: Any) -> Any:
    """The schema without texts for people and without fastavro's own entries."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {name: _plain(value) for name, value in node.items() if not name.startswith("__") and name != "doc"}


def _children(node: dict[str, Any]) -> Iterator[Any]:
    kind = node.get("type")
    if kind in ("record", "error"):
        yield from (field["type"] for field in node["fields"])
    elif kind == "array":
        yield node["items"]
    elif kind == "map":
        yield node["values"]
    elif isinstance(kind, dict | list):
        yield kind


def _nodes(schema: Any, named: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All parts of a schema, each named type once."""
    seen: set[str] = set()
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        if isinstance(node, str):
            if node not in named or node in seen:
                yield {"type": node}
                continue
            node = named[node]
        if (name := node.get("name")) is not None:
            if name in seen:
                continue
            seen.add(name)
        yield node
        waiting += _children(node)


def _is_recursive(schema: Any, named: dict[str, Any], inside: tuple[str, ...]) -> bool:
    if isinstance(schema, list):
        return any(_is_recursive(branch, named, inside) for branch in schema)
    if isinstance(schema, str):
        if schema in inside:
            return True
        if schema not in named:
            return False
        schema = named[schema]
    name = schema.get("name")
    if name is not None and name in inside:
        return True
    within = inside if name is None else (*inside, name)
    return any(_is_recursive(child, named, within) for child in _children(schema))


def _is_empty(schema: Any, named: dict[str, Any], inside: tuple[str, ...]) -> bool:
    """Whether values of the schema have no bytes: null, a record of such fields, a fixed of length 0."""
    if isinstance(schema, list):
        return False
    node = named.get(schema, {"type": schema}) if isinstance(schema, str) else schema
    kind, name = node.get("type"), node.get("name", "")
    if kind == "null":
        return True
    if kind == "fixed":
        return node["size"] == 0
    if kind == "record":
        within = (*inside, name)
        return name not in inside and all(_is_empty(field["type"], named, within) for field in node["fields"])
    return isinstance(kind, dict) and _is_empty(kind, named, inside)


def _is_decimal(node: dict[str, Any]) -> bool:
    return node.get("logicalType") == "decimal" or (node.get("type") == "fixed" and node.get("logicalType") == "uuid")


def _takes_null(schema: Any) -> bool:
    return schema == "null" or (isinstance(schema, list) and "null" in schema)


def _without_bytes(value: Any) -> Any:
    """The value with base64 texts in place of bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _without_bytes(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_bytes(item) for item in value]
    return value
