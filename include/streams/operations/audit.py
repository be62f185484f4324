"""Repairs by people, and the record of who did which, when and why (the table `operations_audit`).

A repair is one function of the library. The Dags of `dags/operations/` and the commands call the same function, with
the same parameters. It does its work through `repair_rows` or `repair_services`, which write the record:

1. A row with the outcome `started` is committed before anything is changed. Killed after that: the row stays `started`,
   and the retry of the task gets a row of its own.
2. The outcome is written in the transaction of the repair if the repair only changes rows of the operational database.
   Otherwise it is written after the repair. Killed between the two: the retry repairs again, so such a repair must be
   safe to repeat.

A Dag run does its repair once. If it is retried after the outcome was written, or cleared, it reports what was done and
changes nothing. A dry run is recorded too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from sqlalchemy import Connection, func, insert, select, update

from include.streams.operations.database import begin
from include.streams.operations.tables import operations_audit

log = logging.getLogger(__name__)

# A person reads the text of a record. The whole result is in the log.
MAX_DETAIL = 10_000
# What is no argument of a repair: it has a column of its own.
_COLUMNS = frozenset({"reason", "dry_run"})


class Refused(ValueError):
    """The repair cannot be done; the text says why and what to do. A retry would be refused too."""


class RepairParams(TypedDict):
    """The parameters that every repair has.

    Attributes:
        reason: Why the repair is done; needed unless `dry_run` is on.
        dry_run: Report what would be done, and change nothing.
    """

    reason: str
    dry_run: bool


class RepairReport(TypedDict):
    """What a repair has done, or would do: the return value of its task.

    Attributes:
        dry_run: Whether nothing was changed.
        lines: One text for each change.
    """

    dry_run: bool
    lines: list[str]


@dataclass(frozen=True)
class Actor:
    """Who does a repair.

    Attributes:
        name: The user in Airflow, or in the shell.
        dag_id: The Dag that does the repair; None for a command in a shell.
        run_id: Its run.
    """

    name: str
    dag_id: str | None = None
    run_id: str | None = None

    @classmethod
    def of_run(cls, dag_run: Any) -> Actor:
        """The user who triggered a Dag run, as Airflow has recorded it.

        Args:
            dag_run: The `dag_run` of a task's context.
        """
        name = getattr(dag_run, "triggering_user_name", None)
        # A run that no person has triggered, for example one of a schedule that somebody added.
        kind = getattr(dag_run.run_type, "value", dag_run.run_type)
        return cls(name or f"no user ({kind} run)", dag_run.dag_id, dag_run.run_id)


def repair_rows(
    action: str, params: Mapping[str, Any], by: Actor, work: Callable[[Connection], list[str]]
) -> RepairReport:
    """Do a repair that only changes rows of the operational database, in one transaction with its record.

    A dry run does the same work, and rolls it back. So its report is exact.

    Args:
        action: The repair's name, which is also its Dag's.
        params: Its parameters, with those of `RepairParams`.
        by: Who does it.
        work: Does the repair in the given transaction; returns one text for each change. It raises `Refused` if the
            repair cannot be done.

    Returns:
        The report.

    Raises:
        Refused: The reason is missing, a parameter is not plain text, or the repair cannot be done.
        Exception: An error of the database, or of `work`; nothing was changed.
    """
    with _recorded(action, params, by) as record:
        if record.before is not None:
            return record.before
        with begin() as connection:
            if (before := record.lock(connection)) is not None:
                return before
            if params["dry_run"]:
                log.info("dry run: the changes that the next lines name are rolled back")
            lines = work(connection)
            if params["dry_run"]:
                connection.rollback()
            else:
                record.end(connection, "done", lines)
        if params["dry_run"]:
            with begin() as connection:
                record.end(connection, "done", lines)
        return record.report(lines)


def repair_services(
    action: str, params: Mapping[str, Any], by: Actor, work: Callable[[], list[str]], *, repeats: bool = False
) -> RepairReport:
    """Do a repair that changes other services too, such as Kafka Connect; its record is written before and after it.

    Args:
        action: The repair's name, which is also its Dag's.
        params: Its parameters, with those of `RepairParams`.
        by: Who does it.
        work: Does the repair, or only reports if `dry_run` is on; returns one text for each change. It must be safe to
            repeat. It raises `Refused` if the repair cannot be done.
        repeats: Do it again if the run has done it before and was cleared.

    Returns:
        The report.

    Raises:
        Refused: The reason is missing, a parameter is not plain text, or the repair cannot be done.
        Exception: An error of a service.
    """
    with _recorded(action, params, by, repeats=repeats) as record:
        if record.before is not None:
            return record.before
        lines = work()
        with begin() as connection:
            record.end(connection, "done", lines)
        return record.report(lines)


class _Record:
    """The row of one try."""

    def __init__(self, action: str, params: Mapping[str, Any], by: Actor, repeats: bool) -> None:
        self._dry_run = bool(params["dry_run"])
        self._values = {
            "user_name": by.name,
            "dag_id": by.dag_id,
            "run_id": by.run_id,
            "action": action,
            "arguments": {name: value for name, value in params.items() if name not in _COLUMNS},
            "reason": params["reason"],
            "dry_run": self._dry_run,
        }
        with begin() as connection:
            self.before = None if repeats else self._done_before(connection)
            if self.before is None:
                row = insert(operations_audit).values(self._values).returning(operations_audit.c.id)
                self._id = connection.execute(row).scalar_one()

    def lock(self, connection: Connection) -> RepairReport | None:
        """Wait for another try of the same run; returns its report if it has done the repair in the meantime."""
        if self._values["run_id"] is not None:
            # Locks the rows of all tries, so that a task that Airflow declared dead but that still runs, and its
            # retry, do the repair once.
            tries = select(operations_audit.c.id).where(*self._of_run()).order_by(operations_audit.c.id)
            connection.execute(tries.with_for_update())
        if (before := self._done_before(connection)) is not None:
            self.end(connection, "done", before["lines"])
        return before

    def end(self, connection: Connection, outcome: str, lines: list[str]) -> None:
        detail = "\n".join(lines).replace("\0", "?")[:MAX_DETAIL]
        own = update(operations_audit).where(operations_audit.c.id == self._id)
        connection.execute(own.values(outcome=outcome, detail=detail, ended_at=func.clock_timestamp()))

    def report(self, lines: list[str]) -> RepairReport:
        log.info("%s%s", "dry run, nothing was changed:\n" if self._dry_run else "", "\n".join(lines))
        return {"dry_run": self._dry_run, "lines": lines}

    def _of_run(self) -> tuple[Any, ...]:
        columns = operations_audit.c
        # With the arguments: a run of the same name, started after the first was deleted, may repair something else.
        return tuple(columns[name] == self._values[name] for name in ("dag_id", "run_id", "action", "arguments"))

    def _done_before(self, connection: Connection) -> RepairReport | None:
        if self._values["run_id"] is None or self._dry_run:
            return None
        columns = operations_audit.c
        is_done = (*self._of_run(), columns.outcome == "done", columns.dry_run.is_(False))
        row = connection.execute(select(columns.ended_at, columns.detail).where(*is_done).limit(1)).one_or_none()
        if row is None:
            return None
        log.info(
            "nothing was changed: this run has done its repair already, at %s; trigger a new run to repeat it",
            row.ended_at.isoformat(),
        )
        return self.report(row.detail.split("\n"))


@contextmanager
def _recorded(action: str, params: Mapping[str, Any], by: Actor, *, repeats: bool = False) -> Iterator[_Record]:
    checked = {name: _plain(name, value) for name, value in params.items()}
    if not checked["dry_run"] and not checked["reason"]:
        raise Refused("the reason is empty: write why the repair is done, or set dry_run to see what it would do")
    record = _Record(action, checked, by, repeats)
    try:
        yield record
    except Exception as error:
        outcome = "refused" if isinstance(error, Refused) else "failed"
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        try:
            with begin() as connection:
                record.end(connection, outcome, [text])
        except Exception as unavailable:
            # The repair's own error is the one that the person needs.
            log.warning("the outcome was not recorded, the record says 'started': %s", unavailable)
        raise


def one_line(reason: str) -> str:
    """A reason as one line of text, without spaces at its ends."""
    return " ".join(reason.split())


def _plain(name: str, value: Any) -> Any:
    """The value; raises Refused if it has characters that a log, a terminal or a JSON column must not get."""
    if isinstance(value, str):
        value = one_line(value) if name == "reason" else value
        if not value.isprintable():
            raise Refused(f"{name} has characters that cannot be shown, such as control characters: remove them")
    elif isinstance(value, list):
        return [_plain(name, item) for item in value]
    return value
