"""The reasons for which a message breaks its contract.

A violation is logged, stored in headers of a dead-letter record and shown to operators. So its text must never contain
a value of the message: only field paths, error types and sizes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

MAX_FIELDS_IN_DETAIL = 5  # enough to find the cause; a hostile message can have thousands of wrong fields

# The framing of schema registry serializers: a zero byte, a schema id of four bytes, then usually no JSON.
FRAMED = "begins with a zero byte and four more, as schema registries frame messages"


class Reason(StrEnum):
    """Why a message becomes a dead letter. If several reasons apply, the first one in this order counts."""

    tombstone = "tombstone"
    too_large = "too_large"
    # Of topics whose schemas are in a registry: the value has no id of a schema, the registry does not know the id, the
    # schema is not the topic's, or the bytes do not fit it.
    no_schema_id = "no_schema_id"
    unknown_schema = "unknown_schema"
    foreign_schema = "foreign_schema"
    not_decodable = "not_decodable"
    not_utf8 = "not_utf8"
    not_json = "not_json"
    wrong_version = "wrong_version"
    missing_field = "missing_field"
    unknown_field = "unknown_field"
    wrong_type = "wrong_type"
    out_of_bounds = "out_of_bounds"
    # The message meets its contract, but an earlier message has the same event id and other content.
    conflict = "conflict"
    # The consumer's effect has rejected the message, or the contract's own code has failed.
    rejected = "rejected"


class ContractViolation(Exception):
    """A message breaks its contract.

    Attributes:
        reason: The first reason that applies, in the order of `Reason`. Exceptions: a JSON value that is not an object
            has no version and no fields, so it is `wrong_type`. So is such a value on a foreign contract's path, before
            the path's end.
        detail: A short text that is safe to log.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        # The default would call the class with one argument, the joined text. That fails when a process pool passes the
        # exception to another process.
        return type(self), (self.reason, self.detail)


def explain(value: bytes, version: int, error: ValidationError) -> ContractViolation:
    """Find the reason why a value is not valid.

    It parses the value again, which is affordable for invalid values.

    Args:
        value: The message's value.
        version: The version of the contract.
        error: The error of the validation.

    Returns:
        The violation, for the caller to raise.
    """
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as decode_error:
        return ContractViolation(Reason.not_utf8, f"invalid UTF-8 at byte {decode_error.start}{framing(value)}")
    try:
        document = from_json(value, allow_inf_nan=False)
    except ValueError as json_error:  # its text has a position, but no content of the message
        return ContractViolation(Reason.not_json, str(json_error)[:200] + framing(value))
    if not isinstance(document, dict):
        return ContractViolation(Reason.wrong_type, f"a JSON {json_type(document)}, not an object")
    if has_duplicate_keys(value):
        return duplicate_keys()
    actual = document.get("version", version)
    if type(actual) is not int or actual != version:  # True == 1 and 1.0 == 1 in Python
        shown = actual if type(actual) is int and abs(actual) < 10_000 else "something else"
        return ContractViolation(Reason.wrong_version, f"expected version {version}, found {shown}")
    return from_errors(error)


def framing(value: bytes) -> str:
    """A hint for a detail if the value looks like a message of a schema registry; empty if it does not.

    Args:
        value: The message's value.
    """
    return f"; {FRAMED}" if value[:1] == b"\0" and len(value) > 5 else ""


def from_errors(error: ValidationError, sources: Mapping[str, object] | None = None) -> ContractViolation:
    """The violation that pydantic's errors describe.

    Args:
        error: The error of the validation.
        sources: {field: its name in the detail}; other fields have their own names there.

    Returns:
        The violation, for the caller to raise.
    """
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    ordered = sorted((_ORDER.index(_reason(item)), _path(item["loc"], sources or {}), item["type"]) for item in errors)
    shown = [f"{path} ({kind})" for _, path, kind in ordered[:MAX_FIELDS_IN_DETAIL]]
    if len(ordered) > len(shown):
        shown.append(f"and {len(ordered) - len(shown)} more")
    return ContractViolation(_ORDER[ordered[0][0]], ", ".join(shown))


def duplicate_keys() -> ContractViolation:
    """The violation by a name that occurs twice in one object."""
    return ContractViolation(Reason.not_json, "a name occurs twice in one object")


def has_duplicate_keys(value: bytes) -> bool:
    """Whether a name occurs twice in any object of this JSON text.

    RFC 8259 leaves the meaning to the reader: pydantic uses the last value, other engines use the first.

    Args:
        value: A valid JSON text in UTF-8.
    """

    class Duplicate(Exception):
        pass

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise Duplicate

    try:  # numbers stay text, because converting a number with thousands of digits raises
        json.loads(value.decode(), object_pairs_hook=unique, parse_int=str, parse_float=str)
    except Duplicate:
        return True
    return False


_ORDER = [Reason.missing_field, Reason.unknown_field, Reason.wrong_type, Reason.out_of_bounds]
_WRONG_TYPES = {"not_an_integer", "not_iso_date", "not_rfc3339", "string_unicode", "timezone_aware"}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def _reason(item: ErrorDetails) -> Reason:
    kind = item["type"]
    if kind == "missing":
        return Reason.missing_field
    if kind == "extra_forbidden":
        return Reason.unknown_field
    if kind in _WRONG_TYPES or kind.endswith(("_type", "_parsing")):
        return Reason.wrong_type
    return Reason.out_of_bounds


def _path(location: Sequence[int | str], sources: Mapping[str, object]) -> str:
    """The field's path. The name of an unknown field is text from the sender, so only a plain name is shown."""
    parts = [
        str(part) if isinstance(part, int) or _PLAIN_NAME.fullmatch(part) else "(name not shown)" for part in location
    ]
    if location and location[0] in sources:
        parts[0] = str(sources[str(location[0])])
    return ".".join(parts) or "(message)"


def json_type(document: object) -> str:
    """JSON's name of a value's type.

    Args:
        document: A parsed JSON value that is not an object.
    """
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(document), "number")
