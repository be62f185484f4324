"""Every alarm has a page that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from include.streams.operations.runbooks import INDEX, PAGE_OF, runbook_of

PROJECT = Path(__file__).resolve().parents[3]


def test_every_page_exists_with_its_section():
    for page in set(PAGE_OF.values()):
        name, _, section = page.partition("#")
        text = (PROJECT / "docs/runbooks" / name).read_text()
        headings = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)]
        assert not section or section in headings, page


def test_the_index_names_the_same_page_for_every_kind():
    index = (PROJECT / INDEX).read_text()
    rows = [line for line in index.splitlines() if line.startswith("|")]
    for kind, page in PAGE_OF.items():
        named = [row for row in rows if f"`{kind}`" in row]
        assert any(f"]({page})" in row for row in named), f"{kind}: docs/runbooks/README.md does not lead to {page}"


def test_every_kind_of_the_library_has_a_page():
    # The second argument of the functions that open alarms, if it is written there, and the constants of its kind.
    called = re.compile(r'(?:open_alarm|add_to_alarm|add_lasting)\(\s*connection,\s*[^,]+,\s*"(\w+)"')
    constant = re.compile(r"^(?:[A-Z]+_)?(?:ALARM|FAILED|SILENT)\b.* = (.*)$", re.M)
    sources = [path.read_text() for path in (PROJECT / "include/streams").rglob("*.py")]
    kinds = {kind for text in sources for kind in called.findall(text)}
    kinds |= {kind for text in sources for names in constant.findall(text) for kind in re.findall(r'"(\w+)"', names)}
    assert {"lag", "messages_lost", "claim_open", "dag_silent", "landing_gap"} <= kinds
    assert not kinds - PAGE_OF.keys(), "add them to include/streams/operations/runbooks.py and docs/runbooks/README.md"


@pytest.mark.parametrize(
    ("kind", "message", "page"),
    [
        ("lag", "", "docs/runbooks/lag-grows.md"),
        ("suite_failed:7", "", "docs/runbooks/suite-failed.md"),
        ("late_shipments", "see docs/runbooks/shipments.md#late", "docs/runbooks/shipments.md#late"),
        ("late_shipments", "call the carrier", INDEX),
    ],
)
def test_a_page_is_found_by_the_kind_or_in_the_text(kind, message, page):
    assert runbook_of(kind, message) == page
