"""Every kind of alarm has a runbook page, and the documents name no kinds that do not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from include.project import PROJECT
from include.streams.operations.alarm_kinds import INDEX, AlarmKind, runbook_of

ROOT = Path(__file__).resolve().parents[3]
NAME = r"`[a-z]+(?:_[a-z]+)*`"
# The alarm `lag`; alarms `lag`, `age` or `claim_open`.
NAMED = re.compile(rf"\b[Aa]larms?:? ({NAME}(?:(?:,| or| and|, and|, or) {NAME})*)")
KINDS = PROJECT.alarm_kinds.values()


def texts() -> dict[str, str]:
    """{path: text} of the documents and of the Dag files, each as one line."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("dags/**/*.py")]
    return {str(path.relative_to(ROOT)): " ".join(path.read_text().split()) for path in paths}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_page_with_its_section(kind):
    path, _, section = kind.runbook.partition("#")
    text = (ROOT / path).read_text()
    headings = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)]
    assert not section or section in headings


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_names_the_kind(kind):
    assert f"`{kind}" in (ROOT / kind.runbook.partition("#")[0]).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_links_the_page_of_a_kind(kind):
    rows = [line for line in (ROOT / INDEX).read_text().splitlines() if line.startswith("|") and f"`{kind}`" in line]
    assert any(f"]({kind.runbook.rpartition('/')[2]})" in row for row in rows), rows


def test_every_kind_that_the_documents_name_exists():
    named = {
        (name.strip("`"), path)
        for path, text in texts().items()
        for names in NAMED.findall(text)
        for name in re.findall(NAME, names)
    }
    assert {"lag", "messages_lost", "claim_open", "dag_silent", "landing_gap"} <= {name for name, _ in named}
    assert {(name, path) for name, path in named if name not in PROJECT.alarm_kinds} == set()


def test_the_name_of_a_kind_is_the_name_of_its_member():
    assert {kind.name: kind.value for kind in AlarmKind} == {name: name for name in AlarmKind.__members__}


def test_a_text_gets_the_page_of_its_kind_unless_it_names_another():
    assert AlarmKind.lag.with_runbook("7 behind") == "7 behind (docs/runbooks/lag-grows.md)"
    text = "7 behind; docs/runbooks/landing-gap.md#a-file says why"
    assert AlarmKind.lag.with_runbook(text) == text


@pytest.mark.parametrize(
    ("kind", "message", "page"),
    [
        ("lag", "", "docs/runbooks/lag-grows.md"),
        ("messages_lost", "1 lost (docs/runbooks/landing-gap.md)", "docs/runbooks/landing-gap.md"),
        ("late_shipments", "see docs/runbooks/shipments.md#late", "docs/runbooks/shipments.md#late"),
        ("late_shipments", "call the carrier", INDEX),
    ],
)
def test_a_page_is_found_in_the_text_or_by_the_kind(kind, message, page):
    assert runbook_of(kind, message) == page
