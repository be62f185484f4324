"""Checks of whole runs, on a real object store and a real PostgreSQL: what stops a run, and what lets it continue."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.streams.lake.buckets import bucket
from include.streams.operations.alarms import open_alarms
from include.streams.operations.audit import Actor
from include.streams.operations.migrate import upgrade
from include.streams.validators import results
from include.streams.validators.__main__ import main as command
from include.streams.validators.repairs import accept_suite
from include.streams.validators.results import NothingToAccept
from include.streams.validators.rules import Measure, Recent, SetSuite, between, not_null
from include.streams.validators.sets import SetsFailed, check_run
from tests.repairs import records_of

pytestmark = pytest.mark.integration

SUITE = SetSuite(
    name="orders",
    columns=("x",),
    rules=(between("x", 0, 10), not_null("x")),
    queries=("select count(*) as n from run",),
    measures=(Measure("n", "rows of the run", recent=Recent(min_runs=3)),),
)
# Markup that somebody may have written into a message: a page must show it as text.
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module", autouse=True)
def operations(landing_services) -> None:
    upgrade()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restore the root logger, which a command configures in this process."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture
def source() -> str:
    return f"consumer_{uuid.uuid4().hex[:8]}"


def check(source: str, claim_id: int, values: list[Any], **counts: int) -> dict[str, Any]:
    summary = {"claim_id": claim_id, "run_id": f"manual__{HOSTILE}", "ranges": [], **counts}
    return check_run(source, SUITE, pa.table({"x": pa.array(values, pa.int64())}), summary)


def alarms(source: str) -> list[tuple[str, str]]:
    return [(alarm.kind, alarm.key) for alarm in open_alarms() if alarm.source == source]


def stored(source: str, claim_id: int, name: str) -> str:
    found = bucket().read(f"validation/{source}/{claim_id}/{name}")
    assert found is not None
    return found[0].decode()


def test_a_run_that_breaks_a_rule_stops_with_the_remedy(source):
    with pytest.raises(AirflowFailException) as error:
        check(source, 7, [1, 2, 50], landed=3, clean=3)
    text = str(error.value)
    for part in ("x: 0 to 10", "1 of 3 rows break it", f"gs://artifacts/validation/{source}/7/report.html"):
        assert part in text
    assert f"python -m include.streams.validators accept {source} 7 --reason" in text
    assert alarms(source) == [("suite_failed", "7")]
    result = json.loads(stored(source, 7, "result.json"))
    assert result["stopped"]
    assert not result["passed"]
    page = stored(source, 7, "report.html")
    assert "Stopped" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_a_repaired_run_passes_and_closes_only_its_alarm(source):
    for claim_id in (7, 8):
        with pytest.raises(SetsFailed):
            check(source, claim_id, [50])
    assert check(source, 7, [5])["accepted"] == []
    assert alarms(source) == [("suite_failed", "8")]


def test_an_accepted_run_passes_only_with_the_accepted_rules(source, capsys):
    with pytest.raises(SetsFailed):
        check(source, 7, [50])
    assert command(["accept", source, "7", "--by", "an operator", "--reason", f"a test of {HOSTILE}"]) == 0
    assert "x: 0 to 10" in capsys.readouterr().out
    assert alarms(source) == []
    assert check(source, 7, [50])["accepted"] == ["x: 0 to 10"]
    page = stored(source, 7, "report.html")
    assert "an operator" in page
    assert HOSTILE not in page
    (kept,) = json.loads(stored(source, 7, "acceptance.json"))["acceptances"]
    assert kept["by"] == "an operator"
    # Cleared again, with other rows: nobody has accepted their absence.
    with pytest.raises(SetsFailed, match="never missing"):
        check(source, 7, [50, None])


def test_an_acceptance_by_a_dag_run_is_recorded_once(source):
    with pytest.raises(SetsFailed):
        check(source, 7, [50])
    params: Any = {"consumer": source, "claim": 7, "reason": "a test", "dry_run": True}
    by = Actor("ann", "accept_suite", "manual__1")
    shown = accept_suite(params, by)["lines"]
    assert any("x: 0 to 10" in line and line.startswith("failed") for line in shown)
    assert alarms(source) == [("suite_failed", "7")]
    results.accept(source, 7, by="ann", reason="a test")
    # The retry of a task that was killed after the acceptance, before the record.
    assert accept_suite({**params, "dry_run": False}, by)["lines"] == [
        "accepted by ann: x: 0 to 10",
        "now clear the run",
    ]
    assert len(json.loads(stored(source, 7, "acceptance.json"))["acceptances"]) == 1
    assert [record["outcome"] for record in records_of("consumer", source)] == ["done", "done"]


def test_accepting_needs_a_broken_rule_a_name_and_a_reason(source, capsys):
    with pytest.raises(NothingToAccept):
        results.accept(source, 7, by="an operator", reason="because")
    assert check(source, 7, [5])["rules"] == 3
    assert command(["accept", source, "7", "--reason", "because"]) == 1
    assert "broken no rule" in capsys.readouterr().err
    with pytest.raises(SetsFailed):
        check(source, 8, [50])
    assert command(["accept", source, "8", "--reason", " "]) == 1
    assert alarms(source) == [("suite_failed", "8")]


def test_the_past_is_of_earlier_passed_or_accepted_runs(source):
    for claim_id in (1, 2, 3):
        check(source, claim_id, [1] * 10)
    with pytest.raises(SetsFailed, match="rows of the run: found 100, expected 2 to 50"):
        check(source, 4, [1] * 100)
    # The run does not belong to the past until a person accepts it.
    assert len(results.past_measures(source, 99)) == 3
    results.accept(source, 4, by="an operator", reason="a large customer")
    check(source, 4, [1] * 100)
    # A task that was killed at its end runs again: its run counts once, with the same result.
    check(source, 4, [1] * 100)
    assert [run["n"] for run in results.past_measures(source, 99)] == [10, 10, 10, 100]
    assert len(results.past_measures(source, 4)) == 3


def test_the_result_can_be_read_in_a_terminal(source, capsys):
    with pytest.raises(SetsFailed):
        check(source, 7, [50])
    assert command(["show", source, "7"]) == 0
    assert "1 of 1 rows break it" in capsys.readouterr().out
    assert command(["show", source, "7", "--html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert command(["show", source, "8"]) == 1


def test_a_name_cannot_leave_the_folder():
    for part in ("../models", "a/b", "", "..", "a b"):
        with pytest.raises(ValueError, match="part of a path"):
            results.folder("consumer", part)
