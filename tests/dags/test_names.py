"""Dag files of the last release find the names that they import in this release's include/."""

from __future__ import annotations

from pathlib import Path

from tests.dags.names import imported, missing, released, write
from tests.dags.policy import DAGS


def test_every_name_that_released_dag_files_import_exists():
    gone = missing(released())
    assert not gone, (
        f"Dag files of the last release import {gone}, and would fail after the next deploy: keep the names until a "
        "release without such Dag files is deployed, then remove their lines from released_names.txt"
    )


def test_every_name_that_dag_files_import_is_listed():
    unlisted = sorted(imported(DAGS.rglob("*.py")) - released())
    assert not unlisted, f"run `.venv/bin/python -m tests.dags.names`, and commit the list: it lacks {unlisted}"


def test_generic_dags_name_no_package():
    modules = {name.split(":")[0] for name in imported((DAGS / "operations").glob("*.py"))}
    assert {m for m in modules if not m.startswith("include.streams")} == {"include.project"}


def test_a_renamed_name_is_found(tmp_path: Path):
    package = tmp_path / "include" / "orders"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "effects.py").write_text("def raise_alert(): ...\nLIMIT: int = 3\nfrom x import y as z\n")
    kept = ["include.orders.effects:raise_alert", "include.orders.effects:LIMIT", "include.orders.effects:z"]
    assert missing([*kept, "include.orders:effects"], tmp_path) == []
    gone = ["include.orders.effects:alert", "include.orders:other", "include.orders.other:alert"]
    assert missing(gone, tmp_path) == sorted(gone)


def test_imports_in_task_bodies_and_dotted_paths_are_found(tmp_path: Path):
    path = tmp_path / "dag.py"
    path.write_text(
        "from include.shop.assets import SITES as S\n"
        "def task():\n    from include.streams.kafka import watch\n"
        "CALLBACK = 'include.streams.kafka.producer.raise_on_delivery_failure'\n"
    )
    expected = {
        "include.shop.assets:SITES",
        "include.streams.kafka:watch",
        "include.streams.kafka.producer:raise_on_delivery_failure",
    }
    assert imported([path]) == expected


def test_each_package_has_a_list_of_its_own(tmp_path: Path):
    write({"include.streams:joined", "include.project:PROJECT", "include.shop.assets:NEW", "include:project"}, tmp_path)
    lines = {path.parent.name: path.read_text().splitlines()[3:] for path in tmp_path.rglob("released_names.txt")}
    assert lines == {
        tmp_path.name: ["include.project:PROJECT", "include.streams:joined", "include:project"],
        "shop": ["include.shop.assets:NEW"],
    }
