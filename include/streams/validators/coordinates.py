"""The Kafka coordinates of clean rows: their columns, and the search for the rows of offset ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from include.streams.lake import offsets
from include.streams.lake.engine import bounds_of, files_where, read_data_files
from include.streams.lake.offsets import LogRange, OffsetColumns

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

COORDINATES = {"kafka_partition": "int", "kafka_offset": "long", "kafka_timestamp": "timestamptz"}
# The identity of the log to which the offset belongs. A recreated topic, or a topic that was reset after its log was
# truncated, uses its offsets again. Without this column, its rows would replace rows of the earlier log.
LOG = "kafka_log"
OFFSET_COLUMNS = OffsetColumns("kafka_partition", "kafka_offset", LOG)


def span(ranges: Sequence[LogRange]) -> str:
    """A short condition that holds for all rows of these offset ranges (at least one), and also for many other rows."""
    return offsets.span(ranges, OFFSET_COLUMNS.offset)


def rows_of(connection: DuckDBPyConnection, table: Table, ranges: Sequence[LogRange]) -> DuckDBPyRelation:
    """The rows of a clean table that came from these offsets.

    Args:
        connection: The engine's DuckDB connection.
        table: The clean table.
        ranges: The offset ranges. A row without a log, which was written before the column was added, matches any log.

    Raises:
        ValueError: The table has delete files.
    """
    return rows_in_ranges(connection, read_data_files(connection, table, files_of(table, ranges)), ranges)


def rows_in_ranges(
    connection: DuckDBPyConnection,
    rows: DuckDBPyRelation,
    ranges: Sequence[LogRange],
    *,
    others: bool = False,
) -> DuckDBPyRelation:
    """The clean rows that came from these offsets.

    Args:
        connection: The DuckDB connection that created `rows`.
        rows: Rows with the columns of a clean table.
        ranges: As for `rows_of`.
        others: True to return all other rows instead.
    """
    return offsets.rows_in_ranges(connection, rows, ranges, OFFSET_COLUMNS, others=others)


def files_of(table: Table, ranges: Sequence[LogRange]) -> list[DataFile]:
    """The data files of a clean table that may hold rows of these offset ranges.

    Args:
        table: The clean table. It must have all columns of the coordinates.
        ranges: As for `rows_of`.

    Raises:
        ValueError: The table has delete files.
    """
    import numpy as np

    if not ranges:
        return []
    fields = [table.schema().find_field(name) for name in ("kafka_partition", "kafka_offset", LOG)]
    numbers, starts, ends = (np.array([int(part[name]) for part in ranges]) for name in ("partition", "start", "end"))
    logs_of = [part.get("log") for part in ranges]
    overlapping = []
    for file in files_where(table, span(ranges)):
        partitions, within, logs = (bounds_of(file, field) for field in fields)
        if (file.null_value_counts or {}).get(fields[-1].field_id) != 0:
            # Rows without a log match every log.
            logs = None
        # Thousands of files and ranges: compared one by one in Python, they would take seconds.
        overlaps = np.ones(len(ranges), dtype=bool)
        if partitions is not None:
            overlaps &= (numbers >= partitions[0]) & (numbers <= partitions[1])
        if within is not None:
            overlaps &= (starts <= within[1]) & (ends > within[0])
        if any(
            logs is None or (log := logs_of[index]) is None or logs[0] <= log <= logs[1]
            for index in overlaps.nonzero()[0]
        ):
            overlapping.append(file)
    return overlapping
