"""The columns and rules of the operational database: code of the previous release runs on this release's tables.

Between a deploy and the end of the last task that was started before it, and after a rollback, older code reads and
writes newer tables. Each package with migrations has a list beside them, `released_columns.txt`; `python -m
tests.unit.operations.columns` adds what is missing, except what code of the release before could not use.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql

INCLUDE = Path(__file__).resolve().parents[3] / "include"
LIST = "migrations/released_columns.txt"
HEADER = """\
# Columns and rules of this package's tables, one a line: `table.column type`, and `null` or `default` where a row may
# leave it out; `table: rule` for unique keys, CHECKs and foreign keys. The code of the release before runs on the
# tables of the next one. So a column is retired in two releases: the first neither reads nor writes it, the second has
# neither the column nor its line here. A new rule of an old table takes two releases as well: the code of the first
# keeps it, the second adds it, and its line here. A wider type, a wider CHECK, a dropped rule: change or remove the
# line. `python -m tests.unit.operations.columns` adds lines of new tables, and of columns that a row may leave out.
"""
NULLABLE, DEFAULT = "null", "default"
_OPTIONAL = (f" {NULLABLE}", f" {DEFAULT}")


def declared() -> MetaData:
    """The tables of every package of include/."""
    from include.streams.operations.tables import metadata

    for module in sorted(INCLUDE.rglob("*.py")):
        if " = Table(\n" in module.read_text():
            importlib.import_module(".".join(module.relative_to(INCLUDE.parent).with_suffix("").parts))
    return metadata


def lines(tables: Iterable[Table]) -> set[str]:
    """A line for each column and each rule: unique keys, CHECKs and foreign keys."""
    return {line for table in tables for line in [*map(_column, table.columns), *_rules(table)]}


def _column(column: Column) -> str:
    optional = NULLABLE if column.nullable else DEFAULT if _has_default(column) else ""
    return f"{column.table.name}.{column.name} {column.type.compile(postgresql.dialect())} {optional}".rstrip()


def _has_default(column: Column) -> bool:
    return column.server_default is not None or column.identity is not None


def _rules(table: Table) -> Iterable[str]:
    for constraint in table.constraints:
        match constraint:
            case PrimaryKeyConstraint() | UniqueConstraint():
                if names := ", ".join(sorted(column.name for column in constraint.columns)):
                    yield f"{table.name}: unique ({names})"
            case CheckConstraint():
                yield f"{table.name}: check ({_one_line(constraint.sqltext)})"
            case ForeignKeyConstraint():
                yield f"{table.name}: {_foreign_key(constraint)}"
            case _:
                raise NotImplementedError(f"{table.name}: a line for {type(constraint).__name__}")
    for index in table.indexes:
        if index.unique:
            names = ", ".join(sorted(map(_one_line, (getattr(e, "name", e) for e in index.expressions))))
            where = index.dialect_options["postgresql"]["where"]
            yield f"{table.name}: unique ({names})" + ("" if where is None else f" where {_one_line(where)}")


def _foreign_key(constraint: ForeignKeyConstraint) -> str:
    pairs = sorted((key.parent.name, key.column.name) for key in constraint.elements)
    ours, theirs = (", ".join(names) for names in zip(*pairs, strict=True))
    then = f" on delete {constraint.ondelete.lower()}" if constraint.ondelete else ""
    return f"foreign key ({ours}) references {constraint.referred_table.name} ({theirs}){then}"


def _one_line(sql: object) -> str:
    return " ".join(str(sql).split())


def released() -> set[str]:
    """The lines of the committed lists."""
    texts = [path.read_text() for path in INCLUDE.rglob(LIST)]
    return {line for text in texts for line in text.splitlines() if line and not line.startswith("#")}


def refused(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """The changes because of which code of `before` could not read or write the tables of `now`.

    Args:
        before: The lines of the release before.
        now: The lines of this release.

    Returns:
        A sentence for each.
    """
    before, now = set(before), set(now)
    found = [f"{line}: is gone or has changed" for line in before if not _is_served(line, now)]
    return sorted(found + [f"{line}: {why}" for line in now if (why := _why_not_added(line, before, now))])


def _why_not_added(line: str, before: set[str], now: set[str]) -> str | None:
    """Why code of `before` could not write rows if this line of `now` was added; None if it could."""
    if line in before or _table(line) not in {_table(known) for known in before}:
        return None
    if not _is_rule(line):
        # A column whose line has changed is already reported as changed.
        is_known = any(line.split()[0] == known.split()[0] for known in before)
        return None if is_known or line.endswith(_OPTIONAL) else "is new and must be given"
    # The old code leaves a new column null, and a null breaks neither a unique key nor a foreign key.
    new = {known for known in now - before if not _is_rule(known) and known.endswith(f" {NULLABLE}")}
    if any(column in _columns_of_key(line) for column in (known.split()[0].split(".")[1] for known in new)):
        return None
    return "is a new rule, and the code before may break it"


def _columns_of_key(line: str) -> set[str]:
    """The columns of a unique key or foreign key; none for a CHECK, whose columns are not known."""
    found = re.match(r"\w+: (?:unique|foreign key) \(([^()]*)\)", line)
    return set(found[1].split(", ")) if found else set()


def _is_rule(line: str) -> bool:
    return line.split()[0].endswith(":")


def _table(line: str) -> str:
    return line.replace(":", ".").split(".")[0]


def _is_served(line: str, now: set[str]) -> bool:
    """Whether code that uses this column or rule still can: a required column may become optional, not the reverse."""
    return line in now or (not line.endswith(_OPTIONAL) and bool({line + end for end in _OPTIONAL} & now))


def _package(table: str) -> Path:
    """The package whose migrations make the table: its own if it has any, else `operations`."""
    for folder in INCLUDE.rglob("migrations"):
        if any(re.search(rf'Table\(\s*"{table}"', path.read_text()) for path in folder.parent.glob("*.py")):
            return folder.parent
    return INCLUDE / "streams" / "operations"


def unlisted(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """The lines of `now` that the lists lack and that may be added: code of `before` can still write its rows."""
    before, now = set(before), set(now)
    columns = {line.split()[0] for line in before if not _is_rule(line)}
    return sorted(
        line
        for line in now - before
        if (_is_rule(line) or line.split()[0] not in columns) and _why_not_added(line, before, now) is None
    )


def write() -> None:
    """Add what the lists lack."""
    before = released()
    by_package: dict[Path, list[str]] = {}
    for line in sorted({*before, *unlisted(before, lines(declared().tables.values()))}):
        by_package.setdefault(_package(_table(line)), []).append(line)
    for package, its_lines in by_package.items():
        (package / LIST).write_text(HEADER + "".join(f"{line}\n" for line in its_lines))


if __name__ == "__main__":
    write()
