"""The packages whose migrations are applied, and their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.streams.operations import migrate


def add_revision(include: Path, package: str) -> None:
    path = include / package / "migrations" / "versions" / "0001_tables.py"
    path.parent.mkdir(parents=True)
    path.touch()


@pytest.fixture
def image(tmp_path: Path, monkeypatch) -> Path:
    """The folder include/ of an image whose library has migrations in `operations` and `landing`."""
    for package in ("streams/operations", "streams/landing"):
        add_revision(tmp_path, package)
    monkeypatch.setattr(migrate, "HERE", tmp_path / "streams" / "operations")
    return tmp_path


def test_migrations_of_all_packages_are_applied_operations_first(image: Path):
    add_revision(image, "shop")
    assert list(migrate.configurations()) == ["operations", "shop", "landing"]


def test_a_package_with_the_name_of_a_library_package_is_refused(image: Path):
    name = "landing"
    add_revision(image, name)
    with pytest.raises(ValueError, match=rf"would share the table alembic_version_{name}: rename include/{name}/"):
        migrate.configurations()


def test_compiled_files_left_by_a_moved_package_are_not_a_package(image: Path):
    """In a checkout that is updated, the folder of a package that moved into the library stays."""
    (image / "landing" / "migrations" / "versions" / "__pycache__").mkdir(parents=True)
    assert list(migrate.configurations()) == ["operations", "landing"]
