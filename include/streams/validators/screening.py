"""SQL conditions that find the rows that may break a rule about a column.

Great Expectations judges a column in Python, which takes seconds for a million rows, and its import takes seconds more.
Nearly all rows keep nearly all rules. So DuckDB looks at all rows first, and Great Expectations gets only the rows that
may break the rule.

A condition may also find rows that keep the rule, but never misses a row that breaks it. A rule for which this cannot
be said has no condition, and Great Expectations gets all rows. `tests/unit/validators/test_screening.py` compares both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from include.streams.lake.engine import literal, quoted
from include.streams.validators.rules import Rule

_INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"})
# pandas treats their NaN as a missing value.
_FLOATS = frozenset({"FLOAT", "DOUBLE"})
_TEXT = "VARCHAR"
_SCALARS = _INTEGERS | _FLOATS | {_TEXT, "BOOLEAN", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"}
# Patterns with the same meaning in Python's engine and in RE2, apart from the end of the text: no named classes, no
# groups with options, no escapes but those of punctuation, and no dot outside of brackets.
_PLAIN_PATTERN = re.compile(
    r"(\[\^?([^\\\[\]^]|\\[\\\[\]^-])+\]|\\[.+/-]|[A-Za-z0-9_:/@# -]|[*+?^|]|\((?!\?)|\)|\{[0-9]{1,3}(,[0-9]{0,3})?\})*"
)

# RE2 refuses more, also when one repetition is inside another.
_MOST_REPETITIONS = 1000


def is_present(column: str, kind: str) -> str:
    """The SQL condition that a value is not missing.

    Args:
        column: The column's name.
        kind: The column's type in DuckDB.
    """
    name = quoted(column)
    return f"({name} is not null and not isnan({name}))" if kind in _FLOATS else f"({name} is not null)"


def can_count_repeated(rule: Rule, kind: str) -> bool:
    """Whether the rule is that each value occurs once, and DuckDB compares such values as Python does."""
    return rule.expectation == "ExpectColumnValuesToBeUnique" and not rule.arguments and kind in _INTEGERS | {_TEXT}


def may_break(rule: Rule, kind: str) -> str | None:
    """The SQL condition that holds at least for each row that breaks the rule.

    Args:
        rule: A rule about a column.
        kind: The column's type in DuckDB.

    Returns:
        The condition, which is never null; None if each row may break the rule.
    """
    if kind not in _SCALARS:
        return None
    present = is_present(rule.column, kind)
    if rule.expectation == "ExpectColumnValuesToNotBeNull":
        return f"(not {present})" if not rule.arguments else None
    build = _KEEPS.get(rule.expectation)
    keeps = build(quoted(rule.column), kind, rule.arguments) if build else None
    # Missing values keep each of these rules.
    return None if keeps is None else f"({present} and not ({keeps}))"


def _between(name: str, kind: str, arguments: Mapping[str, Any]) -> str | None:
    low, high = arguments.get("min_value"), arguments.get("max_value")
    known = {"min_value", "max_value", "strict_min"}
    if kind not in _INTEGERS | _FLOATS or set(arguments) - known or not _are_numbers(low, high):
        return None
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        # Great Expectations refuses such bounds.
        return None
    above = ">" if arguments.get("strict_min") else ">="
    conditions = [] if low is None else [f"{name} {above} {_number(low)}"]
    return " and ".join(conditions if high is None else [*conditions, f"{name} <= {_number(high)}"])


def _lengths(name: str, kind: str, arguments: Mapping[str, Any]) -> str | None:
    low, high = arguments.get("min_value"), arguments.get("max_value")
    if kind != _TEXT or set(arguments) - {"min_value", "max_value"} or not _are_numbers(low, high):
        return None
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return None
    bounds = [] if low is None else [f"length({name}) >= {_number(low)}"]
    return " and ".join(bounds if high is None else [*bounds, f"length({name}) <= {_number(high)}"])


def _in_set(name: str, kind: str, arguments: Mapping[str, Any]) -> str | None:
    values = arguments.get("value_set")
    if set(arguments) != {"value_set"} or not values:
        return None
    if kind == _TEXT and all(type(value) is str for value in values):
        return f"{name} in ({', '.join(map(literal, values))})"
    if kind in _INTEGERS and all(type(value) is int for value in values):
        return f"{name} in ({', '.join(map(str, values))})"
    return None


def _matches(name: str, kind: str, arguments: Mapping[str, Any]) -> str | None:
    pattern = arguments.get("regex")
    if kind != _TEXT or set(arguments) != {"regex"} or type(pattern) is not str:
        return None
    # \Z is the end of the text in Python, and \z in RE2.
    whole, end = (pattern[:-2], r"\z") if pattern.endswith(r"\Z") else (pattern, "")
    repetitions = math.prod(max(1, int(number)) for number in re.findall(r"[{,]([0-9]+)", whole))
    if not _PLAIN_PATTERN.fullmatch(whole) or repetitions > _MOST_REPETITIONS:
        return None
    try:
        re.compile(whole)
    except re.error:
        return None
    # SQL cannot contain every character.
    ascii_only = re.sub(r"[^ -~]", lambda match: f"\\x{{{ord(match[0]):x}}}", whole)
    return f"regexp_matches({name}, {literal(ascii_only + end)})"


_KEEPS = {
    "ExpectColumnValuesToBeBetween": _between,
    "ExpectColumnValueLengthsToBeBetween": _lengths,
    "ExpectColumnValuesToBeInSet": _in_set,
    "ExpectColumnValuesToMatchRegex": _matches,
}


def _are_numbers(*values: Any) -> bool:
    return all(value is None or (type(value) in (int, float) and value == value) for value in values)


def _number(value: float) -> str:
    return str(value) if type(value) is int else f"'{value!r}'::double"
