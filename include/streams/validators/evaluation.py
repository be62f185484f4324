"""Evaluate a suite of rules on a set of rows, with Great Expectations.

Each row has already been checked against its contract. These rules find faults that only a whole set of rows shows.
Memory is bounded: Great Expectations gets one column at a time, and DuckDB computes the numbers about the run. No data
leave the process: there is no project folder, no Data Docs and no telemetry.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from include.streams.lake.engine import literal
from include.streams.validators.expectations import GreatExpectations, expectation, limit
from include.streams.validators.rules import PERCENT, Measure, Rule, SetSuite, Severity, SourceRule

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from duckdb import DuckDBPyRelation

    Rows = pyarrow.Table | DuckDBPyRelation | pandas.DataFrame

log = logging.getLogger(__name__)

# For DuckDB and the measures; the rows take additional memory as Arrow.
MEMORY_LIMIT = "800MB"
# A fixed seed, so that each retry draws the same rows.
SAMPLE_SEED = 7_401_512
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
        rows: The number of rows in the run.
        looked_at: The number of rows that the rules about columns have checked.
        outcomes: The outcomes of all rules.
        measures: {name: observed number}; None for a number that was not measured.
        sources: The sources that break rules about sources.
    """

    suite: str
    rows: int
    looked_at: int
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
    with ThreadPoolExecutor(1) as thread:
        # In a thread, because the import of Great Expectations takes as long as reading the rows.
        loading = thread.submit(GreatExpectations)
        table, total, numbers, offences = _read(suite, rows, known_sources or {})
        engine = loading.result()
    numbers |= dict(counts or {})
    measures = {measure.name: numbers[measure.name] for measure in suite.measures}
    outcomes = [
        *_column_outcomes(suite, table, engine),
        *_measure_outcomes(suite, measures, past, engine),
        *map(_source_outcome, offences),
    ]
    return SetResult(suite.name, total, table.num_rows, tuple(outcomes), measures, tuple(offences))


def _read(
    suite: SetSuite, rows: Rows, known_sources: Mapping[str, Sequence[str]]
) -> tuple[pyarrow.Table, int, dict[str, float | None], list[Offences]]:
    """(rows for the rules about columns, number of all rows, numbers of the queries, offences)."""
    import duckdb
    import pyarrow

    numbers: dict[str, float | None] = {}
    # threads: DuckDB's default is every core of the worker, on which other tasks run too.
    with duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT, "threads": 2}) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        if isinstance(rows, duckdb.DuckDBPyRelation):
            run = rows.project(", ".join('"' + column.replace('"', '""') + '"' for column in suite.columns))
        else:
            table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pandas(rows, preserve_index=False)
            run = connection.from_arrow(table.select(list(suite.columns)))
        total = run.count("*").fetchall()[0][0]
        if total <= suite.max_rows:
            # Read once, because each query would fetch the files from the bucket again.
            table = run.to_arrow_table()
            run = connection.from_arrow(table)
        else:
            sample = f"SELECT * FROM run USING SAMPLE reservoir({suite.max_rows} ROWS) REPEATABLE ({SAMPLE_SEED})"
            table = _query(run, sample).to_arrow_table()
        for query in suite.queries:
            numbers |= _one_row(_query(run, query))
        offences = [_offences(run, rule, known_sources.get(rule.kind, ())) for rule in suite.sources]
    return table, total, numbers, offences


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


def _column_outcomes(suite: SetSuite, table: pyarrow.Table, engine: GreatExpectations) -> Iterator[Outcome]:
    for column in suite.columns:
        rules = [rule for rule in suite.rules if rule.column == column]
        if rules:
            # One column at a time, because all columns as pandas would take several times the memory.
            frame = table.select([column]).to_pandas()
            lines = table.column(LINE) if LINE in table.column_names else None
            results = engine.validate(column, frame, [expectation(rule) for rule in rules], suite.examples)
            for rule, result in zip(rules, results, strict=True):
                yield _column_outcome(rule, result, frame[column], lines, suite.examples)


def _measure_outcomes(
    suite: SetSuite,
    measures: Mapping[str, float | None],
    past: Sequence[Mapping[str, float | None]],
    engine: GreatExpectations,
) -> Iterator[Outcome]:
    import pandas

    bounds = {measure.title: _bounds(measure, past) for measure in suite.measures}
    limits = {
        measure.title: limit(measure, bounds[measure.title].low, bounds[measure.title].high)
        for measure in suite.measures
        if measures[measure.name] is not None
        and (bounds[measure.title].low, bounds[measure.title].high) != (None, None)
    }
    good: dict[str, bool] = {}
    if limits:
        frame = pandas.DataFrame({name: [float(value)] for name, value in measures.items() if value is not None})
        checked = engine.validate("measures", frame, list(limits.values()), 0)
        good = {title: bool(result.success) for title, result in zip(limits, checked, strict=True)}
    for measure in suite.measures:
        yield _measure_outcome(measure, measures[measure.name], bounds[measure.title], good.get(measure.title, True))


def _column_outcome(rule: Rule, result: Any, values: pandas.Series, lines: Any, examples: int) -> Outcome:
    details = result.result or {}
    where: tuple[str, ...] = ()
    if result.exception_info.get("raised_exception") or "unexpected_count" not in details:
        # Great Expectations raised an error, for example because a column holds text instead of numbers.
        observed = "cannot be evaluated: the column has values of another type"
    elif not (broken := details["unexpected_count"]):
        observed = f"all {len(values):,} rows" if len(values) else "no rows"
    else:
        observed = f"{broken:,} of {len(values):,} rows break it"
        unexpected = details.get("unexpected_index_list") or []
        where = tuple(_example(index, values, lines) for index in unexpected[:examples])
    share = f" (at least {rule.mostly:.0%} of the rows)" if rule.mostly is not None else ""
    state = _state(rule.severity, result.success)
    return Outcome(rule.name, "column", rule.severity, state, rule.expected + share, observed, where)


def _example(index: int, values: pandas.Series, lines: Any) -> str:
    value = values.iloc[index]
    text = "missing" if value is None or value != value else f"{str(value)[:MAX_EXAMPLE_CHARACTERS]!r}"
    return f"line {lines[index].as_py()}: {text}" if lines is not None else text


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
