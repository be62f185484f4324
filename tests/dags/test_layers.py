"""The layers of the code: the library imports no project, and deployed code does not import the local stack."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags.policy import PROJECT

pytest.importorskip("importlinter", reason="the Astro image has neither the linter nor stack/")

CONFIGURATION = PROJECT / ".importlinter"
# Modules that the configuration names, so the small project must have them.
MODULE = re.compile(r"^(?:include|stack|benchmarks|scaffold)(?:\.\w+)*$")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sys.executable).with_name("lint-imports"),
        "--config",
        CONFIGURATION.name,
        "--no-cache",
        "--no-logo",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_imports_respect_the_layers():
    result = lint(PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """Empty packages with the names in the import contracts."""
    configuration = configparser.ConfigParser()
    configuration.read(CONFIGURATION)
    values = [value for section in configuration.values() for value in section.values()]
    named = {word for value in values for word in value.split() if MODULE.match(word)}
    named -= {"include.project", "include.streams.packages"}
    for module in sorted(named | {f"include.streams.{part}" for part in ("kafka", "operations", "contracts")}):
        (tmp_path / module.replace(".", "/")).mkdir(parents=True)
        (tmp_path / module.replace(".", "/") / "__init__.py").touch()
    for module in ("include/project.py", "include/streams/packages.py"):
        (tmp_path / module).touch()
    shutil.copy(CONFIGURATION, tmp_path)
    return tmp_path


def test_empty_packages_respect_the_layers(small_project: Path):
    result = lint(small_project)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("include/streams/contracts/a.py", "import include.streams.kafka"),
        ("include/streams/contracts/a.py", "def f():\n    from include.streams import operations"),
        ("include/streams/kafka/a.py", "import stack"),
        ("include/streams/operations/a.py", "import stack"),
        ("include/shop/a.py", "import stack"),
        ("stack/a.py", "import include.streams.kafka"),
        ("include/streams/kafka/a.py", "import include.project"),
        ("include/streams/kafka/a.py", "import include.streams.packages"),
        ("include/streams/new/__init__.py", ""),
    ],
)
def test_an_import_across_the_layers_is_found(module: str, imports: str, small_project: Path):
    assert_broken(small_project, module, imports)


def assert_broken(project: Path, module: str, imports: str) -> None:
    path = project / module
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(imports)
    result = lint(project)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import include.streams.kafka.second", "import include.streams.kafka.first"),
        ("def f():\n    from include.streams.kafka import second", "import include.streams.kafka.first"),
        ("import include.streams.kafka.second", "def f():\n    from include.streams.kafka.first import g"),
        ("if 0:\n    from include.streams.kafka import second", "import include.streams.kafka.first"),
    ],
)
def test_a_circle_of_two_modules_is_found(first: str, second: str, small_project: Path):
    folder = small_project / "include/streams/kafka"
    (folder / "first.py").write_text(first)
    (folder / "second.py").touch()
    assert lint(small_project).returncode == 0
    (folder / "second.py").write_text(second)
    assert "No cycles are allowed in include.streams.kafka" in lint(small_project).stdout


def test_a_circle_of_two_packages_is_found(small_project: Path):
    for path, text in (
        ("kafka/a.py", "import include.streams.operations.a"),
        ("operations/b.py", "def f():\n    import include.streams.kafka.b"),
        ("kafka/b.py", ""),
        ("operations/a.py", ""),
    ):
        (small_project / "include/streams" / path).write_text(text)
    assert "No cycles are allowed in include.streams" in lint(small_project).stdout


def circles(package: str) -> list[str]:
    """The imports of the package's modules, including `__init__`, that are part of a circle."""
    import grimp

    graph = grimp.build_graph(package, cache_dir=None)
    return [
        f"{importer} -> {imported}"
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if graph.chain_exists(importer=imported, imported=importer)
    ]


def test_no_module_imports_itself_through_its_package():
    assert circles("include") == []


def test_a_circle_through_a_package_is_found(tmp_path: Path, monkeypatch):
    folder = tmp_path / "orders_of_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("from orders_of_test.effects import raise_alert")
    (folder / "effects.py").write_text("def raise_alert():\n    from orders_of_test import raise_alert")
    monkeypatch.syspath_prepend(tmp_path)
    assert circles("orders_of_test") == [
        "orders_of_test -> orders_of_test.effects",
        "orders_of_test.effects -> orders_of_test",
    ]
