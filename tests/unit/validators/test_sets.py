"""Rules about whole sets of rows: the rows that break them, their texts, and the rows that they allow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from include.streams.validators import evaluation
from include.streams.validators.evaluation import SetResult, State, evaluate
from include.streams.validators.rules import (
    Measure,
    Recent,
    SetSuite,
    Severity,
    at_most_long,
    between,
    from_contract,
    matches,
    not_null,
    one_of,
    unique,
)
from tests.unit.contracts.orders import OrderV1

PROJECT = Path(__file__).resolve().parents[3]


def check(rows: dict[str, list[Any]], *rules: Any, **options: Any) -> SetResult:
    table = pa.table(rows)
    given = {"past": options.pop("past", ()), "counts": options.pop("counts", None)}
    return evaluate(SetSuite("test", tuple(table.column_names), tuple(rules), **options), table, **given)


def states(result: SetResult) -> dict[str, State]:
    return {outcome.rule: outcome.state for outcome in result.outcomes}


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (not_null("x"), "a", None),
        (matches("x", "^[a-c]$"), "b", "d"),
        # A quoted line break in a file: the `$` of Python's engine also matches before it.
        (matches("x", "^[a-c]$"), "b", "b\n"),
        # As in the contracts; RE2 knows no \u.
        (matches("x", r"^[^\u0000-\u0008\u007f]*$"), "b", "b\x07"),
        (at_most_long("x", 3), "abc", "abcd"),
        (one_of("x", ["a", "b"]), "b", "c"),
        (between("x", 0, 10), 10, 11),
        (between("x", 0, None, strict=True), 1, 0),
    ],
)
def test_a_rule_reports_the_row_that_breaks_it(rule, good, bad):
    assert check({"x": [good, good]}, rule).passed
    (outcome,) = check({"x": [good, bad, good]}, rule).failed
    assert outcome.observed == "1 of 3 rows break it"


def test_an_event_that_occurs_twice_breaks_its_rule():
    (outcome,) = check({"event_id": ["a", "b", "a"]}, unique("event_id")).failed
    assert outcome.observed == "2 of 3 rows break it"


def test_a_column_of_the_wrong_type_breaks_only_its_own_rules():
    result = check({"x": ["a", "b"], "y": [1, None]}, between("x", 0, 10), not_null("y"), between("y", 0, 5))
    assert states(result) == {"x: 0 to 10": "failed", "y: never missing": "failed", "y: 0 to 5": "passed"}
    assert "cannot be evaluated" in result.failed[0].observed


def test_a_broken_warning_is_shown_and_does_not_stop_the_run():
    result = check({"x": [1, 20]}, between("x", 0, 10, severity=Severity.warning))
    assert result.passed
    assert states(result) == {"x: 0 to 10": "warned"}


def test_a_rule_about_most_rows_allows_a_few_others():
    rule = one_of("x", ["a"], mostly=0.9)
    assert check({"x": ["a"] * 95 + ["b"] * 5}, rule).passed
    assert not check({"x": ["a"] * 85 + ["b"] * 15}, rule).passed


def test_a_run_without_rows_breaks_no_rule():
    rows = {"x": pa.array([], pa.string()), "y": pa.array([], pa.int64())}
    assert check(rows, not_null("x"), matches("x", "^a$"), unique("x"), between("y", 0, 1)).passed


def test_a_contract_gives_the_rules_of_its_fields():
    rules = from_contract(OrderV1)
    names = {rule.name for rule in rules}
    assert "event_id: each value once" in names
    assert "version: one of 1" in names
    assert {"quantity: 1 to 1,000", "quantity: never missing", "note: at most 50 characters"} <= names
    assert "note: never missing" not in names
    assert {rule.column for rule in rules} <= {*OrderV1.model_fields, "event_id"}


def test_examples_are_in_the_result_only_if_the_suite_wants_them():
    rows = {"x": ["secret", "a"], "line": [2, 3]}
    quiet = check(rows, matches("x", "^a$"))
    assert "secret" not in json.dumps(quiet.to_json())
    (outcome,) = check(rows, matches("x", "^a$"), examples=3).failed
    assert outcome.where == ("line 2: 'secret'",)


MEASURE = Measure("n", "rows of the run", recent=Recent(margin=1))
COUNT = "select count(*) as n from run"


def counted(rows: int, past: list[float | None], measure: Measure = MEASURE) -> State:
    runs = [{"n": value} for value in past]
    result = check({"x": list(range(rows))}, queries=(COUNT,), measures=(measure,), past=runs)
    return states(result)["rows of the run"]


def test_a_rule_about_earlier_runs_passes_without_any_and_says_so():
    assert counted(1000, []) is State.no_past_yet
    assert counted(1000, [10, 10, 10, 10]) is State.no_past_yet
    # Runs without a measured number do not count.
    assert counted(1000, [None] * 20) is State.no_past_yet


def test_a_run_far_from_earlier_runs_breaks_the_rule():
    past: list[float | None] = [100, 110, 90, 105, 95, 100]
    assert counted(100, past) is State.passed
    assert counted(500, past) is State.passed
    assert counted(600, past) is State.failed
    assert counted(15, past) is State.failed


def test_one_unusual_earlier_run_does_not_widen_the_bounds():
    past: list[float | None] = [100, 100, 100_000, 100, 100, 100, 100, 100, 100, 100]
    assert counted(600, past) is State.failed


def test_a_bound_on_one_side_allows_any_value_on_the_other():
    measure = Measure("n", "rows of the run", recent=Recent(below=None, above=1, margin=5))
    assert counted(1, [100] * 5, measure) is State.passed
    assert counted(106, [100] * 5, measure) is State.failed


def test_a_fixed_bound_holds_without_earlier_runs():
    measure = Measure("n", "rows of the run", minimum=5, recent=Recent())
    assert counted(4, [], measure) is State.failed


def test_a_number_that_was_not_measured_breaks_nothing():
    queries = ("select case when count(*) > 10 then 1.0 end as n from run",)
    measure = Measure("n", "rows of the run", maximum=0.5)
    assert states(check({"x": [1]}, queries=queries, measures=(measure,))) == {"rows of the run": "not measured"}


def test_two_measures_may_use_one_number():
    measures = (
        Measure("share", "stop", maximum=0.5),
        Measure("share", "look", maximum=0.1, severity=Severity.warning),
    )
    result = check({"x": [1]}, measures=measures, counts={"share": 0.3})
    assert states(result) == {"stop": "passed", "look": "warned"}


def test_a_suite_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="not among its columns"):
        SetSuite("test", ("x",), (not_null("y"),))
    with pytest.raises(ValueError, match="declared twice"):
        SetSuite("test", ("x",), (not_null("x"), not_null("x")))
    with pytest.raises(KeyError, match="missing"):
        check({"x": [1]}, measures=(Measure("missing", "title"),))


ROWS = 450_000
# Of many rows, one breaks each rule. The event ids of two rows far from each other are equal.
MANY = f"""
    select if(i = 123_456, null, i) as present, if(i = {ROWS - 1}, -1, i) as x, if(i = 0, 'B', 'b') as letter,
        if(i = {ROWS - 2}, 0, i) as event_id
    from range({ROWS}) of_rows(i)
"""
MANY_RULES = (not_null("present"), between("x", 0, None), matches("letter", "^[a-c]$"), unique("event_id"))


def test_rules_about_columns_check_every_row_of_a_large_run():
    with duckdb.connect() as connection:
        rows = connection.sql(MANY)
        suite = SetSuite("test", tuple(rows.columns), MANY_RULES, (COUNT,), (MEASURE,))
        for kind in (rows, rows.to_arrow_table()):
            result = evaluate(suite, kind)
            assert (result.rows, result.measures["n"]) == (ROWS, ROWS)
            assert [outcome.observed for outcome in result.failed] == [
                "1 of 450,000 rows break it",
                "1 of 450,000 rows break it",
                "1 of 450,000 rows break it",
                "2 of 450,000 rows break it",
            ]


@pytest.mark.parametrize("in_memory", [True, False])
def test_many_rows_that_break_a_rule_are_all_counted(in_memory: bool, monkeypatch):
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 10_000)
    monkeypatch.setattr(evaluation, "MAX_ROWS_IN_MEMORY", 10**6 if in_memory else 10)
    with duckdb.connect() as connection:
        rows = connection.sql("select range as x, 2 + range as line from range(50000)")
        suite = SetSuite("test", ("x", "line"), (between("x", 45_000, None, mostly=0.2),), examples=2)
        (outcome,) = evaluate(suite, rows).failed
    assert outcome.observed == "45,000 of 50,000 rows break it"
    assert len(outcome.where) == 2


# In a separate process, like the first check of a task.
CHECK = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
events = []
def hook(name, arguments):
    if name in ("socket.connect", "socket.getaddrinfo"):
        events.append((name, str(arguments)))
    if name == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append((name, str(arguments[0])))
    if name in ("os.mkdir", "tempfile.mkdtemp", "tempfile.mkstemp"):
        events.append((name, str(arguments)))
sys.addaudithook(hook)
import pyarrow
from include.streams.validators.evaluation import evaluate
from include.streams.validators.rules import SetSuite, matches, not_null
suite = SetSuite("test", ("x",), (not_null("x"), matches("x", "(a)")))
assert evaluate(suite, pyarrow.table({"x": ["a"]})).passed
assert "great_expectations" not in sys.modules, "all rows keep the rules"
assert not evaluate(suite, pyarrow.table({"x": ["b"]})).passed
assert "great_expectations" in sys.modules
events = [event for event in events if event[1] not in ("/dev/null",) and ".pyc" not in event[1]]
assert not events, events
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The ended process that checked a set, and its home folder."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HOME": str(home)}
    command = [sys.executable, "-c", CHECK]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True), home


def test_a_check_uses_no_network_and_writes_no_file(checked):
    done, home = checked
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(home.iterdir()) == []


def test_a_check_writes_nothing_into_a_tasks_log(checked):
    done, _ = checked
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if "alembic" not in line]
    assert (lines, done.stderr) == ([], "")
