"""Readings of a meter whose clock runs years ahead: detection, training, report and usage go by the clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from pyiceberg.exceptions import NoSuchTableError
from sqlalchemy import delete, func, select

from include.project import PROJECT
from include.streams.lake.catalog import load_catalog
from include.streams.operations.database import begin
from include.water.dashboards.report.collect import collect
from include.water.flows.definition import TIME_ZONE
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, schema_of, spec_of
from include.water.leaks import detection
from include.water.leaks.nights import read_nights
from include.water.tables import judged_nights, leaks

pytestmark = pytest.mark.integration

NOW = datetime(2026, 11, 22, 21, tzinfo=UTC)
NIGHTS = 36
AHEAD = datetime(2031, 3, 1, 8, tzinfo=UTC)


@pytest.fixture
def flows(landing_services) -> Iterator[None]:
    """Two districts, 36 nights until the clock."""
    PROJECT.prepare()
    with begin() as connection:
        connection.execute(delete(leaks))
        connection.execute(delete(judged_nights))
    for name in (DISTRICT_HOURS, DISTRICT_NIGHTS):
        with suppress(NoSuchTableError):
            load_catalog().drop_table(name)
        load_catalog().create_namespace_if_not_exists("water")
        load_catalog().create_table(name, schema_of(name), partition_spec=spec_of(name))
    append(NOW - timedelta(days=NIGHTS), NIGHTS)
    yield
    for name in (DISTRICT_HOURS, DISTRICT_NIGHTS):
        load_catalog().drop_table(name)


def append(first: datetime, days: int) -> None:
    """Hours and complete nights of both districts."""
    hours, nights = [], []
    for district in ("harbour", "valley"):
        hours += [(district, first + timedelta(hours=n), 100.0, 90.0, 10.0, 9, 10, 1) for n in range(24 * days)]
        local = first.astimezone(TIME_ZONE).date()
        nights += [(district, local + timedelta(days=n), 40.0 + n % 7, 20.0, 10.0, 4, True) for n in range(days)]
    for name, rows in ((DISTRICT_HOURS, hours), (DISTRICT_NIGHTS, nights)):
        arrow = schema_of(name).as_arrow()
        columns = zip(*rows, strict=True)
        data = [pa.array(list(column), field.type) for column, field in zip(columns, arrow, strict=True)]
        load_catalog().load_table(name).append(pa.table(data, schema=arrow))


def judged() -> tuple[int, date]:
    with begin() as connection:
        return tuple(connection.execute(select(func.count(), func.max(judged_nights.c.night))).one())  # type: ignore[return-value]


def test_real_nights_are_judged_and_shown_although_a_clock_runs_ahead(flows, caplog):
    expected = collect([], now=NOW)
    detection.detect(NOW)
    before = judged()
    assert before[0] > 40
    with begin() as connection:
        connection.execute(delete(judged_nights))

    append(AHEAD, 8)
    detection.detect(NOW)
    assert judged() == before
    nights = read_nights(NOW)
    assert nights.ahead == 16
    assert nights.rows["night"].max().date() <= NOW.date()
    assert "left out: 16 complete nights" in caplog.text
    found = collect([], now=NOW)
    assert (found.data_up_to, found.period, found.unusual) == (expected.data_up_to, expected.period, expected.unusual)
    assert found.districts == expected.districts


def test_old_nights_are_not_judged_when_nothing_new_arrives(flows):
    detection.detect(NOW + timedelta(days=400))
    assert judged()[0] == 0
