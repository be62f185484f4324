"""docs/figures.md and the README's tables show the figures of the benchmarks, and no other page repeats them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

figures = pytest.importorskip("benchmarks.figures", reason="benchmarks/ is not in the image")
results = pytest.importorskip("benchmarks.results")

ROOT = Path(__file__).resolve().parents[3]
TABLE = re.compile(r"<!-- figures: [\w ]+ -->\n(.*?)<!-- end -->", re.DOTALL)
# Numbers that hardly occur by chance: four digits that are not round, three decimals, and exact seconds.
NUMBER = r"(?![1-9][0,]*0\b)\d{1,3}(?:,\d{3})+|\d+\.\d{3}|\d+\.\d\d s|\d{2,}\.\d s"
DISTINCT = re.compile(rf"(?<![\d.,])(?:{NUMBER})(?!\d|[.,]\d)")
REMEDY = "run `make figures` and commit docs/figures.md and README.md; edit their text in benchmarks/figure_tables.py"


@pytest.fixture
def store() -> dict:
    return json.loads(figures.STORE.read_text())


def distinct(text: str) -> set[str]:
    """The figures in the tables of docs/figures.md, without the labels."""
    rows = (line.split("|")[2:] for line in text.splitlines() if line.startswith("| "))
    return {number for row in rows for number in DISTINCT.findall(" ".join(row))}


def repeated(measured: set[str], text: str) -> Iterator[str]:
    """Figures in paragraphs and tables without a link to the page of figures."""
    for part in TABLE.sub("", text).split("\n\n"):
        if "figures.md" not in part:
            yield from sorted(measured & set(DISTINCT.findall(part)))


def test_the_page_is_what_the_stored_figures_render_to(store):
    assert figures.page(store) == figures.PAGE.read_text(), REMEDY


def test_the_tables_of_the_readme_are_those_of_the_stored_figures(store):
    text = figures.README_PAGE.read_text()
    assert figures.with_tables(text, store) == text, REMEDY
    assert set(re.findall(r"<!-- figures: ([\w ]+) -->", text)) == set(figures.README)


def test_no_other_page_repeats_a_figure_without_a_link():
    measured = distinct(figures.PAGE.read_text())
    pages = [ROOT / "README.md", *(path for path in (ROOT / "docs").rglob("*.md") if path != figures.PAGE)]
    found = {
        str(path.relative_to(ROOT)): numbers for path in pages if (numbers := [*repeated(measured, path.read_text())])
    }
    assert not found, f"measured figures, which change: link to docs/figures.md instead ({found})"


def test_a_repeated_figure_is_found():
    measured = distinct("| label 1,234 | 1,170 | 0.33 s |\n| --- | --- |\n| other | 10,000 | 20.0 s, 4.8 |\n")
    assert measured == {"1,170", "0.33 s", "20.0 s"}
    text = "It takes 0.33 s.\n\nIt takes 20.0 s ([figures](figures.md)).\n\n1,170.\n\n11,170, 0.33 of 10,000, 1,170.5"
    assert [*repeated(measured, text)] == ["0.33 s", "1,170"]


def test_figures_that_were_not_measured_are_left_out():
    table = figures.Table(
        ("", "rate"), (("a burst of {size:,}", ("{rates[ours]:rate}", "; alone {rates[floor]:rate}")), ("b", "{other}"))
    )
    assert figures.markdown(table, {"size": 1000, "rates": {"ours": 57.4}}) == (
        "|  | rate |\n| --- | --- |\n| a burst of 1,000 | 57 |\n"
    )
    assert figures.markdown(table, {}) == ""


def test_a_benchmarks_last_line_is_stored_with_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["faults", "--lane", "shared-stream"])
    results.print_result("faults", {"sent": 7})
    log = tmp_path / "faults.log"
    log.write_text(f"12:00:00 ready\n{capsys.readouterr().out}\nreal 40m18.469s\n")
    how, stored = figures.read(log, None, None)
    assert stored == {"sent": 7}
    assert how["command"] == 'make faults ARGS="--lane shared-stream"'
    assert set(how) == set(results.Measured.__annotations__)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("no figures\n", "has no JSON object"),
        ('{"sent": 7}\n', "does not say what was measured; add COMMAND="),
        ('{"measured": {"command": "make coffee"}}\n', r"make coffee is not in benchmarks/figure_tables.py"),
    ],
)
def test_a_log_without_figures_is_refused_with_the_remedy(tmp_path, text, error):
    log = tmp_path / "some.log"
    log.write_text(text)
    with pytest.raises(figures.LogError, match=error):
        figures.read(log, None, None)


def test_every_target_that_prints_figures_has_a_section():
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    assert set(re.findall(r'print_result\("([\w-]+)"', sources)) <= set(figures.SECTIONS)
