"""JSON Schemas derived from the contracts, for programs in other languages, and for review.

They are committed, so a change of a contract appears in review as a change of its schema. It can also be compared
with the last committed schema (`include.streams.contracts.compatibility`).
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
# Of foreign contracts: the schema describes the picked part of the payload, and all objects are open.
FOREIGN_KEYWORD = "x-foreign"
FIELD_KEYWORD = "x-field"  # the name of a picked value in the contract
HEADERS_KEYWORD = "x-headers"  # the picked headers, as a schema of an object
# Of a union: where a message names its type, and {type: schema}.
CHOSEN_BY_KEYWORD, TYPES_KEYWORD = "x-chosen-by", "x-types"


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out titles of fields: a title derived from the field's name is noise in a review."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def file_name(topic: Topic) -> str:
    """The schema's file name: `orders.v1.json` for `orders`, `orders.v2.json` for `orders.v2`."""
    suffix = f".v{topic.version}"
    return f"{topic.name.removesuffix(suffix)}{suffix}.json"


def schema(topic: Topic) -> dict[str, Any]:
    """The JSON Schema of the topic's messages; for somebody else's topic, of the part that is picked from them."""
    head: dict[str, Any] = {"$schema": DIALECT, "title": topic.contract_name}
    if topic.description:
        head["description"] = topic.description
    head[KEY_KEYWORD] = topic.key
    contract = topic.contract
    if isinstance(contract, ContractUnion):
        types = {kind: {"title": one.contract_name, **_picked(one)} for kind, one in sorted(contract.contracts.items())}
        chosen = {CHOSEN_BY_KEYWORD: str(contract.by), TYPES_KEYWORD: types}
        return {**head, FOREIGN_KEYWORD: True, **_Node().object(), **chosen}
    if issubclass(contract, ForeignContract):
        return {**head, FOREIGN_KEYWORD: True, **_picked(contract)}
    return {**head, **_without(_derived(contract), "title", "description")}


def _derived(contract: Any) -> dict[str, Any]:
    return contract.model_json_schema(schema_generator=_WithoutFieldTitles)


class _Node:
    """A place in a payload: the schemas of the fields that are picked here, and the places below it."""

    def __init__(self) -> None:
        self.leaves: list[dict[str, Any]] = []
        self.children: dict[str, _Node] = {}
        self.is_required = False

    def schema(self) -> dict[str, Any]:
        parts = list(self.leaves)
        if self.children:
            inside = self.object()
            parts.append(inside if self.is_required else {"anyOf": [inside, {"type": "null"}]})
        return parts[0] if len(parts) == 1 else {"allOf": parts}

    def object(self) -> dict[str, Any]:
        required = [name for name, child in self.children.items() if child.is_required]
        properties = {name: child.schema() for name, child in self.children.items()}
        found = {"type": "object", "additionalProperties": True, "properties": properties}
        return {**found, "required": required} if required else found


def _picked(contract: type[ForeignContract]) -> dict[str, Any]:
    """The schema of the payload's picked part, and of the picked headers."""
    derived = resolved(_derived(contract))
    payload, headers = _Node(), _Node()
    for name, source in sources_of(contract).items():
        is_required = name in derived.get("required", ())
        node = payload if isinstance(source, At) else headers
        for step in source.names if isinstance(source, At) else (source.name,):
            node = node.children.setdefault(step, _Node())
            node.is_required |= is_required
        node.leaves.append({**derived["properties"][name], FIELD_KEYWORD: name})
    return {**payload.object(), **({HEADERS_KEYWORD: headers.object()} if headers.children else {})}


def resolved(document: dict[str, Any]) -> dict[str, Any]:
    """The schema with every $ref replaced by its definition, so that moving a definition is not a change."""
    definitions = document.get("$defs", {})

    def resolve(node: Any, inside: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [resolve(item, inside) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in inside:
            around = {name: value for name, value in node.items() if name != "$ref"}
            target = definitions[reference.rsplit("/", 1)[1]]
            return resolve({**target, **around}, (*inside, reference))
        return {name: resolve(value, inside) for name, value in node.items() if name != "$defs"}

    return resolve(document, ())


def text(topic: Topic) -> str:
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
    for name, wanted, found in _differences(registry, folder):
        if wanted is None:
            (folder / name).unlink()
            changed.append(f"removed {name}: no topic has this contract any more")
        else:
            (folder / name).write_text(wanted, encoding="utf-8")
            changed.append(f"{'wrote' if found is None else 'rewrote'} {name}")
    return changed


def stale(registry: Registry, folder: Path) -> list[str]:
    """One line for each file in `folder` that does not match the registry; empty if all match."""
    return [
        f"{name}: " + ("no topic has this contract" if wanted is None else "missing" if found is None else "differs")
        for name, wanted, found in _differences(registry, folder)
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
    parts = {"": document, **{f"{kind}: ": one for kind, one in document.get(TYPES_KEYWORD, {}).items()}}
    return [
        f"{kind}{line}"
        for kind, one in parts.items()
        for part, path in ((one, ""), (one.get(HEADERS_KEYWORD, {"enum": []}), "header "))
        for line in _unbounded(part, path, is_open)
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
        # What a foreign contract does not pick may be anything, but it cannot pick an object as a whole.
        picks = is_open and node.get("additionalProperties") is True and "properties" in node
        if node.get("additionalProperties") is not False and not picks:
            yield f"{path or '(message)'}: an object needs fixed fields"
        for name, child in node.get("properties", {}).items():
            inner = f"{path}{name}" if path.endswith(" ") else f"{path}.{name}".lstrip(".")
            yield from _unbounded(child, inner, is_open)
    if kind is None and not {"anyOf", "oneOf", "allOf", "$ref"} & node.keys():
        yield f"{path or '(message)'}: any value is allowed"


def _differences(registry: Registry, folder: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """(file name, wanted text, found text) of every file that differs; None where there is no text."""
    wanted = {file_name(topic): text(topic) for topic in registry}
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            yield name, wanted.get(name), found.get(name)


def _without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}
