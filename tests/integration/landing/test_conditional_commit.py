"""The commit to the clean table is conditional: the lock on the claim's row only saves work."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from include.streams.landing import clean
from include.streams.landing.clean import commit_clean
from include.streams.landing.planning import claim_landed
from include.streams.landing.validation import validate_unit
from tests.integration.landing.test_run import clean_rows, consumer, land, sale, sales

__all__ = ["consumer", "sales"]

pytestmark = pytest.mark.integration


def test_a_second_task_that_commits_in_between_leaves_each_row_once(consumer, send, monkeypatch):
    lane = consumer()
    send(lane.topic, sale(1), sale(2))
    land(lane.topic, 0, 0, sale(1))
    land(lane.topic, 0, 1, sale(2))
    counted = [validate_unit(lane, unit, "run") for unit in claim_landed(lane, "run")]

    @contextmanager
    def lost(claim_id):
        yield

    # The row lock is lost, because its connection is closed.
    monkeypatch.setattr(clean, "_alone", lost)
    append, twins = clean.writing.append_files, []

    def late(transaction, files, properties):
        append(transaction, files, properties)
        if not twins:
            # The task that was given up commits after this task has read the table and before its commit.
            twins.append(True)
            twins.append(commit_clean(lane, counted, "run"))

    monkeypatch.setattr(clean.writing, "append_files", late)
    summary = commit_clean(lane, counted, "run")
    assert summary == twins[1]
    assert [offset for _, offset, _ in clean_rows(lane.topic)] == [0, 1]
