"""Evaluate a suite of rules on all rows of a run, with DuckDB and Great Expectations.

Each row has already been checked against its contract. These rules find faults that only a whole set of rows shows.
DuckDB computes the numbers about the run, and finds the rows that may break a rule about a column (`screening.py`).
Great Expectations judges these rows. If there are none, it is not imported, which saves seconds and 200 MB. No data
leave the process: there is no project folder, no Data Docs and no telemetry.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from include.streams.lake.engine import literal, quoted
from include.streams.validators import screening
from include.streams.validators.expectations import GreatExpectations, expectation
from include.streams.validators.rules import PERCENT, Measure, Rule, SetSuite, Severity, SourceRule

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from duckdb import DuckDBPyRelation

    Rows = pyarrow.Table | DuckDBPyRelation | pandas.DataFrame

log = logging.getLogger(__name__)

# For DuckDB and the measures; the rows take additional memory as Arrow.
MEMORY_LIMIT = "800MB"
# Up to this many rows are read once, and kept as Arrow. More rows are read again for each query, which bounds memory.
MAX_ROWS_IN_MEMORY = 1_000_000
# The most rows that may break a rule that Great Expectations gets at once.
ROWS_AT_ONCE = 200_000
# The optional column with a row's line number in its file.
LINE = "line"
# A value in a report must be recognizable, not complete.
MAX_EXAMPLE_CHARACTERS = 80
# The most sources per rule that get an alarm in one run, and the most that the page names.
MAX_NAMED_SOURCES, MAX_SHOWN_SOURCES = 10, 5


class State(StrEnum):
    """The outcome of a rule."""

    passed = "passed"
    failed = "failed"
    # Broken, but its severity is `warning`.
    warned = "warned"
    # Its bounds come from earlier runs, and there are too few of them.
    no_past_yet = "no past yet"
    # There are too few rows for this number.
    not_measured = "not measured"


@dataclass(frozen=True)
class Outcome:
    """One rule with the expected and the observed values as text.

    Attributes:
        rule: The rule's name.
        about: "column" for a rule about a column, "run" for a rule about the whole run.
        severity: The rule's severity.
        state: Whether the rule holds.
        expected: The expected values, for people.
        observed: The observed values, for people.
        where: Examples of values that break the rule, if the suite asks for examples.
    """

    rule: str
    about: str
    severity: Severity
    state: State
    expected: str
    observed: str
    where: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        return self.state in (State.failed, State.warned)


@dataclass(frozen=True)
class Offences:
    """The sources that break a rule about sources.

    Attributes:
        rule: The rule.
        count: The number of sources that break it.
        worst: (source, observed number) of at most MAX_NAMED_SOURCES of them, the largest number first.
        cured: Sources in the caller's `known_sources` that have rows in the run and do not break the rule.
        again: Sources in the caller's `known_sources` that break the rule, even if they are not among `worst`.
    """

    rule: SourceRule
    count: int
    worst: tuple[tuple[str, float], ...]
    cured: tuple[str, ...]
    again: tuple[str, ...]


@dataclass(frozen=True)
class SetResult:
    """The result of a suite.

    Attributes:
        suite: The suite's name.
        rows: The number of rows in the run. All rules check all of them.
        outcomes: The outcomes of all rules.
        measures: {name: observed number}; None for a number that was not measured.
        sources: The sources that break rules about sources.
    """

    suite: str
    rows: int
    outcomes: tuple[Outcome, ...]
    measures: Mapping[str, float | None]
    sources: tuple[Offences, ...] = ()

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state is State.failed)

    @property
    def warned(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state is State.warned)

    @property
    def passed(self) -> bool:
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """The result as a dictionary for JSON, with `passed`, and without `sources`."""
        result = {"passed": self.passed, **asdict(self), "outcomes": [asdict(outcome) for outcome in self.outcomes]}
        # Left out, because the outcomes describe the sources as text.
        del result["sources"]
        return result


def evaluate(
    suite: SetSuite,
    rows: Rows,
    *,
    counts: Mapping[str, float | None] | None = None,
    past: Sequence[Mapping[str, float | None]] = (),
    known_sources: Mapping[str, Sequence[str]] | None = None,
) -> SetResult:
    """Check the rows of a run.

    Args:
        suite: The rules.
        rows: The rows, with at least the columns of the suite.
        counts: {name: number} for measures that cannot be computed from the rows.
        past: The measures of earlier runs.
        known_sources: {kind of a source rule: sources that broke it in earlier runs}.

    Raises:
        KeyError: A measure's name is neither a column of a query nor in `counts`.
        ValueError: A query is not a SELECT, or does not return exactly one row.
    """
    with _opened(suite, rows) as run:
        total = run.count("*").fetchall()[0][0]
        numbers: dict[str, float | None] = {}
        for query in suite.queries:
            numbers |= _one_row(_query(run, query))
        offences = [_offences(run, rule, (known_sources or {}).get(rule.kind, ())) for rule in suite.sources]
        columns = _column_outcomes(suite, run, total)
    numbers |= dict(counts or {})
    measures = {measure.name: numbers[measure.name] for measure in suite.measures}
    outcomes = [*columns, *_measure_outcomes(suite, measures, past), *map(_source_outcome, offences)]
    return SetResult(suite.name, total, tuple(outcomes), measures, tuple(offences))


@contextmanager
def _opened(suite: SetSuite, rows: Rows) -> Iterator[DuckDBPyRelation]:
    """The suite's columns of the rows, as a relation that can be queried repeatedly."""
    import duckdb
    import pyarrow

    # threads: DuckDB's default is every core of the worker, on which other tasks run too.
    with duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT, "threads": 2}) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        if isinstance(rows, duckdb.DuckDBPyRelation):
            run = rows.project(", ".join(map(quoted, suite.columns)))
            if run.count("*").fetchall()[0][0] <= MAX_ROWS_IN_MEMORY:
                # Read once, because each query would fetch the files from the bucket again.
                run = connection.from_arrow(run.to_arrow_table())
        else:
            table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pandas(rows, preserve_index=False)
            run = connection.from_arrow(table.select(list(suite.columns)))
        yield run


def _offences(run: DuckDBPyRelation, rule: SourceRule, known: Sequence[str]) -> Offences:
    by_source = _query(run, rule.query)
    breaking = by_source.filter("breaks").project("source::varchar as source, found::double as found")
    worst = breaking.order("found desc, source").limit(MAX_NAMED_SOURCES).fetchall()
    count = breaking.count("*").fetchall()[0][0]
    seen: list[tuple[str, bool]] = []
    if known:
        listed = ", ".join(literal(source) for source in known)
        seen = by_source.filter(f"source::varchar in ({listed})").project("source::varchar, breaks").fetchall()
    cured, again = (tuple(source for source, breaks in seen if breaks is wanted) for wanted in (False, True))
    return Offences(rule, count, tuple(worst), cured, again)


def _source_outcome(offences: Offences) -> Outcome:
    rule, named = offences.rule, offences.worst[:MAX_SHOWN_SOURCES]
    if offences.count:
        shown = ", ".join(f"{source[:MAX_EXAMPLE_CHARACTERS]} ({number:,.6g})" for source, number in named)
        more = f" and {offences.count - len(named):,} more" if offences.count > len(named) else ""
        observed = f"{offences.count:,}, {rule.unit}: {shown}{more}"
    else:
        observed = "none"
    state = State.warned if offences.count else State.passed
    return Outcome(rule.title, "run", Severity.warning, state, rule.expected, observed)


def _query(run: DuckDBPyRelation, query: str) -> DuckDBPyRelation:
    result = run.query("run", query)
    if result is None:
        raise ValueError(f"a suite's query is a SELECT over the table run, not {query[:80]!r}")
    return result


def _one_row(relation: DuckDBPyRelation) -> dict[str, float | None]:
    rows = relation.fetchall()
    if len(rows) != 1:
        raise ValueError(f"a suite's query returns one row, not {len(rows)}: {', '.join(relation.columns)}")
    return {name: _number(value) for name, value in zip(relation.columns, rows[0], strict=True)}


def _number(value: Any) -> float | None:
    if value is None or (number := float(value)) != number or math.isinf(number):
        return None
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class _Judged:
    """The rows that break a rule about a column.

    Attributes:
        broken: Their number; None if the rule cannot be evaluated.
        where: Examples of their values.
        success: Whether the rule holds, if Great Expectations has judged all rows; None if it follows from the number.
    """

    broken: int | None
    where: tuple[str, ...] = ()
    success: bool | None = None


def _column_outcomes(suite: SetSuite, run: DuckDBPyRelation, total: int) -> list[Outcome]:
    kinds = dict(zip(run.columns, map(str, run.types), strict=True))
    suspects = {rule.name: screening.may_break(rule, kinds[rule.column]) for rule in suite.rules}
    conditions = [suspects[rule.name] or "true" for rule in suite.rules]
    present = [screening.is_present(column, kinds[column]) for column in suite.columns]
    # One query for all rules, because each would read all rows.
    sums = ", ".join(f"count(*) filter ({condition})" for condition in (*conditions, *present)) or "0"
    found = _query(run, f"select {sums} from run").fetchall()[0]
    suspected = dict(zip((rule.name for rule in suite.rules), found, strict=False))
    values = dict(zip(suite.columns, found[len(conditions) :], strict=False))
    judges: list[GreatExpectations] = []

    def judge() -> GreatExpectations:
        if not judges:
            judges.append(GreatExpectations())
        return judges[0]

    outcomes = []
    for rule in suite.rules:
        if screening.can_count_repeated(rule, kinds[rule.column]):
            judged = _count_repeated(run, rule, suite.examples)
        elif not suspected[rule.name]:
            judged = _Judged(0)
        else:
            judged = _judge(judge(), run, rule, suspects[rule.name], suite.examples)
        counted = total if rule.expectation == "ExpectColumnValuesToNotBeNull" else values[rule.column]
        outcomes.append(_column_outcome(rule, judged, total, counted))
    return outcomes


def _count_repeated(run: DuckDBPyRelation, rule: Rule, examples: int) -> _Judged:
    name = quoted(rule.column)
    repeated = f"select {name} from run where {name} is not null group by {name} having count(*) > 1"
    broken = _query(run, f"select count(*) from run where {name} in ({repeated})").fetchall()[0][0]
    if not broken or not examples:
        return _Judged(broken)
    rows = _query(run, f"select {_shown(run, rule)} from run where {name} in ({repeated}) limit {examples}")
    return _Judged(broken, tuple(_example(*row) for row in rows.fetchall()))


def _judge(
    engine: GreatExpectations, run: DuckDBPyRelation, rule: Rule, condition: str | None, examples: int
) -> _Judged:
    """Let Great Expectations judge the rows that may break a rule; without a condition, all rows at once."""
    import pyarrow

    rows = _query(run, f"select {_shown(run, rule)} from run where {condition or 'true'}")
    if condition is None:
        # An unknown rule may be about the rows together.
        batches = iter([rows.to_arrow_table()])
    else:
        batches = (pyarrow.Table.from_batches([batch]) for batch in rows.to_arrow_reader(ROWS_AT_ONCE))
    broken, where, success = 0, [], None
    for number, batch in enumerate(batches):
        frame = batch.select([rule.column]).to_pandas()
        (result,) = engine.validate(f"{rule.name} {number}", frame, [expectation(rule)], examples)
        details = result.result or {}
        success = bool(result.success) if condition is None else None
        if result.exception_info.get("raised_exception") or "unexpected_count" not in details:
            return _Judged(None, success=success)
        broken += details["unexpected_count"]
        for index in (details.get("unexpected_index_list") or [])[: examples - len(where)]:
            line = batch.column(LINE)[index].as_py() if LINE in batch.column_names else None
            where.append(_example(frame[rule.column].iloc[index], line))
    return _Judged(broken, tuple(where), success)


def _shown(run: DuckDBPyRelation, rule: Rule) -> str:
    """The columns that an example of a rule shows."""
    return ", ".join(quoted(name) for name in dict.fromkeys((rule.column, LINE)) if name in run.columns)


def _measure_outcomes(
    suite: SetSuite, measures: Mapping[str, float | None], past: Sequence[Mapping[str, float | None]]
) -> Iterator[Outcome]:
    for measure in suite.measures:
        number, bounds = measures[measure.name], _bounds(measure, past)
        low, high = bounds.low, bounds.high
        good = number is None or ((low is None or number >= low) and (high is None or number <= high))
        yield _measure_outcome(measure, number, bounds, good)


def _column_outcome(rule: Rule, judged: _Judged, total: int, counted: int) -> Outcome:
    """The outcome of a rule.

    Args:
        rule: The rule.
        judged: The rows that break it.
        total: The number of rows.
        counted: The number of rows that can break it: those with a value, or all.
    """
    if judged.broken is None:
        # Great Expectations raised an error, for example because a column holds text instead of numbers.
        observed = "cannot be evaluated: the column has values of another type"
    elif not judged.broken:
        observed = f"all {total:,} rows" if total else "no rows"
    else:
        observed = f"{judged.broken:,} of {total:,} rows break it"
    share = f" (at least {rule.mostly:.0%} of the rows)" if rule.mostly is not None else ""
    if judged.success is not None:
        good = judged.success
    elif judged.broken and rule.mostly is not None:
        good = (counted - judged.broken) / counted >= rule.mostly
    else:
        good = judged.broken == 0
    return Outcome(
        rule.name, "column", rule.severity, _state(rule.severity, good), rule.expected + share, observed, judged.where
    )


def _example(value: Any, line: Any = None) -> str:
    text = "missing" if value is None or value != value else f"{str(value)[:MAX_EXAMPLE_CHARACTERS]!r}"
    return f"line {line}: {text}" if line is not None else text


@dataclass(frozen=True)
class _Bounds:
    """Bounds of a measure. `origin`: their origin as text; None when they need earlier runs and there are too few."""

    low: float | None
    high: float | None
    origin: str | None = ""


def _bounds(measure: Measure, past: Sequence[Mapping[str, float | None]]) -> _Bounds:
    low, high = measure.minimum, measure.maximum
    recent = measure.recent
    if recent is None:
        return _Bounds(low, high)
    values = sorted(value for run in past if (value := run.get(measure.name)) is not None)
    if len(values) < recent.min_runs:
        return _Bounds(low, high, None)
    # The middle 80 %, so that one unusual run that a person has accepted does not widen the bounds.
    least, most = values[round(0.1 * (len(values) - 1))], values[round(0.9 * (len(values) - 1))]
    if recent.below is not None:
        low = max(x for x in (low, least / recent.below - recent.margin) if x is not None)
    if recent.above is not None:
        high = min(x for x in (high, most * recent.above + recent.margin) if x is not None)
    return _Bounds(low, high, f"; in {len(values)} earlier runs {_show(least, measure)} to {_show(most, measure)}")


def _measure_outcome(measure: Measure, number: float | None, bounds: _Bounds, good: bool) -> Outcome:
    low, high = _show(bounds.low, measure), _show(bounds.high, measure)
    expected = {
        (True, True): "as in earlier runs",
        (True, False): f"at most {high}",
        (False, True): f"at least {low}",
        (False, False): f"{low} to {high}",
    }[bounds.low is None, bounds.high is None]
    expected += bounds.origin or ""
    state, observed = _state(measure.severity, good), _show(number, measure)
    if number is None:
        state, observed = State.not_measured, "too few rows to judge"
    elif good and bounds.origin is None:
        state = State.no_past_yet
    return Outcome(measure.title, "run", measure.severity, state, expected, observed)


def _state(severity: Severity, good: bool) -> State:
    if good:
        return State.passed
    return State.failed if severity is Severity.critical else State.warned


def _show(number: float | None, measure: Measure) -> str:
    if number is None:
        return "nothing"
    if measure.unit == PERCENT:
        return f"{100 * number:.3g} %"
    text = f"{number:,.0f}" if abs(number) >= 1000 or float(number).is_integer() else f"{number:.3g}"
    return f"{text} {measure.unit}".strip()
