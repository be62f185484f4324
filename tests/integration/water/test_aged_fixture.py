"""A small version of the tables of `make bench-age`, which are old by their metadata alone."""

from __future__ import annotations

import uuid

import pytest

from benchmarks.water import age, aged_lake
from benchmarks.water.aged_lake import Side
from include.streams.landing.index import LandingIndex
from include.streams.landing.tables import load_landing_table
from include.streams.landing.upkeep import expire_landing_snapshots
from tests.integration.kafka.conftest import operations

__all__ = ["operations"]

pytestmark = pytest.mark.integration


def test_an_old_landing_table_is_planned_from_its_newest_files(landing_services, operations):
    side = Side(f"old{uuid.uuid4().hex[:6]}")
    begins = aged_lake.make_landing(side, files=400, snapshots=300)
    table = load_landing_table(side.topic)
    assert len(table.snapshots()) == 300
    assert len(LandingIndex(table).files(0, 0)) == 100 + aged_lake.NEW_FILES
    assert list(expire_landing_snapshots([side.topic]).values()) == [300 - 180]
    age.prepare_lane(side, "plan", begins)
    assert age.plan(side.name, "plan") == aged_lake.NEW_FILES * aged_lake.PARTITIONS


def test_figures_are_ratios_of_medians():
    figures = age.Figures()
    for name, fresh, aged in (("plan", (1.0, 2.0, 9.0), (2.0, 3.0, 4.0)), ("look", (2.0,), (2.0,))):
        for side, seconds in ((age.FRESH, fresh), (age.AGED, aged)):
            for value in seconds:
                figures.note(name, side, value)
    assert figures.ratios() == {"plan_ratio": 1.5, "look_ratio": 1.0, "max_ratio": 1.5}
