"""Files that follow from the code of a package: revisions, JSON Schemas, and the lists of what a release must keep.

`python -m scaffold.derived`, in the folder that holds the project: this process imports the project's packages.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path.cwd()
TEMPLATE = '''"""{summary}

A revision records what was done, so it spells out the tables and does not import them; a test compares the two.
"""

import sqlalchemy as sa
from alembic import op{more}

revision = "{revision}"
down_revision = {down}
branch_labels = {label}
depends_on = None


def upgrade() -> None:
{upgrade}


def downgrade() -> None:
{downgrade}
'''


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaffold.derived", description=__doc__)
    parser.add_argument("package")
    parser.add_argument("--topic", help="write the JSON Schema of this topic")
    options = parser.parse_args(arguments)
    revision = write_revision(options.package)
    if revision:
        print(revision)
    _write_lists()
    if options.topic:
        _write_schema(options.topic)
    return 0


def write_revision(package: str) -> str | None:
    """Write a revision that creates the tables of a package that no revision creates.

    Args:
        package: The package's folder in `include/`.

    Returns:
        The path of the revision; None if no table lacks one.
    """
    from include.streams.operations.tables import metadata

    folder = ROOT / "include" / package / "migrations" / "versions"
    new = [metadata.tables[name] for name in _without_revision(package, folder)]
    if not new:
        return None
    revisions = sorted(folder.glob("*.py"))
    number = max((int(found[1]) for path in revisions if (found := re.search(r"_(\d+)$", path.stem))), default=0) + 1
    path = folder / f"{package}_{number:04}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_revision(package, path.stem, revisions[-1].stem if revisions else None, new))
    return str(path.relative_to(ROOT))


def _without_revision(package: str, folder: Path) -> list[str]:
    """The tables that the package's tables.py declares and no revision of it creates."""
    from importlib import import_module

    from sqlalchemy import Table

    declared = vars(import_module(f"include.{package}.tables")).values()
    names = {value.name for value in declared if isinstance(value, Table)}
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    created = set(re.findall(r'create_table\(\s*"(\w+)"', text)) | set(
        re.findall(r'rename_table\(\s*"\w+",\s*"(\w+)"', text)
    )
    return sorted(names - created)


def _revision(package: str, revision: str, down: str | None, tables: Iterable) -> str:
    from alembic.autogenerate import render_python_code
    from alembic.operations import ops

    from include.streams.operations.tables import metadata

    wanted = set(tables)
    ordered = [table for table in metadata.sorted_tables if table in wanted]
    create = [operation for table in ordered for operation in _creation(table)]
    upgrade = render_python_code(ops.UpgradeOps(create), migration_context=None)
    drop = [ops.DropTableOp.from_table(table) for table in reversed(ordered)]
    return TEMPLATE.format(
        summary=", ".join(table.name for table in ordered),
        more="\nfrom sqlalchemy.dialects import postgresql" if "postgresql." in upgrade else "",
        revision=revision,
        down=repr(down),
        label=repr((package,)) if down is None else None,
        upgrade=_code(upgrade),
        downgrade="\n".join(f'    op.drop_table("{operation.table_name}")' for operation in drop),
    )


def _creation(table):
    from alembic.operations import ops

    yield ops.CreateTableOp.from_table(table)
    yield from (ops.CreateIndexOp.from_index(index) for index in sorted(table.indexes, key=lambda each: str(each.name)))


def _code(rendered: str) -> str:
    # The renderer names a type that it does not import.
    rendered = rendered.replace("astext_type=Text()", "")
    lines = [line for line in rendered.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines if not lines or lines[0].startswith("    ") else [f"    {line}" for line in lines])


def _write_lists() -> None:
    from tests.dags import names
    from tests.unit.operations import columns

    columns.write()
    names.write(names.released() | names.imported(names.DAGS.rglob("*.py")))


def _write_schema(name: str) -> None:
    from include.project import PROJECT
    from include.streams.contracts import schemas

    topic = PROJECT.topics[name]
    (ROOT / "contracts").mkdir(exist_ok=True)
    (ROOT / "contracts" / schemas.file_name(topic)).write_text(schemas.text(topic), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
