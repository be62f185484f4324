"""JSON Schemas derived from the contracts, for programs in other languages, and for review.

They are committed. So a change of a contract appears in review as a change of its schema, and can be compared with the
last committed schema (`include.streams.contracts.compatibility`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from include.streams.contracts.foreign import At, ContractUnion, ForeignContract, sources_of
from include.streams.contracts.topics import Registry, Topic

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KEY_KEYWORD = "x-kafka-key"  # part of the contract, because the key field decides the order of messages
# For foreign contracts: the schema describes the picked part of the payload, and all objects are open.
FOREIGN_KEYWORD = "x-foreign"
FIELD_KEYWORD = "x-field"  # the name of the contract's field for a picked value
HEADERS_KEYWORD = "x-headers"  # the picked headers, as a schema of an object
# For a union: the source of a message's type, and {type: schema}.
CHOSEN_BY_KEYWORD, TYPES_KEYWORD = "x-chosen-by", "x-types"


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out titles of fields: a title derived from the field's name is noise in a review."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def file_name(topic: Topic) -> str:
    """The schema's file name: `orders.v1.json` for `orders`, `orders.v2.json` for `orders.v2`.

    Args:
        topic: The topic.
    """
    suffix = f".v{topic.version}"
    return f"{topic.name.removesuffix(suffix)}{suffix}.json"


def schema(topic: Topic) -> dict[str, Any]:
    """The JSON Schema of the topic's messages; for a foreign contract, of the part that it picks from them.

    Args:
        topic: The topic.
    """
    head: dict[str, Any] = {"$schema": DIALECT, "title": topic.contract_name}
    if topic.description:
        head["description"] = topic.description
    head[KEY_KEYWORD] = topic.key
    contract = topic.contract
    if isinstance(contract, ContractUnion):
        types = {
            kind: {"title": foreign.contract_name, **_picked(foreign)}
            for kind, foreign in sorted(contract.contracts.items())
        }
        chosen = {CHOSEN_BY_KEYWORD: str(contract.by), TYPES_KEYWORD: types}
        return {**head, FOREIGN_KEYWORD: True, **_Node().object(), **chosen}
    if issubclass(contract, ForeignContract):
        return {**head, FOREIGN_KEYWORD: True, **_picked(contract)}
    return {**head, **_without(_derived(contract), "title", "description")}


def _derived(contract: Any) -> dict[str, Any]:
    return contract.model_json_schema(schema_generator=_WithoutFieldTitles)


class _Node:
    """A member of a payload: the schemas of the fields that are picked from it, and its own members."""

    def __init__(self) -> None:
        self.fields: list[dict[str, Any]] = []
        self.children: dict[str, _Node] = {}
        self.is_required = False

    def schema(self) -> dict[str, Any]:
        parts = list(self.fields)
        if self.children:
            members = self.object()
            parts.append(members if self.is_required else {"anyOf": [members, {"type": "null"}]})
        return parts[0] if len(parts) == 1 else {"allOf": parts}

    def object(self) -> dict[str, Any]:
        required = [name for name, child in self.children.items() if child.is_required]
        properties = {name: child.schema() for name, child in self.children.items()}
        schema = {"type": "object", "additionalProperties": True, "properties": properties}
        return {**schema, "required": required} if required else schema


def _picked(contract: type[ForeignContract]) -> dict[str, Any]:
    """The schema of the payload's picked part, and of the picked headers."""
    derived = resolved(_derived(contract))
    payload, headers = _Node(), _Node()
    for name, source in sources_of(contract).items():
        is_required = name in derived.get("required", ())
        node = payload if isinstance(source, At) else headers
        for member in source.names if isinstance(source, At) else (source.name,):
            node = node.children.setdefault(member, _Node())
            node.is_required |= is_required
        node.fields.append({**derived["properties"][name], FIELD_KEYWORD: name})
    return {**payload.object(), **({HEADERS_KEYWORD: headers.object()} if headers.children else {})}


def resolved(document: dict[str, Any]) -> dict[str, Any]:
    """The schema with every $ref replaced by its definition, so that a moved definition does not count as a change.

    Args:
        document: A JSON Schema.

    Returns:
        A copy without `$defs`. References inside their own definitions stay.
    """
    definitions = document.get("$defs", {})

    def resolve(node: Any, resolving: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [resolve(item, resolving) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in resolving:
            other_keywords = {name: value for name, value in node.items() if name != "$ref"}
            target = definitions[reference.rsplit("/", 1)[1]]
            return resolve({**target, **other_keywords}, (*resolving, reference))
        return {name: resolve(value, resolving) for name, value in node.items() if name != "$defs"}

    return resolve(document, ())


def text(topic: Topic) -> str:
    """The content of the schema's file.

    Args:
        topic: The topic.
    """
    return json.dumps(schema(topic), indent=2, ensure_ascii=False) + "\n"


def write(registry: Registry, folder: Path) -> list[str]:
    """Write, rewrite and delete the files in `folder` so that they match the registry.

    Args:
        registry: The topics with their contracts.
        folder: The folder of the schemas. A `.json` file without a topic is deleted.

    Returns:
        One line for each changed file.
    """
    changed = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, wanted, existing in _differences(registry, folder):
        if wanted is None:
            (folder / name).unlink()
            changed.append(f"removed {name}: no topic has this contract any more")
        else:
            (folder / name).write_text(wanted, encoding="utf-8")
            changed.append(f"{'wrote' if existing is None else 'rewrote'} {name}")
    return changed


def stale(registry: Registry, folder: Path) -> list[str]:
    """Find files that do not match the registry.

    Args:
        registry: The topics with their contracts.
        folder: The folder of the schemas.

    Returns:
        One line for each such file; empty if all match.
    """
    return [
        f"{name}: " + ("no topic has this contract" if wanted is None else "missing" if existing is None else "differs")
        for name, wanted, existing in _differences(registry, folder)
    ]


def unbounded(document: dict[str, Any]) -> list[str]:
    """The paths in a JSON Schema whose values have no limit: strings, numbers, arrays, and open objects.

    Unbounded values pass a contract and fail in later steps: 2**70 is a valid integer in JSON, but not in a database.

    Args:
        document: A JSON Schema, from `schema`.

    Returns:
        One line for each path, with the missing limit.
    """
    is_open = bool(document.get(FOREIGN_KEYWORD))
    document = resolved(document)
    parts = {"": document, **{f"{kind}: ": part for kind, part in document.get(TYPES_KEYWORD, {}).items()}}
    return [
        f"{kind}{line}"
        for kind, part in parts.items()
        for node, path in ((part, ""), (part.get(HEADERS_KEYWORD, {"enum": []}), "header "))
        for line in _unbounded(node, path, is_open)
    ]


def _unbounded(node: dict[str, Any], path: str, is_open: bool) -> Iterator[str]:
    for alternatives in ("anyOf", "oneOf", "allOf"):
        for child in node.get(alternatives, ()):
            yield from _unbounded(child, path, is_open)
    if "enum" in node or "const" in node:
        return
    kind = node.get("type")
    if kind == "string" and "maxLength" not in node and node.get("format") not in ("date-time", "date"):
        yield f"{path}: a string needs max_length"
    if kind in ("integer", "number"):
        if "minimum" not in node and "exclusiveMinimum" not in node:
            yield f"{path}: a number needs a lower bound"
        if "maximum" not in node and "exclusiveMaximum" not in node:
            yield f"{path}: a number needs an upper bound"
    if kind == "array":
        if "maxItems" not in node:
            yield f"{path}: an array needs max_length"
        yield from _unbounded(node.get("items", {}), f"{path}[]", is_open)
    if kind == "object":
        # An object that a foreign contract passes through may have any other members. But the contract cannot pick such
        # an object as a whole.
        picks = is_open and node.get("additionalProperties") is True and "properties" in node
        if node.get("additionalProperties") is not False and not picks:
            yield f"{path or '(message)'}: an object needs fixed fields"
        for name, child in node.get("properties", {}).items():
            inner = f"{path}{name}" if path.endswith(" ") else f"{path}.{name}".lstrip(".")
            yield from _unbounded(child, inner, is_open)
    if kind is None and not {"anyOf", "oneOf", "allOf", "$ref"} & node.keys():
        yield f"{path or '(message)'}: any value is allowed"


def _differences(registry: Registry, folder: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """(file name, wanted text, existing text) of every file that differs; None where there is no text."""
    wanted = {file_name(topic): text(topic) for topic in registry}
    existing = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    for name in sorted(wanted.keys() | existing.keys()):
        if wanted.get(name) != existing.get(name):
            yield name, wanted.get(name), existing.get(name)


def _without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}
