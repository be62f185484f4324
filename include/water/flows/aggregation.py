"""Compute hourly flows and nights from clean readings.

A run recomputes and overwrites the hours that its readings touch. It adds nothing to existing rows, so repeated runs,
in any order, give the same result. The hours follow from the run's offset ranges, the clean table, and the recorded
hours of replaced rows (`replaced.py`). A retry after a crash between two commits repeats all commits.
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
    hours_in_reach,
    known_meter_days,
    limit_spans,
    midnight,
    spans_around,
    spans_condition,
)
from include.water.flows.touched import hours_of

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table, Transaction

    from include.streams.landing.xcom import RunSummary

log = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The most rows of a data file of flows. A run rewrites whole files; a larger file holds more hours that the run does
# not touch.
FILE_ROWS = 125_000
# The most partitions in one commit. A commit opens all manifests between its first and its last one, several times.
MAX_PARTITIONS = 1_000
# The most rows that are read, computed and committed at once: limits the memory that a long history needs.
MAX_ROWS = 2_000_000


class Aggregated(TypedDict):
    """What a run has recomputed, as an XCom: the first and the last hour (empty if none), and rows by table."""

    hours: list[str]
    meter_hours: int
    district_hours: int
    district_nights: int


def aggregate(summary: RunSummary) -> Aggregated:
    """Recompute the hours that the readings of a run touch, and the hours that lost readings of an earlier try.

    Args:
        summary: The summary that the commit to the clean table returned.

    Returns:
        The first and the last hour, and the rows by table.
    """
    from include.water.flows.replaced import hours_replaced_by

    return aggregate_ranges(summary["ranges"], hours_replaced_by(summary["claim_id"]))


def aggregate_ranges(ranges: Sequence[LogRange], replaced: Iterable[datetime] = ()) -> Aggregated:
    """Recompute the hours that the clean readings of offset ranges touch: table by table, some days in each commit.

    Args:
        ranges: The offset ranges.
        replaced: Hours (UTC) that lost readings.

    Returns:
        The first and the last hour, and the rows by table.
    """
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect
    from include.streams.landing.clean import ensure_clean_table
    from include.water.topics import METER_READINGS

    catalog = load_catalog()
    # Adds the column of the log, which the table of an earlier release lacks.
    readings = ensure_clean_table(METER_READINGS)
    flow_tables = tables.ensure_tables(catalog)
    with connect() as connection:
        return aggregate_tables(connection, readings, flow_tables, ranges, replaced)


def aggregate_tables(
    connection: DuckDBPyConnection,
    readings: Table,
    flow_tables: Mapping[str, Table],
    ranges: Sequence[LogRange],
    replaced: Iterable[datetime] = (),
) -> Aggregated:
    """Like `aggregate_ranges`, with the clean table and {name: table of flows} as arguments."""
    replaced = set(replaced)
    touched = hours_of(connection, readings, ranges)
    if not touched and not replaced:
        log.info("no clean readings in %d offset ranges: no hour changes", len(ranges))
        return {"hours": [], "meter_hours": 0, "district_hours": 0, "district_nights": 0}
    # The neighbors of lost readings are no longer known, so all hours within reach are recomputed.
    hours = sorted({*reached_hours(connection, readings, ranges, touched), *hours_in_reach(replaced)})
    meter_hours = sum(
        _write_meter_hours(connection, readings, flow_tables, block)
        for block in blocks(hours, _days_at_once(readings, "read_at", hours))
    )
    # A reading makes its meter known in all hours of its day and of the next KNOWN_DAYS days.
    days = known_meter_days(hours)
    _write_meter_days(connection, flow_tables, {midnight(hour) for hour in hours}, days)
    district_hours = sorted({*hours, *_outdated_hours(connection, flow_tables, days)})
    # The nights of all these days, not only those of hours that are outdated now: an earlier try that was killed after
    # it wrote the hours left no outdated hours, but did not write their nights.
    days_with_rows = _days_of(refreshed(flow_tables[tables.DISTRICT_HOURS]), "hour", days)
    night_hours = {*hours, *(day + n * HOUR for day in days_with_rows for n in range(24))}
    nights = sorted({night for hour in night_hours if (night := night_of(hour))})
    aggregated: Aggregated = {
        "hours": [hours[0].isoformat(), hours[-1].isoformat()],
        "meter_hours": meter_hours,
        "district_hours": sum(
            _write_district_hours(connection, flow_tables, block)
            for block in blocks(district_hours, _days_at_once(flow_tables[tables.METER_HOURS], "hour", district_hours))
        ),
        "district_nights": sum(
            _write_district_nights(connection, flow_tables, block)
            # The table is partitioned by month.
            for block in blocks(nights, MAX_PARTITIONS, lambda night: night.replace(day=1))
        ),
    }
    log.info("aggregated: hours=%d %s", len(hours), aggregated)
    return aggregated


def reached_hours(
    connection: DuckDBPyConnection, readings: Table, ranges: Sequence[LogRange], touched: Sequence[datetime]
) -> list[datetime]:
    """The hours whose flow the readings of these offset ranges can change.

    These are the hours from a reading's neighbor before to its neighbor after, not all hours within MAX_GAP: for a
    meter that is read every quarter of an hour, two hours instead of seven. If another run adds a neighbor in between,
    that run recomputes the hours on both sides of the new reading, so no hour is missed.

    Args:
        connection: The DuckDB connection.
        readings: The clean table.
        ranges: The offset ranges.
        touched: The hours of the readings in these ranges.

    Returns:
        The hours, sorted.
    """
    if not touched:
        return []
    columns = ("meter_id", "read_at", "kafka_partition", "kafka_offset", LOG)
    _view_within(connection, "readings", readings, "read_at", spans_around(touched, HOUR, MAX_GAP, MAX_GAP), columns)
    rows = queries.run(connection, queries.REACHED_HOURS, queries.for_reached_hours(ranges))
    return sorted(rows["hour"].to_pylist())


def _days_at_once(table: Table, column: str, hours: Iterable[datetime]) -> int:
    """How many days to process at once: at most MAX_ROWS rows, if every day is as large as the largest.

    The table is partitioned by day.
    """
    rows: Counter[Any] = Counter()
    for file in engine.files_within(table, column, spans_around({midnight(hour) for hour in hours}, DAY)):
        rows[file.partition[0]] += file.record_count
    return max(1, min(MAX_PARTITIONS, MAX_ROWS // max(rows.values(), default=1)))


def _days_of(table: Table, column: str, days: Iterable[datetime]) -> set[datetime]:
    """The days, among these, for which the table has files. The table is partitioned by day."""
    days = set(days)
    files = engine.files_within(table, column, spans_around(days, DAY))
    return days & {EPOCH + file.partition[0] * DAY for file in files}


def _write_meter_hours(
    connection: DuckDBPyConnection, readings: Table, flow_tables: Mapping[str, Table], hours: list[datetime]
) -> int:
    def compute() -> pyarrow.Table:
        refreshed(readings)
        spans = spans_around(hours, HOUR, MAX_GAP, MAX_GAP)
        _view_within(connection, "readings", readings, "read_at", spans, queries.READING_COLUMNS)
        return queries.run(connection, queries.METER_HOURS, queries.for_meter_hours(hours))

    return _overwrite(connection, flow_tables[tables.METER_HOURS], "hour", hours, compute)


def _write_meter_days(
    connection: DuckDBPyConnection, flow_tables: Mapping[str, Table], touched: set[datetime], known: set[datetime]
) -> None:
    """Write which meters were read on each of the touched days.

    Days that the table lacks, although their meter hours exist, are written too. The table is younger than the meter
    hours; without these days, meters would be missing from their district's known meters.

    Args:
        connection: The DuckDB connection.
        flow_tables: {name: table of flows}.
        touched: The days of the recomputed hours.
        known: The days on which the touched days' readings make their meters known.
    """
    meter_hours = refreshed(flow_tables[tables.METER_HOURS])
    needed = {day - n * DAY for day in known for n in range(KNOWN_DAYS + 1)}
    missing = _days_of(meter_hours, "hour", needed) - _days_of(refreshed(flow_tables[tables.METER_DAYS]), "day", needed)

    def write(days: list[datetime]) -> None:
        def compute() -> pyarrow.Table:
            refreshed(meter_hours)
            columns = ("meter_id", "district_id", "hour", "readings")
            _view_within(connection, "meter_hours", meter_hours, "hour", spans_around(days, DAY), columns)
            return queries.run(connection, queries.METER_DAYS, {"days": days})

        _overwrite(connection, flow_tables[tables.METER_DAYS], "day", days, compute)

    wanted = touched | missing
    for block in blocks(wanted, _days_at_once(meter_hours, "hour", wanted)):
        write(block)


def _outdated_hours(
    connection: DuckDBPyConnection, flow_tables: Mapping[str, Table], days: set[datetime]
) -> set[datetime]:
    """The hours of these days that were computed with another number of known meters than the district has now.

    The tables are compared, whatever this run has changed. So a retry also finds hours that an earlier try left
    outdated.
    """
    district_hours = refreshed(flow_tables[tables.DISTRICT_HOURS])
    outdated: set[datetime] = set()
    days = _days_of(district_hours, "hour", days)
    for block in blocks(days, _days_at_once(refreshed(flow_tables[tables.METER_DAYS]), "day", days)):
        _view_known_meters(connection, flow_tables, set(block))
        _view_within(connection, "district_hours", district_hours, "hour", spans_around(block, DAY))
        rows = queries.run(connection, queries.OUTDATED_HOURS, {"days": block})
        outdated |= set(rows["hour"].to_pylist())
    return outdated


def _view_known_meters(connection: DuckDBPyConnection, flow_tables: Mapping[str, Table], days: set[datetime]) -> None:
    meter_days = refreshed(flow_tables[tables.METER_DAYS])
    _view_within(connection, "meter_days", meter_days, "day", spans_around(days, DAY, KNOWN_DAYS * DAY))
    known = queries.run(connection, queries.KNOWN_METERS, queries.for_known_meters(sorted(days)))
    connection.register("known_meters", known)


def _write_district_hours(
    connection: DuckDBPyConnection, flow_tables: Mapping[str, Table], hours: list[datetime]
) -> int:
    meter_hours = flow_tables[tables.METER_HOURS]

    def compute() -> pyarrow.Table:
        refreshed(meter_hours)
        _view_known_meters(connection, flow_tables, {midnight(hour) for hour in hours})
        _view_within(connection, "meter_hours", meter_hours, "hour", spans_around(hours, HOUR))
        return queries.run(connection, queries.DISTRICT_HOURS, queries.for_district_hours(hours))

    return _overwrite(connection, flow_tables[tables.DISTRICT_HOURS], "hour", hours, compute)


def _write_district_nights(connection: DuckDBPyConnection, flow_tables: Mapping[str, Table], nights: list[date]) -> int:
    district_hours = flow_tables[tables.DISTRICT_HOURS]
    parameters = queries.for_district_nights(nights)

    def compute() -> pyarrow.Table:
        refreshed(district_hours)
        days = {midnight(part["hour"]) for part in parameters["night_hours"]}
        _view_within(connection, "district_hours", district_hours, "hour", spans_around(days, DAY))
        return queries.run(connection, queries.DISTRICT_NIGHTS, parameters)

    return _overwrite(connection, flow_tables[tables.DISTRICT_NIGHTS], "night", nights, compute)


def _overwrite(
    connection: DuckDBPyConnection,
    table: Table,
    column: str,
    wanted: Sequence[datetime | date],
    compute: Callable[[], pyarrow.Table],
) -> int:
    """Replace the rows whose `column` is one of `wanted` with the rows that `compute` returns.

    Whole files are rewritten, including the rows that stay: otherwise each run would leave one more small file. A file
    holds at most FILE_ROWS rows of some hours, so that a run rewrites the hours that it touches, not the whole day. If
    another process commits in the meantime, `compute` is called again: a task that was given up but still runs must not
    overwrite flows of newer readings.

    Args:
        connection: The DuckDB connection.
        table: The table.
        column: The column of the hour, day or night.
        wanted: The values of the column to replace.
        compute: Returns the new rows.

    Returns:
        How many rows are new.
    """
    import pyarrow

    from include.streams.lake import datafiles, writing
    from include.streams.lake.engine import quoted

    names = datafiles.columns(table)
    spans = spans_around(wanted, HOUR if column == "hour" else DAY)
    number = 0

    def change(transaction: Transaction) -> None:
        nonlocal number
        new = compute()
        number = new.num_rows
        connection.register("new", new)
        connection.register("wanted", pyarrow.table({column: wanted}))
        replaced = engine.files_within(table, column, spans)
        engine.read_data_files(connection, table, replaced).create_view("old", replace=True)
        rows = f"select {names} from new union all select {names} from old where {quoted(column)} not in (from wanted)"
        with tempfile.TemporaryDirectory(prefix="overwrite-") as folder:
            files = datafiles.write(connection, rows, table, Path(folder), cut=(column, FILE_ROWS))
            added = datafiles.upload(table, files)
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
    """Create a view of the rows whose `column` lies in one of the spans; it may include rows between two spans."""
    rows = engine.read_data_files(connection, table, engine.files_within(table, column, wanted))
    rows = rows.filter(spans_condition(column, limit_spans(wanted)))
    (rows.project(", ".join(map(engine.quoted, columns))) if columns else rows).create_view(name, replace=True)
