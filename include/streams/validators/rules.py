"""Rules about a whole set of rows: declared next to the contract in plain Python, checked by `validators.sets`.

A contract describes one row. These rules describe properties that only a set of rows has: each event occurs once, the
number of rows is similar to earlier runs, every counter still rises. This module imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from include.streams.contracts import Contract
from include.streams.operations.alarm_kinds import KindWithRunbook

# The default factor for bounds from earlier runs, in both directions: consumption differs by a factor of five between
# night and day, and a broken source differs by far more.
FACTOR = 5.0
# The unit of a measure that is a share from 0 to 1; it is displayed multiplied by 100.
PERCENT = "%"


class Severity(StrEnum):
    """The effect of a broken rule: `critical` stops the run, `warning` is only shown."""

    critical = "critical"
    warning = "warning"


@dataclass(frozen=True)
class Rule:
    """A rule about the values of one column. Null values are ignored, except by `not_null`.

    Attributes:
        expectation: The class name of an expectation of Great Expectations.
        column: The column's name.
        expected: The rule as text, for people.
        arguments: The arguments of the expectation.
        severity: The effect when the rule is broken.
        mostly: The share of rows that must fulfill the rule, from 0 to 1; None for all rows.
    """

    expectation: str
    column: str
    expected: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = Severity.critical
    mostly: float | None = None

    @property
    def name(self) -> str:
        return f"{self.column}: {self.expected}"


@dataclass(frozen=True)
class Recent:
    """Bounds from earlier runs: the range of the middle 80 % of their values, widened.

    The lower bound is the range's low end divided by `below`, minus `margin`. The upper bound is the range's high end
    times `above`, plus `margin`. Use it only for values that are never negative.

    Attributes:
        below: The factor of the lower bound; None for no lower bound.
        above: The factor of the upper bound; None for no upper bound.
        margin: In the measure's unit.
        min_runs: With fewer earlier runs, the bounds are not used, and the outcome says so.
    """

    below: float | None = FACTOR
    above: float | None = FACTOR
    margin: float = 0.0
    min_runs: int = 5


@dataclass(frozen=True)
class Measure:
    """One number about the whole run, with fixed bounds, bounds from earlier runs, or both.

    Several measures may use the same number, each with its own title and bounds.

    Attributes:
        name: A column of one of the suite's queries, or a name in the counts that are passed to the check. A null value
            is not measured: a query returns null when there are too few rows.
        title: The name in results and alarms.
        unit: The unit of the number, for people; PERCENT for a share.
        minimum: The fixed lower bound; None for none.
        maximum: The fixed upper bound; None for none.
        recent: The bounds from earlier runs; None for none.
        severity: The effect when a bound is exceeded.
    """

    name: str
    title: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    recent: Recent | None = None
    severity: Severity = Severity.critical


@dataclass(frozen=True)
class SourceRule:
    """A rule about each single source of a run's rows (a device, a shop). A source that breaks it never stops the run.

    Attributes:
        kind: The alarm's kind; a source is the key of its alarm. The alarm closes with the next run in which the source
            has rows and does not break the rule, or after weeks without a row that breaks it.
        title: The rule's title on the result's page.
        expected: The rule as text, for people.
        query: A SELECT over the table `run` with one row for each source: `source` (text), `found` (a number), `breaks`
            (whether the source breaks the rule).
        unit: The unit of `found`.
        remedy: What a person should do, for the alarm.
    """

    kind: KindWithRunbook
    title: str
    expected: str
    query: str
    unit: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class SetSuite:
    """The rules for a whole run.

    Attributes:
        name: The suite's name.
        columns: The columns of the rows that are read.
        rules: The rules about columns.
        queries: SELECTs of one row each over the table `run`, in DuckDB's SQL. Measures refer to their columns.
        measures: The rules about numbers of the whole run.
        sources: The rules about single sources.
        description: A text for the page.
        examples: The number of values per broken rule that the page shows. Use 0 if rows hold personal data.

    Raises:
        ValueError: A rule is about a column that is not in `columns`, or two rules have the same name.
    """

    name: str
    columns: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    queries: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    sources: tuple[SourceRule, ...] = ()
    description: str = ""
    examples: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted({rule.column for rule in self.rules} - set(self.columns)):
            raise ValueError(f"suite {self.name}: rules about {unknown}, which are not among its columns")
        names = [rule.name for rule in self.rules] + [rule.title for rule in (*self.measures, *self.sources)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite {self.name}: declared twice: {repeated}")


def not_null(column: str, **options: Any) -> Rule:
    """The column has no missing values."""
    return Rule("ExpectColumnValuesToNotBeNull", column, options.pop("expected", "never missing"), **options)


def unique(column: str, **options: Any) -> Rule:
    """No value occurs twice in the column."""
    return Rule("ExpectColumnValuesToBeUnique", column, "each value once", **options)


def between(column: str, minimum: float | None, maximum: float | None, *, strict: bool = False, **options: Any) -> Rule:
    """The values are within bounds.

    Args:
        column: The column.
        minimum: The lowest allowed value; None for none.
        maximum: The highest allowed value; None for none.
        strict: Whether the values must be above `minimum`.
        **options: Further attributes of the rule.
    """
    arguments = {"min_value": minimum, "max_value": maximum, "strict_min": strict and minimum is not None}
    low, high = (f"{bound:,}" if bound is not None else "" for bound in (minimum, maximum))
    expected = f"{low} to {high}"
    if minimum is None or maximum is None:
        expected = f"at most {high}" if minimum is None else f"at least {low}"
    if strict:
        expected = f"above {low}" if maximum is None else f"above {low}, at most {high}"
    return Rule("ExpectColumnValuesToBeBetween", column, expected, arguments, **options)


def matches(column: str, pattern: str, *, expected: str | None = None, **options: Any) -> Rule:
    """The texts match a pattern.

    Args:
        column: The column.
        pattern: A regular expression as pydantic takes it.
        expected: The rule as text, for people; by default the pattern.
        **options: Further attributes of the rule.
    """
    # RE2, which checks long columns, has no \u escapes. The characters themselves mean the same to every engine.
    regex = re.sub(r"\\u([0-9a-fA-F]{4})", _character, pattern)
    # Python's `$` also matches before a line break at the end. The `$` of pydantic, for which the pattern was written,
    # does not.
    if regex.endswith("$") and not regex.endswith("\\$"):
        regex = regex[:-1] + r"\Z"
    return Rule("ExpectColumnValuesToMatchRegex", column, expected or f"like {pattern}", {"regex": regex}, **options)


def _character(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return f"\\{character}" if character in r"\\[]^-" else character


def at_most_long(column: str, characters: int, **options: Any) -> Rule:
    """The texts in the column have at most this many characters."""
    arguments = {"max_value": characters}
    return Rule("ExpectColumnValueLengthsToBeBetween", column, f"at most {characters} characters", arguments, **options)


def one_of(column: str, values: Iterable[Any], *, expected: str | None = None, **options: Any) -> Rule:
    """The column has only these values."""
    allowed = list(values)
    text = expected or "one of " + ", ".join(map(str, allowed))
    return Rule("ExpectColumnValuesToBeInSet", column, text, {"value_set": allowed}, **options)


def from_contract(contract: type[Contract], *, event_id: str | None = "event_id") -> tuple[Rule, ...]:
    """The rules from a contract: no missing values, bounds, patterns, allowed values, each event once.

    Every row was checked against the contract before. These rules find values that were lost or changed between that
    check and the table.

    Args:
        contract: The contract of the rows.
        event_id: The column with the events' ids; None if the rows have none.
    """
    schema = contract.model_json_schema()
    rules: list[Rule] = [unique(event_id), not_null(event_id)] if event_id else []
    for name, declared in schema["properties"].items():
        options = [_resolve(option, schema) for option in declared.get("anyOf", [declared])]
        kinds = [option for option in options if option.get("type") != "null"]
        if len(kinds) == len(options):
            rules.append(not_null(name))
        if len(kinds) == 1:
            rules += _bounds(name, kinds[0])
    return tuple(rules)


def _resolve(option: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = option.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else option


def _bounds(name: str, kind: Mapping[str, Any]) -> list[Rule]:
    if "const" in kind or "enum" in kind:
        return [one_of(name, kind.get("enum", [kind.get("const")]))]
    rules: list[Rule] = []
    low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
    if low is not None or above is not None or "maximum" in kind:
        strict = low is None and above is not None
        rules.append(between(name, above if strict else low, kind.get("maximum"), strict=strict))
    # A time is a timestamp in the table, not a text: its pattern applies only to the message.
    if kind.get("type") == "string" and "pattern" in kind and kind.get("format") not in ("date-time", "date"):
        rules.append(matches(name, kind["pattern"]))
    if "maxLength" in kind:
        rules.append(at_most_long(name, kind["maxLength"]))
    return rules
