"""Check a run's rows against a suite: the task that lets the run continue or stops it.

    summary = commit_clean(...)
    check_sets(consumer, summary)     # raises SetsFailed: no later task runs, nothing is deleted

The claim of a stopped run stays open, so the lane claims nothing new until the run is cleared. Clear the run after the
cause is fixed, or after a person has accepted the run: docs/runbooks/suite-failed.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict

from airflow.sdk.exceptions import AirflowFailException

from include.streams.validators import results, sources

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from include.streams.lake.offsets import LogRange
    from include.streams.validators.evaluation import SetResult
    from include.streams.validators.rules import SetSuite

log = logging.getLogger(__name__)

# Limited, so that the text stays readable. The page shows all broken rules.
MAX_RULES_IN_ERROR = 6
MIN_LANDED_FOR_SHARES = 100
COUNTS = ("landed", "clean", "dead_lettered", "duplicates", "not_wanted")


class SetsFailed(AirflowFailException):
    """A run's rows break rules that nobody has accepted. Not retried: the same rows would break the rules again."""


class CheckedSet(TypedDict):
    """The result of the check, as an XCom.

    Attributes:
        suite: The suite's name; None if the consumer has no suite. The other keys are missing then.
        rules: The number of rules.
        warnings: The broken rules that are warnings.
        accepted: The broken rules that a person has accepted.
        page: The page's address.
    """

    suite: str | None
    rules: NotRequired[int]
    warnings: NotRequired[list[str]]
    accepted: NotRequired[list[str]]
    page: NotRequired[str]


class HasSuite(Protocol):
    """The part of a consumer that these checks need."""

    @property
    def name(self) -> str: ...

    def load_suite(self) -> Any: ...


def check_sets(consumer: HasSuite, summary: Mapping[str, Any]) -> CheckedSet:
    """Check the rows that the run has written to the clean table.

    A repeated check has the same result: it compares only with runs before this claim.

    Args:
        consumer: The consumer with the suite.
        summary: `claim_id`, `table` (the clean table's identifier), `ranges` ([{"partition", "start", "end", "log"}],
            end exclusive), the counts `landed`, `clean`, `dead_lettered`, `duplicates` and `not_wanted`, and `run_id`
            if there is one. The suite's measures may use the counts, and `dead_lettered_share` and `duplicate_share`.

    Returns:
        The result; only {"suite": None} if the consumer has no suite.

    Raises:
        SetsFailed: The rows break rules that nobody has accepted.
    """
    load = consumer.load_suite()
    if load is None:
        log.info("no suite: consumer=%s", consumer.name)
        return {"suite": None}
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect

    suite = load()
    with connect() as connection:
        table = load_catalog().load_table(summary["table"])
        rows = rows_of(connection, table, summary["ranges"], suite.columns)
        return check_run(consumer.name, suite, rows, summary)


def rows_of(
    connection: DuckDBPyConnection, table: Any, ranges: Sequence[LogRange], columns: Sequence[str]
) -> DuckDBPyRelation:
    """The rows of the clean table from given offsets.

    Args:
        connection: A DuckDB connection.
        table: The clean table.
        ranges: As in `summary` of `check_sets`.
        columns: The columns to read.
    """
    from include.streams.lake.engine import quoted
    from include.streams.validators import coordinates

    return coordinates.rows_of(connection, table, ranges).project(", ".join(map(quoted, columns)))


def check_run(source: str, suite: SetSuite, rows: Any, summary: Mapping[str, Any]) -> CheckedSet:
    """Check any rows as the rows of a claim, and store the result.

    Args:
        source: The name of the consumer.
        suite: The rules.
        rows: The rows, as `evaluation.evaluate` takes them.
        summary: As in `check_sets`; `table` is not needed.

    Returns:
        The result.

    Raises:
        SetsFailed: The rows break rules that nobody has accepted.
    """
    from include.streams.validators.evaluation import evaluate

    claim_id = int(summary["claim_id"])
    counts = {name: summary.get(name) for name in COUNTS}
    past, known = results.past_measures(source, claim_id), sources.known(source, suite)
    result = evaluate(suite, rows, counts=counts | _shares(counts), past=past, known_sources=known)
    accepted = results.acceptances(source, claim_id)
    refused = results.not_accepted([outcome.rule for outcome in result.failed], accepted)
    facts = {
        "source": source,
        "key": str(claim_id),
        "run_id": summary.get("run_id"),
        "counts": counts,
        "ranges": [dict(r) for r in summary.get("ranges", ())],
        "acceptances": [vars(acceptance) for acceptance in accepted],
        "stopped": bool(refused),
        "steps": _steps(source, claim_id) if refused else [],
    }
    page = results.store(results.folder(source, claim_id), document(suite, result, facts))
    sources.update_alarms(source, result.sources, page)
    _log(source, claim_id, result, accepted=not refused and not result.passed)
    if refused:
        raise SetsFailed(_stop(source, claim_id, result, refused, page))
    # Accepted runs are stored too, because unusual but correct data are part of the normal range.
    results.remember(source, claim_id, result.measures)
    results.close(source, claim_id)
    return {
        "suite": suite.name,
        "rules": len(result.outcomes),
        "warnings": [outcome.rule for outcome in result.warned],
        "accepted": [outcome.rule for outcome in result.failed],
        "page": page,
    }


def _shares(counts: Mapping[str, Any]) -> dict[str, float | None]:
    """`dead_lettered_share` and `duplicate_share`, from 0 to 1, of the landed messages that are wanted."""
    landed = (counts["landed"] or 0) - (counts["not_wanted"] or 0)
    # None for few messages, because a single invalid message would be a large share of them.
    enough = landed >= MIN_LANDED_FOR_SHARES
    parts = {"dead_lettered_share": counts["dead_lettered"], "duplicate_share": counts["duplicates"]}
    return {name: part / landed if enough and part is not None else None for name, part in parts.items()}


def document(suite: SetSuite, result: SetResult, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The result as JSON, from which the page is rendered too.

    Args:
        suite: The rules.
        result: Their result.
        facts: Facts about the run for the page, such as `source`, `key`, `counts`, `ranges` and `steps`.
    """
    return {
        "suite": suite.name,
        "description": suite.description,
        "checked_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        **result.to_json(),
    }


def _steps(source: str, claim_id: int) -> list[dict[str, str]]:
    """The steps that an operator can take for a stopped run."""
    return [
        {
            "text": "If the data are wrong: make the contract refuse such rows, deploy, and clear the whole run. It "
            "then reads its own offsets again. If a rule is wrong: change the rule, deploy, and clear this task."
        },
        {
            "text": "If the data are unusual but correct: accept the run with the Dag accept_suite or "
            "the command, then clear it. Name and reason are stored.",
            "command": f"python -m include.streams.validators accept {source} {claim_id} --reason '...'",
        },
        {"text": "Until then, the lane claims nothing new. Messages that land in the meantime wait."},
    ]


def _stop(source: str, claim_id: int, result: SetResult, refused: Sequence[str], page: str) -> str:
    """Open the alarm; returns the error text for the operator."""
    from include.streams.operations.alarm_kinds import AlarmKind
    from include.streams.operations.alarms import open_alarm
    from include.streams.operations.database import begin

    broken = [outcome for outcome in result.failed if outcome.rule in refused]
    shown = [f"{o.rule}: found {o.observed}, expected {o.expected}" for o in broken[:MAX_RULES_IN_ERROR]]
    if len(broken) > len(shown):
        shown.append(f"and {len(broken) - len(shown)} more")
    what = f"claim {claim_id} breaks {len(broken)} of {len(result.outcomes)} rules ({'; '.join(shown)})"
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.suite_failed, f"{what}; page: {page}", key=str(claim_id))
    return (
        f"{source}: {what}. Nothing was deleted, no later task has run, and no new range is claimed until this run has "
        f"succeeded. Page: {page}. If the data are unusual but correct: the Dag accept_suite, or python -m "
        f"include.streams.validators accept {source} {claim_id} --reason '...', then clear this task; if they "
        "are wrong: docs/runbooks/suite-failed.md"
    )


def _log(source: str, claim_id: int, result: SetResult, *, accepted: bool) -> None:
    text = "suite checked: source=%s claim=%d suite=%s rows=%d rules=%d failed=%d warned=%d accepted=%s"
    counts = (result.rows, len(result.outcomes), len(result.failed), len(result.warned))
    log.info(text, source, claim_id, result.suite, *counts, accepted)
