"""Which packages have migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.streams.operations import migrate


@pytest.fixture
def image(tmp_path: Path, monkeypatch) -> Path:
    """The folder include/ of an image whose library has migrations in `operations` and `landing`."""
    for package in ("streams/operations", "streams/landing"):
        (tmp_path / package / "migrations" / "versions").mkdir(parents=True)
    monkeypatch.setattr(migrate, "HERE", tmp_path / "streams" / "operations")
    return tmp_path


def test_packages_of_the_library_and_of_the_project_have_migrations_operations_first(image: Path):
    (image / "shop" / "migrations" / "versions").mkdir(parents=True)
    assert list(migrate.configurations()) == ["operations", "shop", "landing"]


def test_a_package_with_the_name_of_one_of_the_library_is_refused(image: Path):
    name = "landing"
    (image / name / "migrations" / "versions").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"would share the table alembic_version_{name}: rename include/{name}/"):
        migrate.configurations()
