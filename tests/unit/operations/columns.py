"""The columns of the operational database: the code of the release before runs on this release's tables.

Between a deploy and the end of the last task that was started before it, and after a rollback, older code reads and
writes newer tables. Each package with migrations has a list beside them, `released_columns.txt`; `python -m
tests.unit.operations.columns` adds what is missing.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Column, Index, MetaData, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

INCLUDE = Path(__file__).resolve().parents[3] / "include"
LIST = "migrations/released_columns.txt"
HEADER = """\
# Columns and unique keys of this package's tables, one a line: `table.column type`, and `null` or `default` where a row
# may leave it out. The code of the release before runs on the tables of the next one, so a column is retired in two
# releases: the first neither reads nor writes it, the second has neither the column nor its line here. A wider type:
# change the line. `python -m tests.unit.operations.columns` adds lines, and removes none.
"""
NULLABLE, DEFAULT = "null", "default"


def declared() -> MetaData:
    """The tables of every package of include/."""
    from include.streams.operations.tables import metadata

    for module in sorted(INCLUDE.rglob("*.py")):
        if " = Table(\n" in module.read_text():
            importlib.import_module(".".join(module.relative_to(INCLUDE.parent).with_suffix("").parts))
    return metadata


def lines(tables: Iterable[Table]) -> set[str]:
    """A line for each column and unique key."""
    return {line for table in tables for line in [*map(_column, table.columns), *_unique(table)]}


def _column(column: Column) -> str:
    optional = NULLABLE if column.nullable else DEFAULT if _has_default(column) else ""
    return f"{column.table.name}.{column.name} {column.type.compile(postgresql.dialect())} {optional}".rstrip()


def _has_default(column: Column) -> bool:
    return column.server_default is not None or column.identity is not None


def _unique(table: Table) -> Iterable[str]:
    keys = [c for c in table.constraints if isinstance(c, UniqueConstraint)]
    indexes = [i for i in table.indexes if isinstance(i, Index) and i.unique]
    for key in [table.primary_key, *keys, *indexes]:
        if names := ", ".join(sorted(column.name for column in key.columns)):
            yield f"{table.name}: unique ({names})"


def released() -> set[str]:
    """The lines of the committed lists."""
    texts = [path.read_text() for path in INCLUDE.rglob(LIST)]
    return {line for text in texts for line in text.splitlines() if line and not line.startswith("#")}


def refused(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """What the code of `before` could not read or write in the tables of `now`.

    Args:
        before: The lines of the release before.
        now: The lines of this release.

    Returns:
        A sentence for each.
    """
    before, now = set(before), set(now)
    tables = {_table(line) for line in before}
    kept = {line.split()[0] for line in before}
    found = [f"{line}: is gone or has changed" for line in before if not _is_served(line, now)]
    found += [
        f"{line}: is new and must be given"
        for line in now
        if ": unique" not in line
        and _table(line) in tables
        and line.split()[0] not in kept
        and not line.endswith((f" {NULLABLE}", f" {DEFAULT}"))
    ]
    return sorted(found)


def _table(line: str) -> str:
    return line.replace(":", ".").split(".")[0]


def _is_served(line: str, now: set[str]) -> bool:
    """Whether code that knows this line finds it: what had to be given may be left out now, not the other way round."""
    optional = line.endswith((f" {NULLABLE}", f" {DEFAULT}"))
    return line in now or (not optional and bool({f"{line} {NULLABLE}", f"{line} {DEFAULT}"} & now))


def _package(table: str) -> Path:
    """The package whose migrations make the table: its own if it has any, else `operations`."""
    for folder in INCLUDE.rglob("migrations"):
        if any(re.search(rf'Table\(\s*"{table}"', path.read_text()) for path in folder.parent.glob("*.py")):
            return folder.parent
    return INCLUDE / "streams" / "operations"


def write() -> None:
    """Add what the lists lack."""
    before = released()
    names = {line.split()[0] for line in before if ": unique" not in line}
    new = {line for line in lines(declared().tables.values()) if line.split()[0] not in names}
    by_package: dict[Path, list[str]] = {}
    for line in sorted(before | new):
        by_package.setdefault(_package(_table(line)), []).append(line)
    for package, its_lines in by_package.items():
        (package / LIST).write_text(HEADER + "".join(f"{line}\n" for line in its_lines))


if __name__ == "__main__":
    write()
