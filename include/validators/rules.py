"""Rules about a whole set of rows: declared beside the contract, in plain Python, checked by `include.validators.sets`.

A contract says what one row must be. What only a set can show (is each event there once, are there far fewer rows than
lately, does every counter still rise) is said here. Importing this module costs nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from include.contracts import Contract

# A factor of five either way: consumption differs that much between night and day, a broken source by far more.
FACTOR = 5.0
# The unit of a measure that is a share, 0 to 1: shown times a hundred.
PERCENT = "%"


class Severity(StrEnum):
    """What a rule that is broken does: stop the run, or only show."""

    critical = "critical"
    warning = "warning"


@dataclass(frozen=True)
class Rule:
    """What the values of one column must be: an expectation of Great Expectations, by name.

    Nulls are passed over, except by `not_null`. `mostly` is the share of rows that must fulfil it.
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
    """Bounds from the recent past: the middle 80 % of earlier runs' values, widened.

    A value may lie between their low end divided by `below` and their high end times `above`, each moved outwards by
    `margin` (in the measure's unit). None: no bound on that side. With fewer than `min_runs` earlier runs the rule
    passes and says so. For values that are never negative.
    """

    below: float | None = FACTOR
    above: float | None = FACTOR
    margin: float = 0.0
    min_runs: int = 5


@dataclass(frozen=True)
class Measure:
    """One number about the whole run, with its bounds: fixed ones, ones from the recent past, or both.

    `name` is a column of one of the suite's queries, or one of the counts given to the check. A number that is null was
    not measured: a query returns null where there are too few rows to say anything. Several measures may look at one
    number, with a title and bounds of their own.
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
    """What each single source of a run's rows (a device, a shop) must do. One that does not never stops the run.

    Args:
        kind: of the alarm, `<kind>:<source>`, which names the source and closes with the next run in which it behaves.
        title: of the rule, on the result's page.
        expected: what a source has to do, in words.
        query: a SELECT over the table `run` with one row for each source: `source` (text), `found` (a number), `breaks`
            (whether the source breaks the rule).
        unit: of `found`.
        remedy: what to do about such a source.
    """

    kind: str
    title: str
    expected: str
    query: str
    unit: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class SetSuite:
    """The rules for a whole run.

    columns: what is read of the rows. exact_columns: whether the rows may have no others.
    queries: SELECTs of one row each over the table `run`, in DuckDB's SQL; their columns are what measures name.
    sources: rules about single sources, which are named where they break one.
    max_rows: rules about columns look at this many rows at most, drawn at random with a fixed seed; measures always
        look at all: what must be unique in larger runs, too, is a measure.
    examples: of how many values that break a rule the report shows. 0 where rows hold personal data.
    """

    name: str
    columns: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    queries: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    sources: tuple[SourceRule, ...] = ()
    description: str = ""
    max_rows: int = 200_000
    examples: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted({rule.column for rule in self.rules} - set(self.columns)):
            raise ValueError(f"suite {self.name}: rules about {unknown}, which are not among its columns")
        names = [rule.name for rule in self.rules] + [rule.title for rule in (*self.measures, *self.sources)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite {self.name}: declared twice: {repeated}")


def not_null(column: str, **options: Any) -> Rule:
    return Rule("ExpectColumnValuesToNotBeNull", column, options.pop("expected", "never missing"), **options)


def unique(column: str, **options: Any) -> Rule:
    return Rule("ExpectColumnValuesToBeUnique", column, "each value once", **options)


def between(column: str, minimum: float | None, maximum: float | None, *, strict: bool = False, **options: Any) -> Rule:
    arguments = {"min_value": minimum, "max_value": maximum, "strict_min": strict and minimum is not None}
    low, high = (f"{bound:,}" if bound is not None else "" for bound in (minimum, maximum))
    expected = f"{low} to {high}"
    if minimum is None or maximum is None:
        expected = f"at most {high}" if minimum is None else f"at least {low}"
    if strict:
        expected = f"above {low}" if maximum is None else f"above {low}, at most {high}"
    return Rule("ExpectColumnValuesToBeBetween", column, expected, arguments, **options)


def matches(column: str, pattern: str, *, expected: str | None = None, **options: Any) -> Rule:
    # RE2, which looks at long columns, knows no \u escapes: the characters themselves mean the same to every engine.
    regex = re.sub(r"\\u([0-9a-fA-F]{4})", _character, pattern)
    # Python's `$` passes over a line break at the end; pydantic's, which the pattern was written for, does not.
    if regex.endswith("$") and not regex.endswith("\\$"):
        regex = regex[:-1] + r"\Z"
    return Rule("ExpectColumnValuesToMatchRegex", column, expected or f"like {pattern}", {"regex": regex}, **options)


def _character(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return f"\\{character}" if character in r"\\[]^-" else character


def at_most_long(column: str, characters: int, **options: Any) -> Rule:
    arguments = {"max_value": characters}
    return Rule("ExpectColumnValueLengthsToBeBetween", column, f"at most {characters} characters", arguments, **options)


def one_of(column: str, values: Iterable[Any], *, expected: str | None = None, **options: Any) -> Rule:
    allowed = list(values)
    text = expected or "one of " + ", ".join(map(str, allowed))
    return Rule("ExpectColumnValuesToBeInSet", column, text, {"value_set": allowed}, **options)


def from_contract(contract: type[Contract], *, event_id: str | None = "event_id") -> tuple[Rule, ...]:
    """The rules that the contract states: nothing missing, bounds, patterns, allowed values, each event once.

    Every row was checked against the contract before, one by one: these find what was lost or changed between there
    and the table. `event_id`: the column that holds the events' identity; None when there is none.
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
    # A time is a timestamp here, no text: its pattern is about the message.
    if kind.get("type") == "string" and "pattern" in kind and kind.get("format") not in ("date-time", "date"):
        rules.append(matches(name, kind["pattern"]))
    if "maxLength" in kind:
        rules.append(at_most_long(name, kind["maxLength"]))
    return rules
