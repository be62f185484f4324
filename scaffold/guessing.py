"""A field's type and bounds, guessed from the values that were seen, or taken from a JSON Schema.

A guess leaves room: a value beyond its bound is a dead letter. It says in a comment what it rests on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from include.streams.contracts.types import Day, Identifier, Line, Text, UtcTime

MAX_LONG = 2**63 - 1
LENGTHS = (200, 500, 1_000, 4_000, 16_000, 64_000)
# A text may be so many times as long as the longest that was seen.
ROOM = 4
# Of the type in Python -> the column's type in PostgreSQL, as tables.py names it.
COLUMNS = {
    "str": "Text",
    "int": "BigInteger",
    "float": "Float",
    "bool": "Boolean",
    "datetime": "Timestamp",
    "date": "Date",
}
_TYPES: dict[str, TypeAdapter[Any]] = {
    "UtcTime": TypeAdapter(UtcTime),
    "Day": TypeAdapter(Day),
    "Identifier": TypeAdapter(Identifier),
}
_TEXTS: dict[str, TypeAdapter[str]] = {"Line": TypeAdapter(Line), "Text": TypeAdapter(Text)}
_PYTHON = {"UtcTime": "datetime", "Day": "date"}


@dataclass(frozen=True)
class Guess:
    """A field's type.

    Attributes:
        name: The type as it is written in a contract: "Line", "int", ...
        bounds: {argument of pydantic's Field: its text}.
        note: What the guess rests on, for a comment.
        is_known: Whether it comes from a schema, and is no guess.
        size: The guessed bound of a number's size or of a text's length; 0 without one.
    """

    name: str
    bounds: dict[str, str] = field(default_factory=dict)
    note: str = ""
    is_known: bool = False
    size: int = 0

    @property
    def python(self) -> str:
        """The type in Python: a key of COLUMNS."""
        return _PYTHON.get(self.name, self.name if self.name in COLUMNS else "str")


def guess(
    values: Sequence[Any], *, is_id: bool = False, schema: dict[str, Any] | None = None, name: str | None = None
) -> Guess | None:
    """A field's type.

    Args:
        values: The values that were seen, at least one.
        is_id: Whether the field is the event's id or the key: a short text without spaces, if it can be.
        schema: What the JSON Schema says of the field.
        name: The type, if it is known; the bounds are guessed then.

    Returns:
        The type; None if no type of a contract takes all values.
    """
    kinds = {bool if isinstance(value, bool) else type(value) for value in values}
    if kinds == {bool}:
        return Guess("bool", is_known=schema is not None)
    if kinds == {int}:
        return _number(values, schema or {}) if name == "float" else _integer(values, schema or {})
    if kinds <= {int, float}:
        return _number(values, schema or {})
    if kinds == {str}:
        return _text(values, is_id, schema or {}, name)
    return None


def agree(guesses: Sequence[Guess]) -> bool:
    """Whether guesses for one field, from several types of messages, differ by less than the room that each leaves."""
    sizes = [found.size for found in guesses]
    return len({found.name for found in guesses}) == 1 and max(sizes) <= 10 * min(sizes)


def _integer(values: Sequence[int], schema: dict[str, Any]) -> Guess | None:
    lowest, highest = min(values), max(values)
    if lowest < -MAX_LONG or highest > MAX_LONG:
        return None
    size = _power(max(abs(lowest), abs(highest)))
    bounds = {"ge": "0" if lowest >= 0 else f"-{_shown(size)}", "le": _shown(size)}
    return _numeric("int", bounds, f"{lowest} to {highest}", schema, size)


def _number(values: Sequence[float], schema: dict[str, Any]) -> Guess | None:
    if not all(map(math.isfinite, values)):
        # A number such as 1e999, which no contract accepts.
        return None
    lowest, highest = min(values), max(values)
    size = _power(int(max(abs(lowest), abs(highest))))
    bounds = {"ge": "0" if lowest >= 0 else f"-{_shown(size)}", "le": _shown(size)}
    return _numeric("float", bounds, f"{lowest:g} to {highest:g}", schema, size)


def _numeric(name: str, bounds: dict[str, str], note: str, schema: dict[str, Any], size: int) -> Guess:
    given = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    known = {argument: repr(schema[keyword]) for argument, keyword in given.items() if _is_number(schema.get(keyword))}
    lower, upper = known.keys() & {"ge", "gt"}, known.keys() & {"le", "lt"}
    # An exact bound replaces the guess of its side.
    rest = {n: v for n, v in bounds.items() if not (lower if n == "ge" else upper)}
    return Guess(name, {**rest, **known}, note, bool(lower and upper), size)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _power(number: int) -> int:
    """A power of ten with room: a thousand times as large, at most what a column of the database takes."""
    return min(10 ** (len(str(number)) + 3), MAX_LONG)


def _shown(size: int) -> str:
    return "2**63 - 1" if size == MAX_LONG else f"10**{len(str(size)) - 1}"


def _text(values: Sequence[str], is_id: bool, schema: dict[str, Any], known: str | None) -> Guess | None:
    longest, shortest = max(map(len, values)), min(map(len, values))
    seen = f"{longest} characters" if shortest == longest else f"{shortest} to {longest} characters"
    if schema.get("format") in ("date-time", "date", None) or not schema:
        for name in ("UtcTime", "Day"):
            if known in (None, name) and _takes(_TYPES[name], values):
                return Guess(name, note="a time with offset" if name == "UtcTime" else "a day", is_known=bool(schema))
    if known in (None, "Identifier") and is_id and longest <= 100 and _takes(_TYPES["Identifier"], values):
        return Guess("Identifier", note=seen)
    name = known or next((name for name, kind in _TEXTS.items() if _takes(kind, values)), None)
    room = next((length for length in LENGTHS if length >= longest * ROOM), None)
    given = schema.get("maxLength")
    if name is None or (room is None and given is None):
        return None
    bounds = {"max_length": f"{given or room:_}"}
    if schema.get("minLength"):
        bounds["min_length"] = str(schema["minLength"])
    return Guess(name, bounds, seen, given is not None, room or 0)


def _takes(adapter: TypeAdapter, values: Sequence[str]) -> bool:
    try:
        for value in values:
            adapter.validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def wider(size: int) -> int:
    """A limit of a message's bytes with room for larger ones: a power of two, 64 KiB to 64 MiB."""
    limit = 64 * 1024
    while limit < min(4 * size, 64 * 1024 * 1024):
        limit *= 2
    return limit
