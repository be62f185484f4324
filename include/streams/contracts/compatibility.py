"""Detect changes of a contract that break running programs.

Producers and consumers of a topic are never deployed at the same moment. Both check the contract strictly, and old
messages stay in the topic. So a version allows only one kind of change: a new optional field, deployed to the consumers
first and then to the producers. Every other change needs a new version, which has its own topic. Descriptions may
change freely.

The producers of a foreign contract's topic do not know the contract. One more optional field, a wider bound and one
more type of a union are compatible changes: messages that were valid stay valid. Every other change needs a higher
version of the contract.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from include.streams.contracts import schemas
from include.streams.contracts.topics import Registry

Schema = dict[str, Any]


class Rule(StrEnum):
    """The kind of a change; all kinds but the first break the contract."""

    optional_field_added = "optional_field_added"
    field_removed = "field_removed"
    required_field_added = "required_field_added"
    field_made_required = "field_made_required"
    field_made_optional = "field_made_optional"
    null_forbidden = "null_forbidden"
    null_allowed = "null_allowed"
    type_changed = "type_changed"
    enum_value_removed = "enum_value_removed"
    enum_value_added = "enum_value_added"
    bound_narrowed = "bound_narrowed"
    bound_widened = "bound_widened"
    pattern_changed = "pattern_changed"
    default_changed = "default_changed"
    key_changed = "key_changed"
    name_changed = "name_changed"
    constraint_changed = "constraint_changed"
    # Of unions of foreign contracts.
    type_added = "type_added"
    type_removed = "type_removed"
    union_changed = "union_changed"


# After these changes, a foreign contract still accepts all messages that it accepted before, and the columns of its
# rows stay the same.
_WIDENING = {Rule.optional_field_added, Rule.bound_widened, Rule.enum_value_added, Rule.type_added}


@dataclass(frozen=True)
class Change:
    """A change between two schemas of a contract.

    Attributes:
        rule: The kind of the change.
        path: The changed field, such as "address.street" or "items[]"; empty for the message as a whole.
        detail: What has changed, for people.
        is_foreign: Whether both schemas are of a foreign contract.
    """

    rule: Rule
    path: str
    detail: str
    is_foreign: bool = False

    @property
    def breaking(self) -> bool:
        """Whether the change breaks programs that rely on the earlier schema."""
        return self.rule not in (_WIDENING if self.is_foreign else {Rule.optional_field_added})

    def __str__(self) -> str:
        return f"{self.rule} at {self.path or '(message)'}: {self.detail}"


@dataclass(frozen=True)
class Break:
    """A forbidden change of a contract on which other programs already rely.

    Attributes:
        file: The name of the schema's file.
        commit: The commit with the earlier schema.
        change: The change.
    """

    file: str
    commit: str
    change: Change

    def __str__(self) -> str:
        remedy = "Only an optional field may be added within a version: make a new version of the topic instead"
        if self.change.rule is Rule.name_changed:
            remedy = (
                "Consumers identify the events that they have handled by this name: declare the former name as "
                "`contract_name` in the class"
            )
        elif self.change.is_foreign:
            remedy = (
                "Messages that were valid may become dead letters, or the clean table may lack a column: if you intend "
                "that, raise the version (`contract_version` of the class, `version` of a union)"
            )
        return f"{self.file}, compared with commit {self.commit}: {self.change}. {remedy}"


def compare(old: Schema, new: Schema) -> list[Change]:
    """All changes between two JSON Schemas of a contract.

    Args:
        old: The earlier schema, from `schemas.schema`.
        new: The later schema.

    Returns:
        The changes, in the order of the fields of `old`; new fields come last.
    """
    is_foreign = bool(old.get(schemas.FOREIGN_KEYWORD) and new.get(schemas.FOREIGN_KEYWORD))
    old, new = schemas.resolved(old), schemas.resolved(new)
    if (schemas.TYPES_KEYWORD in old) != (schemas.TYPES_KEYWORD in new):
        return [Change(Rule.union_changed, "", "one contract on one side only", is_foreign)]
    changes = list(_compare(old, new, ""))
    if old.get(schemas.KEY_KEYWORD) != new.get(schemas.KEY_KEYWORD):
        detail = f"{old.get(schemas.KEY_KEYWORD)!r} -> {new.get(schemas.KEY_KEYWORD)!r}"
        changes.append(Change(Rule.key_changed, "", detail))
    if old.get("title") != new.get("title"):
        changes.append(Change(Rule.name_changed, "", f"{old.get('title')!r} -> {new.get('title')!r}"))
    changes += _compare_types(old.get(schemas.TYPES_KEYWORD, {}), new.get(schemas.TYPES_KEYWORD, {}))
    return [replace(change, is_foreign=is_foreign) for change in changes]


def breaks_since(registry: Registry, folder: Path, commit: str) -> list[Break]:
    """The forbidden changes of the registry's contracts since a commit.

    Args:
        registry: The topics with their present contracts.
        folder: The folder of the committed schemas.
        commit: The commit to compare with. Topics without a schema in this commit are not compared.
    """
    breaks = []
    for topic in registry:
        name = schemas.file_name(topic)
        committed = _committed(folder, name, commit)
        if committed is not None:
            changes = compare(committed, schemas.schema(topic))
            breaks += [Break(name, commit, change) for change in changes if change.breaking]
    return breaks


def baselines(folder: Path) -> list[str]:
    """The commits with which the contracts must be compatible.

    Args:
        folder: A folder in the git repository.

    Returns:
        On a branch, its merge base with the main branch. On the main branch, the last commit and its parent: with the
        last commit only, a change would no longer be checked after it is committed. Empty without a git history.
    """
    head = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if head is None:
        return []
    for main in ("origin/HEAD", "origin/main", "main"):
        base = _git(folder, "merge-base", "HEAD", main)
        if base and base != head:
            return [base]
    before = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^1^{commit}")
    return [head, before] if before else [head]


# The direction in which each keyword becomes narrower: +1 when a larger value is narrower.
_BOUNDS = {
    "minimum": 1,
    "exclusiveMinimum": 1,
    "minLength": 1,
    "minItems": 1,
    "maximum": -1,
    "exclusiveMaximum": -1,
    "maxLength": -1,
    "maxItems": -1,
}
_COMPARED_APART = {"type", "properties", "required", "items", "enum", "const", "pattern", "default", *_BOUNDS}
_COMPARED_APART |= {schemas.HEADERS_KEYWORD, schemas.TYPES_KEYWORD}
_WITHOUT_MEANING = {"$schema", "$defs", "title", "description", "examples", "deprecated", schemas.KEY_KEYWORD}


def _compare(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    old, old_null = _split_null(old)
    new, new_null = _split_null(new)
    if old_null and not new_null:
        yield Change(Rule.null_forbidden, path, "null was allowed")
    if new_null and not old_null:
        yield Change(Rule.null_allowed, path, "null was not allowed")
    if old.get("type") != new.get("type"):
        yield Change(Rule.type_changed, path, f"{old.get('type')} -> {new.get('type')}")
        return
    yield from _compare_values(old, new, path)
    yield from _compare_bounds(old, new, path)
    if old.get("pattern") != new.get("pattern"):
        yield Change(Rule.pattern_changed, path, f"{old.get('pattern')!r} -> {new.get('pattern')!r}")
    if _text(old.get("default")) != _text(new.get("default")):
        yield Change(Rule.default_changed, path, f"{old.get('default')!r} -> {new.get('default')!r}")
    for keyword in sorted((old.keys() | new.keys()) - _COMPARED_APART - _WITHOUT_MEANING):
        if _text(old.get(keyword)) != _text(new.get(keyword)):
            yield Change(Rule.constraint_changed, path, keyword)
    if "items" in old or "items" in new:
        yield from _compare(old.get("items", {}), new.get("items", {}), f"{path}[]")
    yield from _compare_fields(old, new, path)
    if schemas.HEADERS_KEYWORD in old or schemas.HEADERS_KEYWORD in new:
        none: Schema = {"type": "object", "additionalProperties": True}
        yield from _compare(
            old.get(schemas.HEADERS_KEYWORD, none), new.get(schemas.HEADERS_KEYWORD, none), f"{path} headers".lstrip()
        )


def _compare_types(old: Schema, new: Schema) -> Iterator[Change]:
    for kind in sorted(old.keys() - new.keys()):
        yield Change(Rule.type_removed, kind, "its messages would be counted as not wanted")
    for kind in sorted(new.keys() - old.keys()):
        yield Change(Rule.type_added, kind, "its messages were counted as not wanted")
    for kind in sorted(old.keys() & new.keys()):
        if old[kind].get("title") != new[kind].get("title"):
            yield Change(Rule.name_changed, kind, f"{old[kind].get('title')!r} -> {new[kind].get('title')!r}")
        for change in _compare(old[kind], new[kind], ""):
            yield replace(change, path=f"{kind}: {change.path}")


def _compare_fields(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    old_fields, new_fields = old.get("properties", {}), new.get("properties", {})
    for name, field in old_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        if name not in new_fields:
            yield Change(Rule.field_removed, inner, "messages of the past and running producers have it")
            continue
        was_required, is_required = name in old.get("required", ()), name in new.get("required", ())
        if is_required and not was_required:
            yield Change(Rule.field_made_required, inner, "messages of the past may lack it")
        if was_required and not is_required:
            yield Change(Rule.field_made_optional, inner, "running consumers need it")
        yield from _compare(field, new_fields[name], inner)
    for name in new_fields.keys() - old_fields.keys():
        inner = f"{path}.{name}".lstrip(".")
        if name in new.get("required", ()):
            yield Change(Rule.required_field_added, inner, "messages of the past lack it")
        else:
            yield Change(Rule.optional_field_added, inner, "deploy the consumers first, then the producers")


def _compare_values(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    old_values, new_values = _allowed_values(old), _allowed_values(new)
    if old_values is None and new_values is None:
        return
    if old_values is None or new_values is None:
        rule = Rule.bound_narrowed if old_values is None else Rule.bound_widened
        yield Change(rule, path, "a fixed set of values on one side only")
        return
    for value in sorted(old_values - new_values):
        yield Change(Rule.enum_value_removed, path, value)
    for value in sorted(new_values - old_values):
        yield Change(Rule.enum_value_added, path, value)


def _compare_bounds(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    for keyword, direction in _BOUNDS.items():
        before, after = old.get(keyword), new.get(keyword)
        if before == after:
            continue
        narrower = before is None or (after is not None and (after - before) * direction > 0)
        rule = Rule.bound_narrowed if narrower else Rule.bound_widened
        yield Change(rule, path, f"{keyword} {before} -> {after}")


def _allowed_values(node: Schema) -> set[str] | None:
    if "const" in node:
        return {_text(node["const"])}
    return {_text(value) for value in node["enum"]} if "enum" in node else None


def _split_null(node: Schema) -> tuple[Schema, bool]:
    """The type in anyOf [type, null], merged with the keywords next to anyOf, and whether null is allowed."""
    alternatives = node.get("anyOf")
    if not alternatives:
        return node, node.get("type") == "null"
    others = [item for item in alternatives if item != {"type": "null"}]
    other_keywords = {name: value for name, value in node.items() if name != "anyOf"}
    is_nullable = len(others) < len(alternatives)
    merged = {**others[0], **other_keywords} if len(others) == 1 else {**other_keywords, "anyOf": others}
    return merged, is_nullable


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _committed(folder: Path, name: str, commit: str) -> Schema | None:
    """The schema in a commit; None if the commit does not have it."""
    content = _git(folder, "show", f"{commit}:./{name}")
    return None if content is None else json.loads(content)


def _git(folder: Path, *arguments: str) -> str | None:
    # A checkout mounted into a container belongs to another user, which git refuses by default.
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:  # an image without git
        return None
    return process.stdout.strip() if process.returncode == 0 else None
