"""The example goes with one command, and the project is green before and after it gets topics of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scaffold.conftest import LANES, TYPED, Copy


@pytest.fixture(scope="module")
def removed(copy: Copy) -> str:
    text = copy.make("remove-example")
    copy.commit()
    return text


@pytest.fixture(scope="module")
def made(removed: str, copy: Copy, webhooks_file: Path) -> None:
    for name, lane in LANES.items():
        copy.make("topic", NAME=name, FROM=str(webhooks_file), **TYPED, **lane)
    copy.commit()


def test_what_is_removed_is_said(removed: str, copy: Copy):
    assert "in include/water" in removed
    assert "PROJECT = Project()" in (copy.folder / "include/project.py").read_text()
    assert not list(copy.folder.glob("**/water"))
    done = copy.try_make("remove-example")
    assert "the example is removed already" in done.stderr


def test_an_empty_project_is_green(removed: str, copy: Copy):
    copy.make("lint")
    copy.make("test-fast")


def test_with_topics_of_its_own_the_project_is_green(made: None, copy: Copy):
    copy.make("lint")
    copy.make("test")


def test_the_demo_accounts_for_every_message_of_the_new_topics(made: None, copy: Copy):
    text = copy.make("demo", EXIT="1")
    assert "Every message that was sent is accounted for." in text
    for name in LANES:
        assert name in text
