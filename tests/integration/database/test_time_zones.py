"""A database whose sessions have another time zone: the first and last times of the calendar can be read."""

from datetime import timedelta

import pytest
from sqlalchemy import TIMESTAMP, bindparam, select, text

from include.streams.kafka.messages import EPOCH
from include.streams.operations.database import begin, engine

pytestmark = pytest.mark.integration

# The first and the last timestamp that a message may have; the first is .NET's DateTime.MinValue.
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999


@pytest.mark.parametrize("way", ["direct", "behind_pgbouncer"])
@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Tokyo"])
def test_the_ends_of_the_calendar_are_read_in_any_zone(zone, way, request, new_database):
    if way != "direct":
        request.getfixturevalue(way)
    database = new_database()
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"alter database {database} set timezone to '{zone}'"))
    for milliseconds in (FIRST_MS, LAST_MS):
        timestamp = EPOCH + timedelta(milliseconds=milliseconds)
        with begin(database) as connection:
            assert connection.scalar(select(bindparam("at", timestamp, TIMESTAMP(timezone=True)))) == timestamp
        with begin(database, patience=timedelta(minutes=2)) as connection:
            assert connection.scalar(text("show timezone")) == "UTC"
    with engine(database).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalar(text("select reset_val from pg_settings where name = 'TimeZone'")) == zone
