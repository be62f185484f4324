"""Import one file of the register: check it, apply it to the operational database or reject it, and move the object.

A file is identified by (object name, generation). Its rows and its row in `register_files` are written in one
transaction; the object is moved afterwards. Killed before the transaction: nothing has happened. Killed between the
transaction and the move: the retry finds the row in `register_files`, applies nothing, and moves the object. Of two
concurrent processes, the second waits for the first one's row and then finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from include.streams.lake.buckets import Bucket, bucket
from include.water.alarm_kinds import WaterAlarmKind
from include.water.register.layout import (
    ARCHIVE,
    INCOMING,
    MAX_BYTES,
    REJECTED,
    Kind,
    Layout,
    identity,
    layout_of,
    safe_name,
)
from include.water.register.reading import Unreadable, read_rows

if TYPE_CHECKING:
    import pyarrow
    from sqlalchemy import Connection

    from include.streams.validators.evaluation import SetResult
    from include.streams.validators.rules import SetSuite

log = logging.getLogger(__name__)

SOURCE = "import_site_register"
_ROWS_A_STATEMENT = 1_000
# The columns of a register's row that name its file.
SOURCE_COLUMNS = ("object_name", "generation", "uploaded_at")


def import_file(file: Mapping[str, Any]) -> dict[str, Any]:
    """Import one file.

    Args:
        file: One of the files that `list_files` returned.

    Returns:
        The file's `kind`, `state` and number of `rows`; the state is "gone" when the file was removed or replaced.

    Raises:
        Exception: What the store and the database raise; Airflow retries.
    """
    name, generation = str(file["name"]), int(file["generation"])
    objects = bucket()
    done = _recorded(name, generation)
    if done is None:
        # The name decides the layout; a file that is too large is not even read.
        layout = layout_of(name)
        data = None
        if layout is not None and int(file["size"]) <= MAX_BYTES:
            found = objects.read(name)
            if found is None or found[1] != generation:
                log.info("gone or replaced before it was read: generation=%d", generation)
                return {"state": "gone", "rows": 0}
            data = found[0]
        table, suite, result = _check(layout, data, int(file["size"]))
        if result.passed and layout is not None and table is not None:
            place = f"{ARCHIVE}{identity(name, generation)}/{safe_name(name)}"
            done = _apply(file, layout, table, place)
        else:
            done = _reject(objects, file, layout, suite, result)
    objects.move(name, generation, done["stored_as"])
    log.info("imported: generation=%d kind=%s state=%s rows=%d", generation, done["kind"], done["state"], done["rows"])
    return {"kind": done["kind"], "state": done["state"], "rows": done["rows"]}


def _check(layout: Layout | None, data: bytes | None, size: int) -> tuple[pyarrow.Table | None, SetSuite, SetResult]:
    from include.streams.validators.evaluation import Outcome, SetResult, State, evaluate
    from include.streams.validators.rules import SetSuite, Severity

    def refused(rule: str, expected: str, observed: str) -> SetResult:
        outcome = Outcome(rule, "run", Severity.critical, State.failed, expected, observed)
        return SetResult(suite.name, 0, (outcome,), {})

    if layout is None:
        suite = SetSuite("register", (), description=f"A file that was uploaded below {INCOMING}.")
        return None, suite, refused("the file's name", "sites*.csv or customers*.csv", "another name")
    suite = layout.suite()
    if data is None:
        return None, suite, refused("the file's size", f"at most {MAX_BYTES:,} bytes", f"{size:,} bytes")
    try:
        table = read_rows(data, layout)
    except Unreadable as error:
        expected = f"a CSV file in UTF-8 with the columns {', '.join(layout.columns)}"
        return None, suite, refused("the file can be read", expected, str(error))
    return table, suite, evaluate(suite, table)


def _recorded(name: str, generation: int) -> dict[str, Any] | None:
    from sqlalchemy import select

    from include.streams import begin
    from include.water.tables import register_files as files

    with begin() as connection:
        query = select(files).where(files.c.object_name == name, files.c.generation == generation)
        row = connection.execute(query).one_or_none()
    return dict(row._mapping) if row is not None else None


def _apply(file: Mapping[str, Any], layout: Layout, table: pyarrow.Table, place: str) -> dict[str, Any]:
    from include.streams import begin

    with begin() as connection:
        row = {**_file_row(file, layout.kind, place), "state": "applied", "rows": table.num_rows}
        if _record(connection, row):
            _write(connection, layout, table, {name: row[name] for name in SOURCE_COLUMNS})
            _close_alarms(connection, row["object_name"], row["generation"])
    return row


def _reject(
    objects: Bucket, file: Mapping[str, Any], layout: Layout | None, suite: SetSuite, result: SetResult
) -> dict[str, Any]:
    from include.streams import begin
    from include.streams.operations.alarms import open_alarm
    from include.streams.validators.results import store
    from include.streams.validators.sets import document

    name, generation = str(file["name"]), int(file["generation"])
    key = identity(name, generation)
    facts = {
        "source": name.rsplit("/", 1)[-1][:100],
        "what": "generation",
        "thing": "file",
        "verdict": "Set aside",
        "key": str(generation),
        "counts": {"bytes": int(file["size"])},
        "acceptances": [],
        "stopped": True,
        "consequence": "No row of this file was applied. The register is unchanged.",
        "steps": [
            {"text": "Correct the file and upload it again. If it has the same name, the alarm closes by itself."},
            {"text": "The original file is in the same folder as this page."},
        ],
    }
    # Before the row: a file that is recorded as rejected always has its report.
    page = store(f"{REJECTED}{key}", document(suite, result, facts), objects)
    broken = ", ".join(outcome.rule for outcome in result.failed[:5])
    with begin() as connection:
        place = f"{REJECTED}{key}/{safe_name(name)}"
        row = {**_file_row(file, layout.kind if layout else None, place), "state": "rejected", "rows": result.rows}
        if _record(connection, row):
            text = f"a file was set aside ({len(result.failed)} rules broken: {broken}); report: {page}"
            open_alarm(connection, SOURCE, WaterAlarmKind.file_rejected, text, key=key)
    return row


def _close_alarms(connection: Connection, name: str, generation: int) -> None:
    """Close the alarms of earlier bad files with the name of this good file."""
    from sqlalchemy import select

    from include.streams.operations.alarms import close_alarm
    from include.water.tables import register_files as files

    bad = select(files.c.generation).where(
        files.c.object_name == name, files.c.state == "rejected", files.c.generation < generation
    )
    for earlier in connection.execute(bad).scalars().all():
        close_alarm(connection, SOURCE, WaterAlarmKind.file_rejected, key=identity(name, earlier))


def _file_row(file: Mapping[str, Any], kind: Kind | None, place: str) -> dict[str, Any]:
    return {
        "object_name": str(file["name"]),
        "generation": int(file["generation"]),
        "kind": kind.value if kind else None,
        "stored_as": place,
        "uploaded_at": datetime.fromisoformat(file["uploaded_at"]),
    }


def _record(connection: Connection, row: Mapping[str, Any]) -> bool:
    """Record the file; returns False when another process has recorded it. Waits for a process that is recording it."""
    from sqlalchemy.dialects.postgresql import insert

    from include.water.tables import register_files as files

    new = insert(files).values(**row).on_conflict_do_nothing().returning(files.c.generation)
    return connection.execute(new).first() is not None


def _write(connection: Connection, layout: Layout, table: pyarrow.Table, source: Mapping[str, Any]) -> None:
    """Add rows, and replace rows with the same id. No row is deleted: a truncated file must not empty the register."""
    from sqlalchemy import func, tuple_
    from sqlalchemy.dialects.postgresql import insert

    from include.water.tables import register_customers, register_sites

    target = {Kind.sites: register_sites, Kind.customers: register_customers}[layout.kind]
    for rows in _batches(layout, table):
        statement = insert(target).values([{**row, **source} for row in rows])
        new = statement.excluded
        changed = {name: new[name] for name in (*layout.columns, *source) if name != layout.key}
        statement = statement.on_conflict_do_update(
            index_elements=[layout.key],
            set_={**changed, "imported_at": func.now()},
            # Two concurrent files are applied in any order; the row that was uploaded last wins.
            where=tuple_(target.c.uploaded_at, target.c.generation) < tuple_(new.uploaded_at, new.generation),
        )
        connection.execute(statement)


def _batches(layout: Layout, table: pyarrow.Table) -> Iterator[Sequence[dict[str, Any]]]:
    numbers = {f"{name}_number": name for name in layout.numbers}
    texts = [name for name in layout.columns if name not in layout.numbers]
    rows = table.select([*texts, *numbers]).rename_columns([*texts, *numbers.values()])
    # Sorted by id: otherwise two files with the same customers could deadlock.
    rows = rows.sort_by(layout.key)
    for start in range(0, rows.num_rows, _ROWS_A_STATEMENT):
        yield rows.slice(start, _ROWS_A_STATEMENT).to_pylist()
