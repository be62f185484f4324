"""Compute hourly flows and nights from clean readings: the hours that a run's readings touch are computed again and
overwritten.

Nothing is added to existing rows, so repeated runs, in any order, give the same result. The hours follow from the run's
offset ranges, the clean table, and the recorded hours of replaced rows (`replaced.py`). A retry after a crash between
two commits repeats everything.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from include.streams.lake import engine
from include.streams.lake.catalog import refreshed
from include.streams.lake.offsets import LogRange
from include.streams.validators.coordinates import LOG
from include.water.flows import queries, tables
from include.water.flows.definition import KNOWN_DAYS, MAX_GAP, night_of
from include.water.flows.hours import (
    DAY,
    HOUR,
    Span,
    blocks,
    counted_days,
    fewer,
    joined,
    midnight,
    month_blocks,
    reached,
    within,
)
from include.water.flows.touched import hours_of

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table, Transaction

    from include.streams.landing.xcom import RunSummary

log = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of a file of flows. A run rewrites whole files: larger ones hold more hours that it does not touch.
FILE_ROWS = 125_000
# Computed at once. Each commit opens all manifests of the days between its first and its last one, several times.
MAX_DAYS = 1_000
# What is read, computed and committed at once: bounds the memory that a long history takes.
MAX_ROWS = 2_000_000


class Aggregated(TypedDict):
    """What a run has computed again, as an XCom: the first and the last hour (empty if none), and rows by table."""

    hours: list[str]
    meter_hours: int
    district_hours: int
    district_nights: int


def aggregate(summary: RunSummary) -> Aggregated:
    """Compute again what the readings of a run touch, and those that an earlier try of it had put in their place.

    `summary`: as the commit to the clean table returned it. Returns what `aggregate_ranges` does.
    """
    from include.water.flows.replaced import noted_hours

    return aggregate_ranges(summary["ranges"], noted_hours(summary["claim_id"]))


def aggregate_ranges(ranges: Sequence[LogRange], noted: Iterable[datetime] = ()) -> Aggregated:
    """Compute again what the clean readings of these offset ranges touch: table by table, some days in a commit.

    `noted`: hours that lost readings.
    """
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect
    from include.streams.landing.clean import ensure_clean_table
    from include.water.topics import METER_READINGS

    catalog = load_catalog()
    # With the column of the log, which the table of an earlier release lacks.
    readings = ensure_clean_table(METER_READINGS)
    made = tables.ensure_tables(catalog)
    with connect() as connection:
        return aggregate_tables(connection, readings, made, ranges, noted)


def aggregate_tables(
    connection: DuckDBPyConnection,
    readings: Table,
    made: Mapping[str, Table],
    ranges: Sequence[LogRange],
    noted: Iterable[datetime] = (),
) -> Aggregated:
    """As `aggregate_ranges`, with the clean table and the flows' tables given."""
    noted = set(noted)
    of_ranges = hours_of(connection, readings, ranges)
    read = sorted({*of_ranges, *noted})
    if not read:
        log.info("no clean readings in %d offset ranges: no hour changes", len(ranges))
        return {"hours": [], "meter_hours": 0, "district_hours": 0, "district_nights": 0}
    # The neighbours of readings that were lost are not known any more: everything within reach is computed.
    hours = sorted({*reached_hours(connection, readings, ranges, of_ranges), *reached(noted)})
    meter_hours = sum(
        _make_meter_hours(connection, readings, made, block)
        for block in blocks(hours, _days_at_once(readings, "read_at", hours))
    )
    # A reading makes its meter a known one in all hours of its day and of the days after.
    days = counted_days(hours)
    _make_meter_days(connection, made, {midnight(hour) for hour in hours}, days)
    district_hours = sorted({*hours, *_outdated_hours(connection, made, days)})
    # Of all of these days, not only of hours that are outdated now: a try that was killed after it had written the
    # hours has left none outdated, and its nights are not written.
    there = _days_of(refreshed(made[tables.DISTRICT_HOURS]), "hour", days)
    counted = {*hours, *(day + n * HOUR for day in there for n in range(24))}
    nights = sorted({night for hour in counted if (night := night_of(hour))})
    aggregated: Aggregated = {
        "hours": [hours[0].isoformat(), hours[-1].isoformat()],
        "meter_hours": meter_hours,
        "district_hours": sum(
            _make_district_hours(connection, made, block)
            for block in blocks(district_hours, _days_at_once(made[tables.METER_HOURS], "hour", district_hours))
        ),
        "district_nights": sum(
            _make_district_nights(connection, made, block) for block in month_blocks(nights, MAX_DAYS)
        ),
    }
    log.info("aggregated: hours=%d %s", len(hours), aggregated)
    return aggregated


def reached_hours(
    connection: DuckDBPyConnection, readings: Table, ranges: Sequence[LogRange], read: Sequence[datetime]
) -> list[datetime]:
    """The hours whose flow the readings of these offset ranges can change.

    Those between a reading and its neighbours, not all that are within MAX_GAP of it: of a meter that is read every
    quarter of an hour, two and not seven. A neighbour that another run has put between two readings since then is no
    loss: that run computes the hours on its own two sides.

    Args:
        read: the hours in which these readings were made.
    """
    if not read:
        return []
    columns = ("meter_id", "read_at", "kafka_partition", "kafka_offset", LOG)
    _view_within(connection, "readings", readings, "read_at", joined(read, HOUR, MAX_GAP, MAX_GAP), columns)
    rows = queries.run(connection, queries.REACHED_HOURS, queries.for_reached_hours(ranges))
    return sorted(rows["hour"].to_pylist())


def _days_at_once(table: Table, column: str, hours: Iterable[datetime]) -> int:
    """How many days of the table, which is partitioned by day, are not more than MAX_ROWS rows, if all are as full."""
    rows: Counter[Any] = Counter()
    for file in engine.files_within(table, column, joined({midnight(hour) for hour in hours}, DAY)):
        rows[file.partition[0]] += file.record_count
    return max(1, min(MAX_DAYS, MAX_ROWS // max(rows.values(), default=1)))


def _days_of(table: Table, column: str, days: Iterable[datetime]) -> set[datetime]:
    """Those of the days of which the table, which is partitioned by day, has files."""
    wanted = set(days)
    files = engine.files_within(table, column, joined(wanted, DAY))
    return wanted & {EPOCH + file.partition[0] * DAY for file in files}


def _make_meter_hours(
    connection: DuckDBPyConnection, readings: Table, made: Mapping[str, Table], hours: list[datetime]
) -> int:
    def compute() -> pyarrow.Table:
        refreshed(readings)
        near = joined(hours, HOUR, MAX_GAP, MAX_GAP)
        _view_within(connection, "readings", readings, "read_at", near, queries.READING_COLUMNS)
        return queries.run(connection, queries.METER_HOURS, queries.for_meter_hours(hours))

    return _overwrite(connection, made[tables.METER_HOURS], "hour", hours, joined(hours, HOUR), compute)


def _make_meter_days(
    connection: DuckDBPyConnection, made: Mapping[str, Table], touched: set[datetime], counted: set[datetime]
) -> None:
    """Compute the meters that were read on each of the touched days.

    And on the days that count beside them, if meter hours are older than this table: a meter that is missing here would
    be missing from its district.
    """
    meter_hours = refreshed(made[tables.METER_HOURS])
    near = {day - n * DAY for day in counted for n in range(KNOWN_DAYS + 1)}
    missing = _days_of(meter_hours, "hour", near) - _days_of(refreshed(made[tables.METER_DAYS]), "day", near)

    def make(days: list[datetime]) -> None:
        def compute() -> pyarrow.Table:
            refreshed(meter_hours)
            columns = ("meter_id", "district_id", "hour", "readings")
            _view_within(connection, "meter_hours", meter_hours, "hour", joined(days, DAY), columns)
            return queries.run(connection, queries.METER_DAYS, {"days": days})

        _overwrite(connection, made[tables.METER_DAYS], "day", days, joined(days, DAY), compute)

    wanted = touched | missing
    for block in blocks(wanted, _days_at_once(meter_hours, "hour", wanted)):
        make(block)


def _outdated_hours(connection: DuckDBPyConnection, made: Mapping[str, Table], days: set[datetime]) -> set[datetime]:
    """The hours of these days whose districts have another number of known meters than when they were computed.

    Found by comparing tables, not by what this run has changed: so a retry finds what the try before it has left.
    """
    district_hours = refreshed(made[tables.DISTRICT_HOURS])
    found: set[datetime] = set()
    wanted = _days_of(district_hours, "hour", days)
    for block in blocks(wanted, _days_at_once(refreshed(made[tables.METER_DAYS]), "day", wanted)):
        _view_known_meters(connection, made, set(block))
        _view_within(connection, "district_hours", district_hours, "hour", joined(block, DAY))
        rows = queries.run(connection, queries.OUTDATED_HOURS, {"days": block})
        found |= set(rows["hour"].to_pylist())
    return found


def _view_known_meters(connection: DuckDBPyConnection, made: Mapping[str, Table], days: set[datetime]) -> None:
    meter_days = refreshed(made[tables.METER_DAYS])
    _view_within(connection, "meter_days", meter_days, "day", joined(days, DAY, KNOWN_DAYS * DAY))
    known = queries.run(connection, queries.KNOWN_METERS, queries.for_known_meters(sorted(days)))
    connection.register("known_meters", known)


def _make_district_hours(connection: DuckDBPyConnection, made: Mapping[str, Table], hours: list[datetime]) -> int:
    meter_hours = made[tables.METER_HOURS]

    def compute() -> pyarrow.Table:
        refreshed(meter_hours)
        _view_known_meters(connection, made, {midnight(hour) for hour in hours})
        _view_within(connection, "meter_hours", meter_hours, "hour", joined(hours, HOUR))
        return queries.run(connection, queries.DISTRICT_HOURS, queries.for_district_hours(hours))

    return _overwrite(connection, made[tables.DISTRICT_HOURS], "hour", hours, joined(hours, HOUR), compute)


def _make_district_nights(connection: DuckDBPyConnection, made: Mapping[str, Table], nights: list[date]) -> int:
    district_hours = made[tables.DISTRICT_HOURS]
    parameters = queries.for_district_nights(nights)

    def compute() -> pyarrow.Table:
        refreshed(district_hours)
        days = {midnight(part["hour"]) for part in parameters["night_hours"]}
        _view_within(connection, "district_hours", district_hours, "hour", joined(days, DAY))
        return queries.run(connection, queries.DISTRICT_NIGHTS, parameters)

    return _overwrite(connection, made[tables.DISTRICT_NIGHTS], "night", nights, joined(nights, DAY), compute)


def _overwrite(
    connection: DuckDBPyConnection,
    table: Table,
    column: str,
    wanted: Sequence[datetime | date],
    touched: Sequence[engine.Span],
    compute: Callable[[], pyarrow.Table],
) -> int:
    """Replace the rows whose `column` is one of `wanted` by what `compute` gives; how many those are.

    Whole files are replaced, with their rows that are kept: else each run would leave a small file behind. A file holds
    at most FILE_ROWS of a partition, those of some hours, so that a run rewrites what it touches and not the day. It is
    all computed anew when somebody else has committed meanwhile: a task that was given up and still runs must not put
    back what readings, since then, have changed.
    """
    import pyarrow

    from include.streams.lake import datafiles, writing
    from include.streams.lake.engine import quoted

    names = datafiles.columns(table)
    number = 0

    def change(transaction: Transaction) -> None:
        nonlocal number
        new = compute()
        number = new.num_rows
        connection.register("new", new)
        connection.register("wanted", pyarrow.table({column: wanted}))
        replaced = engine.files_within(table, column, touched)
        engine.read_data_files(connection, table, replaced).create_view("old", replace=True)
        rows = f"select {names} from new union all select {names} from old where {quoted(column)} not in (from wanted)"
        with tempfile.TemporaryDirectory(prefix="overwrite-") as folder:
            made = datafiles.write(connection, rows, table, Path(folder), cut=(column, FILE_ROWS))
            added = datafiles.upload(table, made)
        writing.replace_files(transaction, replaced, added)

    writing.commit(table, change)
    return number


def _view_within(
    connection: DuckDBPyConnection,
    name: str,
    table: Table,
    column: str,
    wanted: list[Span],
    columns: Iterable[str] | None = None,
) -> None:
    """The rows whose `column` lies in one of the spans, and perhaps some between them."""
    rows = engine.read_data_files(connection, table, engine.files_within(table, column, wanted))
    rows = rows.filter(within(column, fewer(wanted)))
    (rows.project(", ".join(map(engine.quoted, columns))) if columns else rows).create_view(name, replace=True)
