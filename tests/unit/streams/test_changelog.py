"""CHANGELOG.md names the version and every change of the public names."""

from __future__ import annotations

import re
from pathlib import Path

from include import streams

CHANGELOG = Path(__file__).resolve().parents[3] / "CHANGELOG.md"
VERSION = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", re.MULTILINE)
REMEDY = "of ## [Unreleased] in CHANGELOG.md: a line `- `name`: what it is for, or what to use instead.`"


def versions(text: str) -> list[str]:
    """The released versions, the newest first."""
    return VERSION.findall(text)


def listed(text: str) -> set[str]:
    """The public names by the lines below Added and Removed, from the oldest version to the newest."""
    names: set[str] = set()
    for version in reversed(re.split(r"^## ", text, flags=re.MULTILINE)[1:]):
        changes = {part.partition("\n")[0]: part for part in re.split(r"^### ", version, flags=re.MULTILINE)[1:]}
        names -= _names(changes.get("Removed", ""))
        names |= _names(changes.get("Added", ""))
    return names


def _names(text: str) -> set[str]:
    lines = re.findall(r"^- ((?:`\w+`(?:, )?)+):", text, re.MULTILINE)
    return {name for line in lines for name in re.findall(r"\w+", line)}


def test_the_newest_version_is_that_of_the_library():
    assert versions(CHANGELOG.read_text())[0] == streams.__version__, (
        "name the release in CHANGELOG.md: put `## [VERSION] - DATE` below ## [Unreleased]"
    )


def test_each_public_name_is_listed():
    new = sorted(set(streams.__all__) - listed(CHANGELOG.read_text()))
    assert not new, f"{new} are new public names; add them below ### Added {REMEDY}"


def test_each_name_that_is_gone_is_listed_as_removed():
    gone = sorted(listed(CHANGELOG.read_text()) - set(streams.__all__))
    assert not gone, f"{gone} are no public names any more; add them below ### Removed {REMEDY}"


def test_a_name_that_was_removed_and_renamed_is_understood():
    text = (
        "# Changelog\n- `Nothing`: is no version\n\n## [Unreleased]\n\n### Removed\n\n- `Old`, `older`: use `New`.\n\n"
        "### Added\n\n- `New`: instead.\n\n## [0.1.0] - 2026-11-27\n\n### Added\n\n- `Old`, `older`, `Kept`: words.\n"
    )
    assert listed(text) == {"New", "Kept"}
    assert versions(text) == ["0.1.0"]
