"""Readings of a meter whose clock runs years ahead: detection, training, report and usage use the real clock."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from pyiceberg.exceptions import NoSuchTableError
from sqlalchemy import delete, func, insert, select

from include.project import PROJECT
from include.streams.lake.buckets import bucket
from include.streams.lake.catalog import load_catalog
from include.streams.operations.database import begin
from include.water.dashboards.report.collect import collect
from include.water.flows.definition import TIME_ZONE
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, METER_HOURS, schema_of, spec_of
from include.water.leaks import confirmed, detection
from include.water.leaks.nights import read_nights
from include.water.leaks.scoring import LeakPeriod
from include.water.leaks.training import train_leak_model
from include.water.tables import confirmed_leaks, judged_nights, leaks, register_customers
from include.water.usage.documents import FOLDER
from include.water.usage.publish import publish_usage
from include.water.usage.tables import CUSTOMER_DAYS

pytestmark = pytest.mark.integration

NOW = datetime(2026, 11, 22, 21, tzinfo=UTC)
NIGHTS = 36
AHEAD = datetime(2031, 3, 1, 8, tzinfo=UTC)


@pytest.fixture
def artifacts(landing_services, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty bucket as the artifacts bucket."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    bucket(name)._remote.client.create_bucket(name)
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", name)


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
    add(DISTRICT_HOURS, hours)
    add(DISTRICT_NIGHTS, nights)


def use(first: datetime, hours: int) -> None:
    """Hours of a customer's meter."""
    add(METER_HOURS, [("M-000001", "harbour", first + timedelta(hours=n), 10.0, 1, 1) for n in range(hours)])


def add(name: str, rows: list[tuple]) -> None:
    arrow = schema_of(name).as_arrow()
    columns = zip(*rows, strict=True)
    data = [pa.array(list(column), field.type) for column, field in zip(columns, arrow, strict=True)]
    load_catalog().load_table(name).append(pa.table(data, schema=arrow))


@pytest.fixture
def customer(landing_services) -> Iterator[None]:
    """A customer, and the table of meters' hours without any."""
    PROJECT.prepare()
    for name in (METER_HOURS, CUSTOMER_DAYS):
        with suppress(NoSuchTableError):
            load_catalog().drop_table(name)
    load_catalog().create_namespace_if_not_exists("water")
    load_catalog().create_table(METER_HOURS, schema_of(METER_HOURS), partition_spec=spec_of(METER_HOURS))
    with begin() as connection:
        connection.execute(delete(register_customers))
        connection.execute(
            insert(register_customers).values(
                customer_id="C-000001", meter_id="M-000001", district_id="harbour", persons=2,
                object_name="customers.csv", generation=1, uploaded_at=NOW,
            )
        )  # fmt: skip
    yield
    load_catalog().drop_table(METER_HOURS)
    with begin() as connection:
        connection.execute(delete(register_customers))


def judged() -> tuple[int, date]:
    with begin() as connection:
        return tuple(connection.execute(select(func.count(), func.max(judged_nights.c.night))).one())  # type: ignore[return-value]


def test_a_clock_ahead_does_not_hide_real_nights(flows, caplog):
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
    data = collect([], now=NOW)
    assert (data.data_up_to, data.period, data.unusual) == (expected.data_up_to, expected.period, expected.unusual)
    assert data.districts == expected.districts


def test_old_nights_are_not_judged_without_new_data(flows):
    detection.detect(NOW + timedelta(days=400))
    assert judged()[0] == 0


def test_a_clock_ahead_does_not_change_the_training_nights(flows, artifacts):
    begun = [NOW.date() - timedelta(days=days) for days in (26, 22, 18, 12, 9, 6)]
    with begin() as connection:
        connection.execute(delete(confirmed_leaks))
        confirmed.confirm(
            connection, [LeakPeriod("valley", night, night + timedelta(days=1)) for night in begun], "crews"
        )
    assert train_leak_model("before", now=NOW).version
    append(AHEAD, 8)
    assert "unchanged data" in train_leak_model("after", now=NOW).reasons[0]


def test_a_clock_ahead_does_not_change_usage(customer, artifacts):
    use(NOW - timedelta(days=3), 72)
    assert publish_usage(now=NOW)["written"] == 1
    before = bucket().read(f"{FOLDER}/C-000001.json")
    # Hours later on the current day, and hours years later.
    use(NOW + timedelta(hours=2), 4)
    use(AHEAD, 24)
    assert publish_usage(now=NOW) == {"customers": 1, "days_written": 0, "written": 0, "removed": 0}
    assert bucket().read(f"{FOLDER}/C-000001.json") == before
    # The clock has reached the hours of that day, and the flows have changed.
    use(NOW, 1)
    assert publish_usage(now=NOW + timedelta(hours=6))["written"] == 1
