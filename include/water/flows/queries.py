"""The SQL files of this folder, with their parameters, run by DuckDB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.water.flows.definition import EXPECTED_READINGS, KNOWN_DAYS, MAX_GAP, MIN_COVERAGE_PERCENT, night_of
from include.water.flows.hours import REACH_HOURS, midnight, window_of
from include.water.sites import DISTRICTS

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection

GAP_PARAMETERS = {"max_gap_us": MAX_GAP // timedelta(microseconds=1), "max_gap_hours": REACH_HOURS}
FOLDER = Path(__file__).parent / "sql"
TOUCHED_HOURS, REACHED_HOURS, METER_HOURS, METER_DAYS = "touched_hours", "reached_hours", "meter_hours", "meter_days"
KNOWN_METERS, OUTDATED_HOURS = "known_meters", "outdated_hours"
DISTRICT_HOURS, DISTRICT_NIGHTS = "district_hours", "district_nights"
# The columns of `readings` that the queries read.
READING_COLUMNS = ("meter_id", "district_id", "read_at", "litres_total")

INLETS = tuple((district.district_id, district.inlet_meter_id) for district in DISTRICTS.values())


@cache
def text(name: str) -> str:
    return (FOLDER / f"{name}.sql").read_text()


def run(connection: DuckDBPyConnection, name: str, parameters: Mapping[str, Any]) -> pyarrow.Table:
    """Run a query. Its tables must exist as views of the connection, with the names that the query uses."""
    return connection.sql(text(name), params=dict(parameters)).to_arrow_table()


def run_all(
    connection: DuckDBPyConnection,
    hours: list[datetime],
    district_hours: list[datetime] | None = None,
    inlets: Iterable[tuple[str, str]] = INLETS,
) -> dict[str, pyarrow.Table]:
    """Compute the flows' tables from all readings at once, without a lake: for tests and benchmarks.

    Args:
        connection: A DuckDB connection with the readings as the view `readings`. The results become views, too.
        hours: The hours to compute for meters.
        district_hours: The hours to compute for districts; None: the same.
        inlets: (district, meter) of the inlet meters.

    Returns:
        {query name: rows}.
    """
    district_hours, inlets = hours if district_hours is None else district_hours, list(inlets)
    days = sorted({midnight(hour) for hour in [*hours, *district_hours]})
    nights = sorted({night for hour in district_hours if (night := night_of(hour))})
    results = {}
    for name, parameters in (
        (METER_HOURS, for_meter_hours(hours)),
        (METER_DAYS, {"days": days}),
        (KNOWN_METERS, for_known_meters(days, inlets)),
        (DISTRICT_HOURS, for_district_hours(district_hours, inlets)),
        # Never an empty list: DuckDB could not tell its type.
        (DISTRICT_NIGHTS, for_district_nights(nights or [district_hours[0].date()])),
    ):
        results[name] = run(connection, name, parameters)
        connection.register(name, results[name])
    return results


def for_touched_hours(ranges: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of `touched_hours.sql`.

    Args:
        ranges: Dicts {partition, start, end (exclusive), log}, as in a run's summary; no log: any log.
    """
    claimed = [
        {
            "kafka_partition": part["partition"],
            "first_offset": part["start"],
            "end_offset": part["end"],
            "kafka_log": part.get("log"),
        }
        for part in ranges
    ]
    return {"ranges": claimed}


def for_reached_hours(ranges: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of `reached_hours.sql`; `ranges` as for `for_touched_hours`."""
    return {**for_touched_hours(ranges), **GAP_PARAMETERS}


def for_meter_hours(hours: list[datetime]) -> dict[str, Any]:
    return {
        "hours": hours,
        **GAP_PARAMETERS,
        "expected_readings": EXPECTED_READINGS,
    }


def for_known_meters(days: list[datetime], inlets: Iterable[tuple[str, str]] = INLETS) -> dict[str, Any]:
    return {"days": days, "inlets": _inlets(inlets), "known_days": KNOWN_DAYS}


def for_district_hours(hours: list[datetime], inlets: Iterable[tuple[str, str]] = INLETS) -> dict[str, Any]:
    return {
        "hours": hours,
        "inlets": _inlets(inlets),
        "expected_readings": EXPECTED_READINGS,
        "min_coverage_percent": MIN_COVERAGE_PERCENT,
    }


def _inlets(inlets: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"district_id": district_id, "meter_id": meter_id} for district_id, meter_id in inlets]


def for_district_nights(nights: Iterable[date]) -> dict[str, Any]:
    return {"night_hours": [{"night": night, "hour": hour} for night in nights for hour in window_of(night)]}
