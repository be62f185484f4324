"""Which packages have migrations."""

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


def test_packages_of_the_library_and_of_the_project_have_migrations_operations_first(image: Path):
    add_revision(image, "shop")
    assert list(migrate.configurations()) == ["operations", "shop", "landing"]


def test_a_package_with_the_name_of_one_of_the_library_is_refused(image: Path):
    name = "landing"
    add_revision(image, name)
    with pytest.raises(ValueError, match=rf"would share the table alembic_version_{name}: rename include/{name}/"):
        migrate.configurations()


def test_compiled_files_that_git_leaves_of_a_package_that_was_moved_are_not_a_package(image: Path):
    """A checkout that is updated, not cloned: the package has moved into the library, its folder stays."""
    (image / "landing" / "migrations" / "versions" / "__pycache__").mkdir(parents=True)
    assert list(migrate.configurations()) == ["operations", "landing"]
