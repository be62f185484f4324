"""JSON Schemas derived from the contracts, for readers that are not Python, and for review.

They are committed: a change of a contract shows up in review as a change of its schema, and can be compared
with the last committed one (`include.contracts.compatibility`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from include.contracts.topics import Registry, Topic

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KEY_KEYWORD = "x-kafka-key"  # the field that is the key decides the order of messages: part of the contract


class _WithoutFieldTitles(GenerateJsonSchema):
    """The field's name says it; a title derived from the name is noise in a review."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def file_name(topic: Topic) -> str:
    """`orders.v1.json`; a topic that is named for its version, `orders.v2`, does not say so twice."""
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
    """Make the files in `folder` what the registry says. Returns what changed, one line each."""
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
    """What is not as the registry says, one line each; empty if all is."""
    return [
        f"{name}: " + ("no topic has this contract" if wanted is None else "missing" if found is None else "differs")
        for name, wanted, found in _differences(registry, folder)
    ]


def unbounded(document: dict[str, Any]) -> list[str]:
    """The paths in a JSON Schema whose values have no limit: strings, numbers, arrays, and open objects.

    Unbounded values pass a contract and break what is behind it: 2**70 is an integer, but not in a database.
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
    """(file, wanted text, found text) of every file that is not as wanted."""
    wanted = {file_name(topic): text(topic) for topic in registry}
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            yield name, wanted.get(name), found.get(name)


def _without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}
