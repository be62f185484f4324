"""Links in the pages lead to existing pages and sections, and the index lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "docs" / "README.md"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("include/*/README.md")]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def sections(text: str) -> set[str]:
    """The anchors of a page, as code hosts derive them from headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_pages_and_sections(page):
    for path, section in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not section or section in sections(target.read_text()), f"{path}#{section}"


def test_the_index_lists_every_page():
    listed = {(INDEX.parent / path).resolve() for path, _ in LINK.findall(INDEX.read_text())}
    pages = {path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if path != INDEX}
    assert pages - listed == set(), "add a line to docs/README.md: who needs the page, and when"


def test_the_index_of_runbooks_lists_every_runbook():
    index = ROOT / "docs" / "runbooks" / "README.md"
    listed = {(index.parent / path).resolve() for path, _ in LINK.findall(index.read_text())}
    assert set(index.parent.glob("*.md")) - {index} - listed == set()
