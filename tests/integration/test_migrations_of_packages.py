"""Each package's tables are migrated separately: an image without a package or a revision upgrades the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from include.streams.operations.database import begin
from include.streams.operations.migrate import configurations, upgrade

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
SHARED = "alembic_version"


# {revision: (the revision before, the table that it creates)}.
REVISIONS = {
    "shop_0001": ("None", "returns"),
    "shop_0002": ("'shop_0001'", "refunds"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The root of an image with only the library."""
    root = tmp_path_factory.mktemp("image")
    shutil.copytree(
        PROJECT / "include" / "streams", root / "include" / "streams", ignore=shutil.ignore_patterns("__pycache__")
    )
    (root / "include" / "__init__.py").touch()
    return root


@pytest.fixture(scope="module")
def whole(library: Path, tmp_path_factory) -> Path:
    """The root of an image with the library and the package `shop`, which has two tables."""
    root = tmp_path_factory.mktemp("image_with_shop") / "root"
    shutil.copytree(library, root)
    folder = root / "include" / "shop" / "migrations" / "versions"
    folder.mkdir(parents=True)
    for revision, (before, table) in REVISIONS.items():
        labels = "('shop',)" if before == "None" else "None"
        (folder / f"{revision}.py").write_text(
            f'"""{table}"""\n\nimport sqlalchemy as sa\nfrom alembic import op\n\n'
            f"revision, down_revision = {revision!r}, {before}\nbranch_labels, depends_on = {labels}, None\n\n\n"
            f"def upgrade() -> None:\n    op.create_table({table!r}, sa.Column('id', sa.Text, primary_key=True))\n"
        )
    return root


def start_upgrade(root: Path, database: str) -> subprocess.Popen[str]:
    url = os.environ[f"AIRFLOW_CONN_{database.upper()}"]
    return subprocess.Popen(
        [sys.executable, "-m", "include.streams.operations", "upgrade"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "AIRFLOW_CONN_OPERATIONS_DB": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def upgrade_by(root: Path, database: str) -> tuple[list[str], str]:
    """Run the upgrade of the image at `root`, which must succeed; returns (applied revisions, log)."""
    process = start_upgrade(root, database)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return revisions(out.splitlines()), err


def revisions(lines: list[str]) -> list[str]:
    return [line.split(":")[0] for line in lines if not line.startswith("nothing to do")]


def tables(database: str) -> set[str]:
    with begin(database) as connection:
        return set(connection.scalars(text("select tablename from pg_tables where schemaname = 'public'")))


def versions(database: str, package: str) -> list[str]:
    with begin(database) as connection:
        return list(connection.scalars(text(f"select version_num from {SHARED}_{package} order by 1")))


def back_to_one_table(database: str, *, without: tuple[str, ...] = ()) -> None:
    """Change the database to the state of an older image, with one version table for all packages."""
    packages = sorted(t.removeprefix(f"{SHARED}_") for t in tables(database) if t.startswith(f"{SHARED}_"))
    heads = [head for package in packages if package not in without for head in versions(database, package)]
    with begin(database) as connection:
        connection.execute(text(f"create table {SHARED} (version_num varchar(32) primary key)"))
        for head in heads:
            connection.execute(text(f"insert into {SHARED} values (:head)"), {"head": head})
        for package in packages:
            connection.execute(text(f"drop table {SHARED}_{package}"))


def test_operations_comes_first_and_each_package_has_its_table(new_database: Callable[[], str], whole: Path):
    database = new_database()
    packages = [revision.rpartition("_")[0] for revision in upgrade_by(whole, database)[0]]
    assert packages[0] == "operations"
    assert packages.index("shop") > len(packages) - 1 - packages[::-1].index("operations")
    assert {f"{SHARED}_operations", f"{SHARED}_landing", f"{SHARED}_shop"} <= tables(database)
    assert SHARED not in tables(database)


def test_a_database_with_one_version_table_is_converted(new_database: Callable[[], str], whole: Path):
    database = new_database()
    upgrade_by(whole, database)
    before = {package: versions(database, package) for package in ("operations", "landing", "shop")}
    back_to_one_table(database)
    assert upgrade_by(whole, database)[0] == []
    assert {package: versions(database, package) for package in before} == before
    # An older image still finds the revisions that it has applied.
    assert SHARED in tables(database)


def test_an_older_database_with_one_version_table_gets_the_rest(new_database: Callable[[], str], whole: Path):
    database = new_database()
    upgrade_by(whole, database)
    back_to_one_table(database)
    with begin(database) as connection:
        connection.execute(text("drop table refunds"))
        connection.execute(text(f"update {SHARED} set version_num = 'shop_0001' where version_num like 'shop%'"))
    assert upgrade_by(whole, database)[0] == ["shop_0002"]
    assert "refunds" in tables(database)


@pytest.mark.parametrize("shared", [False, True], ids=["own tables", "one table"])
def test_a_package_may_be_removed_and_added_again(
    new_database: Callable[[], str], library: Path, whole: Path, shared: bool
):
    database = new_database()
    upgrade_by(whole, database)
    before = tables(database)
    if shared:
        back_to_one_table(database)
    assert upgrade_by(library, database)[0] == []
    assert "returns" in tables(database)
    assert upgrade_by(whole, database)[0] == []
    assert tables(database) - {SHARED} == before


def test_a_package_may_be_added_later(new_database: Callable[[], str], library: Path, whole: Path):
    database = new_database()
    first, _ = upgrade_by(library, database)
    assert not any(revision.startswith("shop") for revision in first)
    assert "returns" not in tables(database)
    assert upgrade_by(whole, database)[0] == list(REVISIONS)


@pytest.mark.parametrize("shared", [False, True], ids=["own tables", "one table"])
def test_after_a_rollback_the_other_packages_upgrade(
    new_database: Callable[[], str], library: Path, whole: Path, shared: bool
):
    database = new_database()
    upgrade_by(library, database)
    # A later image has changed the operations tables.
    with begin(database) as connection:
        connection.execute(text(f"update {SHARED}_operations set version_num = 'operations_9999'"))
    if shared:
        back_to_one_table(database)
    before = tables(database) - {SHARED}
    applied, log = upgrade_by(whole, database)
    assert applied == list(REVISIONS)
    assert "the tables of operations are at operations_9999, which this image does not have" in log
    assert versions(database, "operations") == ["operations_9999"]
    assert before < tables(database)


def test_two_images_can_upgrade_one_database_concurrently(new_database: Callable[[], str], library: Path, whole: Path):
    database, alone = new_database(), new_database()
    upgrade_by(whole, alone)
    processes = [start_upgrade(root, database) for root in (library, whole)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    applied = [revision for out, _ in outputs for revision in revisions(out.splitlines())]
    assert len(applied) == len(set(applied))
    assert tables(database) == tables(alone)


def test_all_packages_of_this_project_are_migrated(new_database: Callable[[], str]):
    database = new_database()
    upgrade(database)
    found = {table.removeprefix(f"{SHARED}_") for table in tables(database) if table.startswith(f"{SHARED}_")}
    assert found == set(configurations())
