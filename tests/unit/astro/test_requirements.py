"""requirements.txt pins all packages that the Dags need, and leaves Airflow's own dependencies to the image."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stack.requirements import CARRIED_BY_AIRFLOW, IMAGE, IMAGE_ROOTS, PROJECT, export, locked_versions

LOCK = """\
# made by a tool
client==1.2.0 ; python_full_version < '3.12' \\
    --hash=sha256:0000
client==1.3.0 ; python_full_version >= '3.12' \\
    --hash=sha256:1111
    # via
    #   demo (pyproject.toml)
pydantic==2.0 \\
    --hash=sha256:2222
shared==5.0 \\
    --hash=sha256:4444
    # via
    #   apache-airflow-core
    #   some-driver
some-driver==4.0 \\
    --hash=sha256:3333
some-driver-parts==4.1 \\
    --hash=sha256:5555
    # via some-driver
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "requirements.lock").write_text(LOCK)
    write_dependencies(tmp_path, "some_driver[binary]", "client>=1", "pydantic")
    return tmp_path


def write_dependencies(project: Path, *dependencies: str) -> None:
    (project / "pyproject.toml").write_text(f"[project]\ndependencies = {list(dependencies)}\n")


def test_the_committed_file_is_the_export():
    remedy = "run `.venv/bin/python -m stack.requirements`"
    assert (PROJECT / "requirements.txt").read_text() == export(), remedy


def test_names_are_normalized_and_versions_come_from_the_lock(project: Path):
    lines = [line for line in export(project).splitlines() if not line.startswith("#")]
    assert lines[:2] == ["client==1.3.0", "some-driver[binary]==4.0"]


def test_dependencies_are_pinned_unless_the_image_has_them(project: Path):
    lines = [line for line in export(project).splitlines() if line and not line.startswith("#")]
    assert "some-driver-parts==4.1" in lines
    assert not any(line.startswith("shared") for line in lines)


def test_a_minimum_version_of_an_image_package_stays_a_minimum(project: Path):
    write_dependencies(project, "client", "pydantic>=2")
    assert "pydantic>=2" in export(project).splitlines()


def test_a_version_for_another_python_is_not_taken():
    assert locked_versions(LOCK)["client"] == "1.3.0"


def test_a_dependency_that_is_not_locked_is_an_error(project: Path):
    write_dependencies(project, "not-locked")
    with pytest.raises(KeyError, match="not-locked"):
        export(project)


def test_packages_left_to_the_image_come_with_airflow():
    with_airflow = {"apache-airflow"}
    for distribution in ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk"):
        requirements = map(Requirement, metadata.requires(distribution) or [])
        with_airflow |= {canonicalize_name(r.name) for r in requirements if "extra" not in str(r.marker)}
    assert with_airflow >= CARRIED_BY_AIRFLOW


def test_the_lock_has_no_registry_address():
    text = (PROJECT / "requirements.lock").read_text() + (PROJECT / "requirements.txt").read_text()
    assert "http" not in "".join(line for line in text.splitlines() if line.startswith(("-", "--")))
    assert "--index-url" not in text


def exported() -> dict[str, Requirement]:
    lines = export().splitlines()
    return {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}


def test_every_direct_dependency_is_exported_or_in_the_image():
    direct = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {canonicalize_name(Requirement(line).name) for line in direct}
    assert names <= exported().keys() | CARRIED_BY_AIRFLOW


def needed(roots: dict[str, Requirement]) -> set[str]:
    """The requirements of the installed packages, for the image's Python."""
    names: set[str] = set()
    waiting = [(name, extra) for name, requirement in roots.items() for extra in ("", *requirement.extras)]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            requirements = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            # Requirements of the image's Python or system that this machine does not have.
            continue
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({**IMAGE, "extra": extra}):
                child = canonicalize_name(requirement.name)
                names.add(child)
                waiting += [(child, e) for e in ("", *requirement.extras)]
    return names


def test_every_package_that_the_dags_need_is_pinned():
    pinned = exported()
    carried = needed({name: Requirement(name) for name in IMAGE_ROOTS}) | set(IMAGE_ROOTS) | CARRIED_BY_AIRFLOW
    floating = needed(pinned) - pinned.keys() - carried
    assert not floating
    unpinned = [str(r) for r in pinned.values() if not str(r.specifier).startswith("==")]
    assert unpinned == ["apache-airflow-providers-standard>=1.15.0"]


def test_no_pin_replaces_a_package_of_the_images_airflow():
    carried = needed({name: Requirement(name) for name in IMAGE_ROOTS}) | set(IMAGE_ROOTS)
    assert carried >= {"pydantic", "sqlalchemy", "alembic", "fastapi"}
    assert {name for name in exported() if name in carried} == {"apache-airflow-providers-standard"}
