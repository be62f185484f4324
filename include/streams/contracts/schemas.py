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

from include.streams.contracts.topics import Registry, Topic

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KEY_KEYWORD = "x-kafka-key"  # part of the contract, because the key field decides the order of messages


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out titles of fields: a title derived from the field's name is noise in a review."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def file_name(topic: Topic) -> str:
    """The schema's file name: `orders.v1.json` for `orders`, `orders.v2.json` for `orders.v2`."""
    suffix = f".v{topic.version}"
    return f"{topic.name.removesuffix(suffix)}{suffix}.json"


def schema(topic: Topic) -> dict[str, Any]:
    """The JSON Schema of the topic's messages."""
    derived = topic.contract.model_json_schema(schema_generator=_WithoutFieldTitles)
    head = {"$schema": DIALECT, "title": topic.contract.contract_name}
    described = {"description": topic.description} if topic.description else {}
    return {**head, **described, KEY_KEYWORD: topic.key, **_without(derived, "title", "description")}


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
    return list(_unbounded(document, "", document.get("$defs", {})))


def _unbounded(node: dict[str, Any], path: str, definitions: dict[str, Any]) -> Iterator[str]:
    if "$ref" in node:
        yield from _unbounded(definitions[node["$ref"].rsplit("/", 1)[1]], path, definitions)
        return
    for alternatives in ("anyOf", "oneOf", "allOf"):
        for child in node.get(alternatives, ()):
            yield from _unbounded(child, path, definitions)
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
        yield from _unbounded(node.get("items", {}), f"{path}[]", definitions)
    if kind == "object":
        if node.get("additionalProperties") is not False:
            yield f"{path or '(message)'}: an object needs fixed fields"
        for name, child in node.get("properties", {}).items():
            yield from _unbounded(child, f"{path}.{name}".lstrip("."), definitions)
    if kind is None and not {"anyOf", "oneOf", "allOf"} & node.keys():
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
