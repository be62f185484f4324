"""The example can be replaced: nothing else imports it, or knows its words."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags.policy import PROJECT

pytest.importorskip("importlinter", reason="the Astro image has neither the linter nor stack/")

CONFIGURATION = PROJECT / ".importlinter"
# The example's words, as whole words: "parameter" and Kafka's "watermark" are not among them.
EXAMPLE_WORDS = re.compile(r"(?<![a-z])(water|seismic|meter)(?![a-z])", re.IGNORECASE)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sys.executable).with_name("lint-imports"),
        "--config",
        CONFIGURATION.name,
        "--no-cache",
        "--no-logo",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_imports_keep_the_layers():
    result = lint(PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """The packages that .importlinter names, empty."""
    for package in (
        "include",
        "include/water",
        "include/streams",
        "include/streams/kafka",
        "include/streams/operations",
        "include/streams/contracts",
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for module in ("include/project.py", "include/streams/packages.py"):
        (tmp_path / module).touch()
    for package in ("stack", "benchmarks"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(CONFIGURATION, tmp_path)
    return tmp_path


def test_empty_packages_keep_the_layers(small_project: Path):
    result = lint(small_project)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("include/streams/kafka/a.py", "from include.water import topics"),
        ("include/streams/operations/a.py", "import include.water"),
        ("benchmarks/a.py", "import include.water"),
        ("stack/a.py", "import include.water"),
        ("include/streams/contracts/a.py", "import include.streams.kafka"),
        ("include/streams/contracts/a.py", "def f():\n    from include.streams import operations"),
        ("include/streams/kafka/a.py", "import stack"),
        ("include/streams/operations/a.py", "import stack"),
        ("include/water/a.py", "import stack"),
        ("stack/a.py", "import include.streams.kafka"),
        ("include/streams/kafka/a.py", "import include.project"),
        ("include/streams/kafka/a.py", "import include.streams.packages"),
        ("include/streams/new/__init__.py", ""),
    ],
)
def test_an_import_across_the_layers_is_found(module: str, imports: str, small_project: Path):
    (small_project / "include/water/topics.py").touch()
    path = small_project / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(imports)
    result = lint(small_project)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout, result.stdout + result.stderr


def example_words(*folders: Path) -> list[str]:
    """Return the places of the example's words in the Python files of the folders."""
    return [
        f"{path}:{number}: {line.strip()}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if EXAMPLE_WORDS.search(line)
    ]


def test_reusable_code_does_not_know_the_words_of_the_example():
    found = example_words(PROJECT / "stack", PROJECT / "include" / "streams", PROJECT / "dags" / "operations")
    assert not found, "the next team has other words:\n" + "\n".join(found)


@pytest.mark.parametrize("line", ["import include.water", "'meter_readings'", "SEISMIC = 1", "# the water utility"])
def test_words_of_the_example_are_found(line: str, tmp_path: Path):
    (tmp_path / "a.py").write_text(line)
    assert example_words(tmp_path)


def test_words_that_only_look_like_the_example_pass(tmp_path: Path):
    (tmp_path / "a.py").write_text("parameter = low_watermark\n")
    assert example_words(tmp_path) == []
