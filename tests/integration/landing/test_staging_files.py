"""Staging files of a run that is cleared after its end stay until the run has used them."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from include.streams.landing import staging
from include.streams.landing.balance import finish
from include.streams.landing.clean import StagingGone, commit_clean
from include.streams.landing.planning import claim_landed
from include.streams.landing.validation import validate_unit
from include.streams.operations.database import begin
from tests.integration.landing.test_run import clean_rows, consumer, land, run, sale, sales, staging_files

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]


@pytest.fixture
def lane(consumer, send):
    """A lane whose only run ended days ago."""
    lane = consumer()
    send(lane.topic, sale(1), sale(2))
    land(lane.topic, 0, 0, sale(1), sale(2))
    run(lane)
    with begin() as connection:
        ended = text("update claims set closed_at = now() - interval '3 days' where consumer = :name")
        connection.execute(ended, {"name": lane.name})
    return lane


def test_maintenance_does_not_remove_files_of_a_cleared_run(lane):
    validated = [validate_unit(lane, unit, "run-1") for unit in claim_landed(lane, "run-1")]
    assert staging.remove_finished([lane]) == 0
    finish(lane, commit_clean(lane, validated, "run-1"), "run-1")
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 1, "2")]
    assert staging_files(lane) == []


def test_two_tries_of_a_task_share_no_file(lane):
    (unit,) = claim_landed(lane, "run-1")
    first, second = (validate_unit(lane, unit, "run-1") for _ in range(2))
    assert not set(first["files"]) & set(second["files"])
    finish(lane, commit_clean(lane, [second], "run-1"), "run-1")
    assert staging_files(lane) == [], "those of the first try go with the others"


def test_a_commit_that_is_cleared_alone_names_the_task_to_clear(lane):
    validated = [validate_unit(lane, unit, "run-1") for unit in claim_landed(lane, "run-1")]
    finish(lane, commit_clean(lane, validated, "run-1"), "run-1")
    with pytest.raises(StagingGone, match="Clear the run from its first task on"):
        commit_clean(lane, validated, "run-1")
    assert len(clean_rows(lane.topic)) == 2
