"""From clean readings to hourly flows and nights: what the readings of a run touch is computed again, and overwritten.

Nothing is added to what is there, so the same run twice, and runs in any order, end the same. Which hours a run
touches follows from its offset ranges, the clean table and what was noted of rows that it has replaced (`replaced.py`):
a retry after a crash between two commits does it all again.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.water.flows import queries, tables
from include.water.flows.definition import KNOWN_DAYS, MAX_GAP, night_of
from include.water.flows.hours import DAY, HOUR, blocks, counted, midnight, reached, spans, within

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table, Transaction

log = logging.getLogger(__name__)

# A condition of more offset ranges than this is replaced by their bounds; the query picks the exact rows.
MAX_RANGES = 32
NO_TIME = timedelta(0)
# What is read, computed and committed at once: bounds the memory that a long history takes.
MAX_ROWS = 2_000_000


def aggregate(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Compute again what the readings of a run touch, and those that an earlier try of it had put in their place.

    `summary`: as the commit to the clean table returned it. Returns what `aggregate_ranges` does.
    """
    from include.water.flows.replaced import noted_hours

    return aggregate_ranges(summary["ranges"], noted_hours(summary["claim_id"]))


def aggregate_ranges(ranges: Sequence[Mapping[str, int]], noted: Iterable[datetime] = ()) -> dict[str, Any]:
    """Compute again what the clean readings of these offset ranges touch: table by table, some days in a commit.

    `ranges`: partition, start, end (exclusive). `noted`: hours that lost readings. Returns {"hours": [first, last] as
    text, or [] when nothing is touched, "meter_hours": rows, "district_hours": rows, "district_nights": rows}.
    """
    from include.lake.catalog import load_catalog
    from include.lake.engine import connect
    from include.landing.tables import clean_table
    from include.water.topics import METER_READINGS

    catalog = load_catalog()
    readings = catalog.load_table(clean_table(METER_READINGS))
    made = tables.ensure_tables(catalog)
    with connect() as connection:
        return aggregate_tables(connection, readings, made, ranges, noted)


def aggregate_tables(
    connection: DuckDBPyConnection,
    readings: Table,
    made: Mapping[str, Table],
    ranges: Sequence[Mapping[str, int]],
    noted: Iterable[datetime] = (),
) -> dict[str, Any]:
    """As `aggregate_ranges`, with the clean table and the flows' tables given."""
    read = sorted({*hours_of(connection, readings, ranges), *noted})
    if not read:
        log.info("no clean readings in %d offset ranges: no hour changes", len(ranges))
        return {"hours": [], "meter_hours": 0, "district_hours": 0, "district_nights": 0}
    hours = reached(read)
    # The days of the readings too, and those after: a meter that was silent until now is missed in all of their hours.
    district_hours = sorted({*hours, *counted(read)})
    nights = sorted({night for hour in district_hours if (night := night_of(hour))})
    counts = {
        "meter_hours": sum(
            _make_meter_hours(connection, readings, made, block)
            for block in blocks(hours, _days_at_once(readings, "read_at", hours))
        ),
        "district_hours": sum(
            _make_district_hours(connection, made, block)
            for block in blocks(district_hours, _days_at_once(made[tables.METER_HOURS], "hour", district_hours))
        ),
        "district_nights": _make_district_nights(connection, made, nights),
    }
    log.info("aggregated: first_hour=%s last_hour=%s hours=%d %s", hours[0], hours[-1], len(hours), counts)
    return {"hours": [hours[0].isoformat(), hours[-1].isoformat()], **counts}


def hours_of(connection: DuckDBPyConnection, readings: Table, ranges: Sequence[Mapping[str, int]]) -> list[datetime]:
    """The hours of the readings that the clean table has of these offset ranges now, by time."""
    if not ranges:
        return []
    _view(connection, "readings", readings, near(ranges), ("kafka_partition", "kafka_offset", "read_at"))
    rows = queries.run(connection, queries.TOUCHED_HOURS, queries.for_touched_hours(ranges))
    return sorted(rows["hour"].to_pylist())


def near(ranges: Sequence[Mapping[str, int]]) -> str:
    """A condition that holds for all rows of these offset ranges, of which there is at least one."""
    if len(ranges) <= MAX_RANGES:
        return " or ".join(
            f"(kafka_partition = {int(part['partition'])} and kafka_offset >= {int(part['start'])}"
            f" and kafka_offset < {int(part['end'])})"
            for part in ranges
        )
    first, end = min(int(part["start"]) for part in ranges), max(int(part["end"]) for part in ranges)
    return f"kafka_offset >= {first} and kafka_offset < {end}"


def _days_at_once(table: Table, column: str, hours: Sequence[datetime]) -> int:
    """How many days of the table, which is partitioned by day, are not more than MAX_ROWS rows, if all are as full."""
    days = spans({midnight(hour) for hour in hours}, DAY, NO_TIME, NO_TIME)
    rows: Counter[Any] = Counter()
    for task in table.scan(within(column, days)).plan_files():
        rows[task.file.partition[0]] += task.file.record_count
    return max(1, MAX_ROWS // max(rows.values(), default=1))


def _make_meter_hours(
    connection: DuckDBPyConnection, readings: Table, made: Mapping[str, Table], hours: list[datetime]
) -> int:
    def compute() -> pyarrow.Table:
        readings.refresh()
        near = within("read_at", spans(hours, HOUR, MAX_GAP, MAX_GAP))
        _view(connection, "readings", readings, near, queries.READING_COLUMNS)
        return queries.run(connection, queries.METER_HOURS, queries.for_meter_hours(hours))

    days = spans({midnight(hour) for hour in hours}, DAY, NO_TIME, NO_TIME)
    return _overwrite(connection, made[tables.METER_HOURS], "hour", hours, days, compute)


def _make_district_hours(connection: DuckDBPyConnection, made: Mapping[str, Table], hours: list[datetime]) -> int:
    meter_hours = made[tables.METER_HOURS]
    days = {midnight(hour) for hour in hours}

    def compute() -> pyarrow.Table:
        meter_hours.refresh()
        needed = within("hour", spans(days, DAY, KNOWN_DAYS * DAY, NO_TIME))
        _view(connection, "meter_hours", meter_hours, needed)
        return queries.run(connection, queries.DISTRICT_HOURS, queries.for_district_hours(hours))

    whole = spans(days, DAY, NO_TIME, NO_TIME)
    return _overwrite(connection, made[tables.DISTRICT_HOURS], "hour", hours, whole, compute)


def _make_district_nights(connection: DuckDBPyConnection, made: Mapping[str, Table], nights: list[date]) -> int:
    if not nights:
        return 0
    district_hours = made[tables.DISTRICT_HOURS]
    parameters = queries.for_district_nights(nights)

    def compute() -> pyarrow.Table:
        district_hours.refresh()
        days = {midnight(part["hour"]) for part in parameters["night_hours"]}
        _view(connection, "district_hours", district_hours, within("hour", spans(days, DAY, NO_TIME, NO_TIME)))
        return queries.run(connection, queries.DISTRICT_NIGHTS, parameters)

    months = sorted({night.replace(day=1) for night in nights})
    whole = [(month, (month + 31 * DAY).replace(day=1)) for month in months]
    return _overwrite(connection, made[tables.DISTRICT_NIGHTS], "night", nights, whole, compute)


def _overwrite(
    connection: DuckDBPyConnection,
    table: Table,
    column: str,
    wanted: Sequence[datetime | date],
    partitions: Sequence[tuple[date, date]],
    compute: Callable[[], pyarrow.Table],
) -> int:
    """Replace the rows whose `column` is one of `wanted` by what `compute` gives; how many those are.

    Whole partitions are written, with the rows that are kept: else each run would leave a small file behind. It is all
    computed anew when somebody else has committed meanwhile: a task that was given up and still runs must not put
    back what readings, since then, have changed.
    """
    import pyarrow

    from include.lake import datafiles, writing
    from include.lake.engine import quoted, scan, sql_type

    partition_filter = within(column, partitions)
    names = ", ".join(
        f"{quoted(field.name)}::{sql_type(field.field_type)} as {quoted(field.name)}" for field in table.schema().fields
    )
    number = 0

    def change(transaction: Transaction) -> None:
        nonlocal number
        new = compute()
        number = new.num_rows
        connection.register("new", new)
        connection.register("wanted", pyarrow.table({column: wanted}))
        scan(connection, table, row_filter=partition_filter).create_view("old", replace=True)
        rows = f"select {names} from new union all select {names} from old where {quoted(column)} not in (from wanted)"
        with tempfile.TemporaryDirectory(prefix="overwrite-") as folder:
            added = datafiles.upload(table, datafiles.write(connection, rows, table, Path(folder)))
        # Always, also of an empty table: it is what makes PyIceberg refuse the commit when somebody else has added rows
        # there meanwhile, where a mere append would be repeated beside theirs.
        transaction.delete(partition_filter)
        writing.append_files(transaction, added, {})

    writing.commit(table, change)
    return number


def _view(
    connection: DuckDBPyConnection, name: str, table: Table, row_filter: str, columns: Iterable[str] | None = None
) -> None:
    from include.lake.engine import scan

    rows = scan(connection, table, row_filter=row_filter, columns=list(columns) if columns else None)
    rows.create_view(name, replace=True)
