"""What the nightly upkeep removes from the buckets, and what it must leave, on a real store and a real database."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, insert

from include.lake.buckets import bucket
from include.landing.consumers import LandingConsumer
from include.landing.upkeep import remove_results
from include.operations.database import begin
from include.operations.tables import claims, consumers
from include.validators.results import ACCEPTANCE, FOLDER, PAGE, PAST, RESULT
from include.water.topics import METER_READINGS
from tests.integration.kafka.conftest import operations

__all__ = ["operations"]

pytestmark = pytest.mark.integration

NOW, YEAR = timedelta(0), timedelta(days=365)
# Above every claim that a test makes.
GONE = 10**12


@pytest.fixture
def lane(landing_services, operations) -> LandingConsumer:
    lane = LandingConsumer(name=f"lane-{uuid.uuid4().hex[:8]}", topic=METER_READINGS)
    with begin() as connection:
        connection.execute(insert(consumers).values(name=lane.name))
    return lane


@pytest.fixture
def results(lane) -> Callable[..., list[str]]:
    """The check of a run with these objects; returns where they are."""

    def write(claim_id: int, *names: str) -> list[str]:
        paths = [f"{FOLDER}/{lane.name}/{claim_id}/{name}" for name in names]
        for path in paths:
            bucket().write(path, b"{}")
        return paths

    return write


def claim(lane: LandingConsumer, *, closed: bool) -> int:
    with begin() as connection:
        row = insert(claims).values(
            consumer=lane.name, run_id=uuid.uuid4().hex, closed_at=func.now() if closed else None
        )
        return connection.execute(row.returning(claims.c.id)).scalar_one()


def left(lane: LandingConsumer) -> list[str]:
    return [entry.path for entry in bucket().list(f"{FOLDER}/{lane.name}/")]


def test_results_go_with_what_was_accepted_when_they_are_old_and_their_claim_is_gone(lane, results):
    results(GONE, RESULT, PAGE, ACCEPTANCE)
    kept = results(claim(lane, closed=False), RESULT, PAGE, ACCEPTANCE)
    kept += results(claim(lane, closed=True), RESULT, PAGE)
    past = f"{FOLDER}/{lane.name}/{PAST}"
    bucket().write(past, b"{}")
    assert remove_results([lane], YEAR, seconds=60) == 0
    assert remove_results([lane], NOW, seconds=0) == 0
    assert remove_results([lane], NOW, seconds=60) == 1
    assert left(lane) == sorted([*kept, past])
    assert remove_results([lane], NOW, seconds=60) == 0


def test_what_was_accepted_goes_last(lane, results, monkeypatch):
    (accepted,) = results(GONE, RESULT, PAGE, ACCEPTANCE)[2:]
    objects = type(bucket())
    delete = objects.delete

    def killed(self, path: str) -> None:
        if path == accepted:
            raise KeyboardInterrupt
        delete(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_results([lane], NOW, seconds=60)
    assert left(lane) == [accepted]
    assert remove_results([lane], NOW, seconds=60) == 1
    assert left(lane) == []
