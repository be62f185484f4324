"""What the nightly maintenance deletes from the buckets and what it must keep, on a real store and database."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert

from include.streams.compat.connections import LookUpFailed
from include.streams.lake.buckets import bucket
from include.streams.lake.catalog import forget_catalogs
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.staging import remove_finished
from include.streams.landing.upkeep import (
    expire_landing_snapshots,
    maintain_landing_table,
    maintain_table,
    remove_results,
)
from include.streams.operations.database import begin
from include.streams.operations.tables import claims, consumers
from include.streams.validators.results import ACCEPTANCE, FOLDER, PAGE, PAST, RESULT
from tests.integration.kafka.conftest import operations
from tests.integration.landing.test_watch import without_catalog
from tests.unit.contracts.orders import SCANS

__all__ = ["operations", "without_catalog"]

pytestmark = pytest.mark.integration

NOW, YEAR = timedelta(0), timedelta(days=365)
# A number greater than every claim that a test makes.
GONE = 10**12


@pytest.fixture
def lane(landing_services, operations) -> LandingConsumer:
    lane = LandingConsumer(name=f"lane-{uuid.uuid4().hex[:8]}", topic=SCANS)
    with begin() as connection:
        connection.execute(insert(consumers).values(name=lane.name))
    return lane


@pytest.fixture
def results(lane) -> Callable[..., list[str]]:
    """Store the check results of a run; returns the paths of these objects."""

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


def test_old_results_without_a_claim_are_removed_with_acceptances(lane, results):
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


def test_acceptances_are_removed_last(lane, results, monkeypatch):
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


def upkeep_of(lane: LandingConsumer) -> dict[str, Any]:
    """The result of each step that needs the catalog or the bucket."""
    return {
        "expire": expire_landing_snapshots([lane.topic]),
        "table": maintain_table("shop.no_such_table", YEAR),
        "landing table": maintain_landing_table(lane.topic, [lane]),
        "staging": remove_finished([lane]),
        "results": remove_results([lane], YEAR, seconds=60),
    }


NOTHING = {"expire": {}, "table": None, "landing table": None, "staging": 0, "results": 0}


def test_maintenance_does_nothing_without_the_standard_lane(lane, without_catalog, monkeypatch, caplog):
    monkeypatch.delenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT")
    with caplog.at_level("INFO", logger="include"):
        assert upkeep_of(lane) == NOTHING
    assert caplog.text.count("connection landing_catalog is not defined") == 4
    assert caplog.text.count("connection google_cloud_default is not defined") == 1


def test_a_failed_look_up_does_not_count_as_an_undefined_connection(lane, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LANDING_CATALOG", "{cannot be read")
    forget_catalogs()
    for step in (
        lambda: expire_landing_snapshots([lane.topic]),
        lambda: maintain_table("shop.no_such_table", YEAR),
        lambda: maintain_landing_table(lane.topic, [lane]),
        lambda: remove_finished([lane]),
    ):
        with pytest.raises(LookUpFailed):
            step()


def test_maintenance_does_nothing_before_the_first_table(lane):
    never_landed = replace(lane, topic=replace(lane.topic, name=f"orders.{uuid.uuid4().hex[:8]}"))
    assert upkeep_of(never_landed) == NOTHING
