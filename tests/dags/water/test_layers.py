"""The example can be removed: no other code imports it, or uses its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dags.policy import PROJECT
from tests.dags.test_layers import assert_broken, small_project

__all__ = ["small_project"]

HERE = Path(__file__).parent
# The example's words, as whole words: "parameter" and Kafka's "watermark" are not among them.
EXAMPLE_WORDS = re.compile(r"(?<![a-z])(water|seismic|meters?|leaks?|districts?)(?![a-z])", re.IGNORECASE)


@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("include/streams/kafka/a.py", "from include.water import topics"),
        ("include/streams/operations/a.py", "import include.water"),
        ("benchmarks/a.py", "import include.water"),
        ("stack/a.py", "import include.water"),
        ("include/water/a.py", "import stack"),
    ],
)
def test_an_import_of_the_example_is_found(module: str, imports: str, small_project: Path):
    (small_project / "include/water/topics.py").touch()
    assert_broken(small_project, module, imports)


def example_words(*folders: Path) -> list[str]:
    """The places of the example's words in the Python files of the folders, except the example's own files."""
    return [
        f"{path}:{number}: {line.strip()}"
        for folder in folders
        for path in sorted(set(folder.rglob("*.py")) - set(HERE.rglob("*.py")))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if EXAMPLE_WORDS.search(line)
    ]


def test_reusable_code_has_no_words_of_the_example():
    words = example_words(
        *(PROJECT / folder for folder in ("stack", "include/streams", "dags/operations", "tests/dags"))
    )
    assert not words, "the next team has other words:\n" + "\n".join(words)


@pytest.mark.parametrize(
    "line", ["import include.water", "'meter_readings'", "SEISMIC = 1", "# the water utility", "LEAKS = 1"]
)
def test_words_of_the_example_are_found(line: str, tmp_path: Path):
    (tmp_path / "a.py").write_text(line)
    assert example_words(tmp_path)


def test_words_that_only_look_like_the_example_pass(tmp_path: Path):
    (tmp_path / "a.py").write_text("parameter = low_watermark\n")
    assert example_words(tmp_path) == []
