"""Sample messages, and bounds of fields, from a JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaffold.errors import Refused
from scaffold.samples import OTHER_SCHEMAS, Sample

# Documents with all members: enough to show which field is an id.
DOCUMENTS = 6
MAX_DEPTH = 8
_FORMATS: dict[str, Callable[[int], str]] = {
    "date-time": lambda number: f"2026-01-{number % 28 + 1:02}T12:00:00Z",
    "date": lambda number: f"2026-01-{number % 28 + 1:02}",
    "time": lambda number: f"12:{number % 60:02}:00Z",
    "uuid": lambda number: f"00000000-0000-4000-8000-{number:012}",
    "email": lambda number: f"somebody{number}@example.org",
    "uri": lambda number: f"https://example.org/{number}",
    "hostname": lambda number: f"host{number}.example.org",
    "ipv4": lambda number: f"192.0.2.{number % 254 + 1}",
}


def from_schema(path: Path) -> tuple[list[Sample], dict[str, dict[str, Any]]]:
    """Make samples that keep a JSON Schema: with all members, and with the required ones only.

    Args:
        path: The file.

    Returns:
        The samples, and {field: what the schema says of it}; a field is named as in FIELDS.

    Raises:
        Refused: It is no JSON Schema of an object, or no samples can be made that keep it.
    """
    if other := OTHER_SCHEMAS.get(path.suffix):
        raise Refused(f"SCHEMA={path}: {other} is not supported; give a JSON Schema, or a file of messages (FROM=)")
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"SCHEMA={path}: cannot be read as JSON ({error})") from None
    if not isinstance(schema, dict) or (isinstance(schema.get("type"), str) and schema.get("type") == "record"):
        raise Refused(f"SCHEMA={path}: it is no JSON Schema; Avro and Protobuf are not supported")
    branches = _Maker(schema, set()).branches()
    documents: list[dict[str, Any]] = []
    fields: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for branch in branches:
        for number in range(DOCUMENTS):
            maker = _Maker(schema, used, first=len(documents) * 100)
            document = maker.value(branch, is_whole=number % 2 == 0)
            if not isinstance(document, dict):
                raise Refused(f"SCHEMA={path}: describes no object; a message's value must be a JSON object")
            documents.append(document)
            fields.update(maker.fields)
    _check(path, schema, documents)
    return [Sample(json.dumps(document), document, {}, None) for document in documents], fields


def _check(path: Path, schema: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    import jsonschema
    from jsonschema.validators import validator_for

    try:
        validator = validator_for(schema)
        validator.check_schema(schema)
        for document in documents:
            validator(schema).validate(document)
    except (jsonschema.SchemaError, jsonschema.ValidationError) as error:
        place = ".".join(map(str, error.absolute_path)) or "the document"
        raise Refused(
            f"SCHEMA={path}: no document could be made that keeps it ({place}: {error.message[:200]}); give examples "
            "in the schema, or a file of messages with FROM="
        ) from None


class _Maker:
    """Makes a document of a schema; each text and number is a different one, so that ids differ.

    Args:
        schema: The whole schema.
        used: The texts with patterns that other documents have; changed.
        first: Of the numbers in the values.
    """

    def __init__(self, schema: dict[str, Any], used: set[str], first: int = 0) -> None:
        self._schema = schema
        self._used = used
        self._number = first
        self.fields: dict[str, dict[str, Any]] = {}

    def branches(self) -> list[dict[str, Any]]:
        """The alternatives of the whole document."""
        top = self.resolved(self._schema)
        found = top.get("oneOf") or top.get("anyOf") or [{}]
        head = {name: value for name, value in top.items() if name not in ("oneOf", "anyOf")}
        return [_joined(head, self.resolved(branch)) for branch in found]

    def resolved(self, node: Any) -> dict[str, Any]:
        """The node with its $ref followed, and allOf joined."""
        if not isinstance(node, dict):
            return {}
        if isinstance(node.get("$ref"), str):
            target: Any = self._schema
            for step in node["$ref"].removeprefix("#").strip("/").split("/"):
                target = target.get(step.replace("~1", "/").replace("~0", "~"), {}) if step else target
            rest = {name: value for name, value in node.items() if name != "$ref"}
            node = _joined(self.resolved(target), rest)
        for part in node.get("allOf", ()):
            node = _joined({n: v for n, v in node.items() if n != "allOf"}, self.resolved(part))
        return node

    def value(self, node: Any, *, is_whole: bool, path: tuple[str, ...] = ()) -> Any:
        """A value that keeps the schema's node.

        Args:
            node: The node.
            is_whole: With members that are not required.
            path: Where the value is.
        """
        node = self.resolved(node)
        nullable = _is_nullable(node, self.resolved)
        for choice in ("oneOf", "anyOf"):
            options = [o for o in map(self.resolved, node.get(choice, ())) if o.get("type") != "null"]
            if options:
                node = _joined({n: v for n, v in node.items() if n != choice}, options[0])
        kind = node.get("type")
        if isinstance(kind, list):
            kind = next((each for each in kind if each != "null"), "null")
        if kind is None:
            kind = "object" if "properties" in node else "string" if "pattern" in node or "format" in node else None
        self._number += 1
        if path:
            self.fields.setdefault(".".join(path), {**node, "nullable": nullable})
        if "const" in node:
            return node["const"]
        if node.get("enum"):
            options = [option for option in node["enum"] if option is not None]
            return options[self._number % len(options)] if options else None
        if kind == "object":
            required = node.get("required", ())
            return {
                name: self.value(child, is_whole=is_whole, path=(*path, name))
                for name, child in node.get("properties", {}).items()
                if child is not False and (name in required or (is_whole and len(path) < MAX_DEPTH))
            }
        if kind == "array":
            count = max(node.get("minItems", 0), int(is_whole))
            count = min(count, node.get("maxItems", count))
            makers = [_Maker(self._schema, self._used, self._number + number) for number in range(count)]
            return [maker.value(node.get("items", {}), is_whole=False) for maker in makers]
        return self._scalar(node, kind)

    def _scalar(self, node: dict[str, Any], kind: Any) -> Any:
        examples = [*node.get("examples", ()), *([node["example"]] if "example" in node else [])]
        if kind == "boolean":
            return bool(self._number % 2)
        if kind in ("integer", "number"):
            return self._numeric(node, kind)
        if kind == "null":
            return None
        if node.get("format") in _FORMATS:
            return _FORMATS[node["format"]](self._number)
        if "pattern" in node:
            return self._matching(node, examples)
        if examples and isinstance(examples[0], str):
            return examples[self._number % len(examples)]
        text = f"text {self._number}"
        text = text.ljust(node.get("minLength", 0), ".")
        return text[-node["maxLength"] :] if node.get("maxLength") else text

    def _numeric(self, node: dict[str, Any], kind: str) -> int | float:
        step = node.get("multipleOf", 1 if kind == "integer" else 0.5)
        low = node.get("minimum", node.get("exclusiveMinimum", -step) + step if "exclusiveMinimum" in node else 0)
        high = node.get("maximum", node["exclusiveMaximum"] - step if "exclusiveMaximum" in node else low + 10**6)
        low = -(-low // step) * step
        count = max(1, int((high - low) // step) + 1)
        value = low + (self._number % count) * step
        return int(value) if kind == "integer" else value

    def _matching(self, node: dict[str, Any], examples: list[Any]) -> str:
        from hypothesis import find, settings, strategies
        from hypothesis.errors import HypothesisException

        for example in examples:
            if isinstance(example, str) and example not in self._used:
                self._used.add(example)
                return example
        low, high = node.get("minLength", 0), node.get("maxLength", 100_000)
        printable = strategies.characters(min_codepoint=32, max_codepoint=126)
        try:
            texts = strategies.from_regex(node["pattern"], alphabet=printable)
            found = find(
                texts,
                lambda text: low <= len(text) <= high and text not in self._used,
                settings=settings(max_examples=2_000, database=None),
            )
        except (HypothesisException, re.error):
            raise Refused(
                f"no text could be made that matches {node['pattern']!r}; give examples in the schema"
            ) from None
        self._used.add(found)
        return found


def _is_nullable(node: dict[str, Any], resolved: Callable[[Any], dict[str, Any]]) -> bool:
    options = [resolved(option) for choice in ("oneOf", "anyOf") for option in node.get(choice, ())]
    return any("null" in each.get("type", ()) or each.get("nullable") is True for each in (node, *options))


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both schemas as one."""
    found = {**first, **second}
    for name in ("properties", "$defs"):
        if name in first and name in second:
            found[name] = {**first[name], **second[name]}
    if "required" in first and "required" in second:
        found["required"] = list(dict.fromkeys([*first["required"], *second["required"]]))
    return found
