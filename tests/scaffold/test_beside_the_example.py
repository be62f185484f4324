"""Topics of one's own beside the example: one command for each, no line written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scaffold.conftest import LANES, TYPED, Copy
from tests.unit.scaffold.test_schemas import ORDER


@pytest.fixture(scope="module")
def made(copy: Copy, webhooks_file: Path) -> dict[str, str]:
    """{topic: what `make topic` has printed}."""
    found = {
        name: copy.make("topic", NAME=name, FROM=str(webhooks_file), **TYPED, **lane) for name, lane in LANES.items()
    }
    schema = copy.folder.parent / "order.json"
    schema.write_text(json.dumps(ORDER))
    return {**found, "orders.placed": copy.make("topic", NAME="orders.placed", SCHEMA=str(schema))}


def test_each_topic_is_written_and_what_to_do_next_is_said(made: dict[str, str], copy: Copy):
    for name, text in made.items():
        assert f"files for the topic {name}, learned from" in text
        assert "look at:" in text
        assert "next:" in text
    packages = "from include.code.package import CODE\nfrom include.orders.package import ORDERS\n"
    assert packages in (copy.folder / "include/project.py").read_text()


def test_a_topic_that_exists_is_refused_and_nothing_changes(made: dict[str, str], copy: Copy, webhooks_file: Path):
    before = copy.changes()
    done = copy.try_make("topic", NAME="code.webhooks", FROM=str(webhooks_file), **TYPED)
    assert done.returncode
    assert "the topic code.webhooks is declared already" in done.stderr
    assert copy.changes() == before


def test_lint_passes(made: dict[str, str], copy: Copy):
    copy.make("lint")


def test_the_fast_tests_pass(made: dict[str, str], copy: Copy):
    copy.make("test-fast")


def test_the_tests_of_the_topics_pass_on_real_services(made: dict[str, str], copy: Copy):
    text = copy.make("test", ARGS="-n 0 tests/integration/code tests/integration/orders tests/unit/code")
    assert "failed" not in text
