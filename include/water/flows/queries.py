"""The SQL files of this folder, with their parameters, run by DuckDB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.water.flows.definition import EXPECTED_READINGS, KNOWN_DAYS, MAX_GAP, MIN_COVERAGE_PERCENT
from include.water.flows.hours import REACH_HOURS, window_of
from include.water.sites import DISTRICTS

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection

GAP = {"max_gap_us": MAX_GAP // timedelta(microseconds=1), "max_gap_hours": REACH_HOURS}
FOLDER = Path(__file__).parent / "sql"
TOUCHED_HOURS, REACHED_HOURS, METER_HOURS, DISTRICT_HOURS, DISTRICT_NIGHTS = (
    "touched_hours",
    "reached_hours",
    "meter_hours",
    "district_hours",
    "district_nights",
)
# The columns of `readings` that the queries read.
READING_COLUMNS = ("meter_id", "district_id", "read_at", "litres_total")

INLETS = tuple((district.district_id, district.inlet_meter_id) for district in DISTRICTS.values())


@cache
def text(name: str) -> str:
    return (FOLDER / f"{name}.sql").read_text()


def run(connection: DuckDBPyConnection, name: str, parameters: Mapping[str, Any]) -> pyarrow.Table:
    """The rows that a query gives. Its tables are views of the connection: readings, meter_hours, district_hours."""
    return connection.sql(text(name), params=dict(parameters)).to_arrow_table()


def for_touched_hours(ranges: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """`ranges`: partition, start, end (exclusive), as a unit of work has them."""
    claimed = [
        {"kafka_partition": part["partition"], "first_offset": part["start"], "end_offset": part["end"]}
        for part in ranges
    ]
    return {"ranges": claimed}


def for_reached_hours(ranges: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """`ranges`: as for `for_touched_hours`."""
    return {**for_touched_hours(ranges), **GAP}


def for_meter_hours(hours: list[datetime]) -> dict[str, Any]:
    return {
        "hours": hours,
        **GAP,
        "expected_readings": EXPECTED_READINGS,
    }


def for_district_hours(hours: list[datetime], inlets: Iterable[tuple[str, str]] = INLETS) -> dict[str, Any]:
    return {
        "hours": hours,
        "inlets": [{"district_id": district_id, "meter_id": meter_id} for district_id, meter_id in inlets],
        "known_days": KNOWN_DAYS,
        "expected_readings": EXPECTED_READINGS,
        "min_coverage_percent": MIN_COVERAGE_PERCENT,
    }


def for_district_nights(nights: Iterable[date]) -> dict[str, Any]:
    return {"night_hours": [{"night": night, "hour": hour} for night in nights for hour in window_of(night)]}
