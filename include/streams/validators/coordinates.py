"""The Kafka coordinates of clean rows: their columns, and how the rows of offset ranges are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from include.streams.lake import offsets
from include.streams.lake.engine import bounds_of, files_where, read_data_files
from include.streams.lake.offsets import LogRange, Place

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

COORDINATES = {"kafka_partition": "int", "kafka_offset": "long", "kafka_timestamp": "timestamptz"}
# The identity of the log to which the offset belongs. A recreated topic, or a topic that was reset after its log was
# truncated, uses its offsets again. Without this column, its rows would replace rows of the earlier log.
LOG = "kafka_log"
PLACE = Place("kafka_partition", "kafka_offset", LOG)


def span(ranges: Sequence[LogRange]) -> str:
    """A short condition that holds for all rows of these offset ranges, at least one, and for many others."""
    return offsets.span(ranges, PLACE.offset)


def rows_of(connection: DuckDBPyConnection, table: Table, ranges: Sequence[LogRange]) -> DuckDBPyRelation:
    """The rows of a clean table that came from these offsets.

    Args:
        connection: The engine's DuckDB connection.
        table: The clean table.
        ranges: The offsets, any number of ranges. A row without a log, written before the column was added, is of any
            log.

    Raises:
        ValueError: The table has delete files.
    """
    return among(connection, read_data_files(connection, table, files_of(table, ranges)), ranges)


def among(
    connection: DuckDBPyConnection,
    rows: DuckDBPyRelation,
    ranges: Sequence[LogRange],
    *,
    others: bool = False,
) -> DuckDBPyRelation:
    """Those of the clean rows that came from these offsets; or, with `others`, all others.

    Args:
        connection: The engine's DuckDB connection, which made `rows`.
        rows: Rows with the columns of a clean table.
        ranges: As for `rows_of`.
        others: See above.
    """
    return offsets.among(connection, rows, ranges, PLACE, others=others)


def files_of(table: Table, ranges: Sequence[LogRange]) -> list[DataFile]:
    """The data files of a clean table that may hold rows of these offset ranges.

    Args:
        table: The clean table, with all columns of its coordinates.
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
    found = []
    for file in files_where(table, span(ranges)):
        partitions, within, logs = (bounds_of(file, field) for field in fields)
        if (file.null_value_counts or {}).get(fields[-1].field_id) != 0:
            # Rows without a log match every log.
            logs = None
        # Thousands of files and ranges: compared one by one in Python, they would take seconds.
        near = np.ones(len(ranges), dtype=bool)
        if partitions is not None:
            near &= (numbers >= partitions[0]) & (numbers <= partitions[1])
        if within is not None:
            near &= (starts <= within[1]) & (ends > within[0])
        if any(
            logs is None or (log := logs_of[place]) is None or logs[0] <= log <= logs[1] for place in near.nonzero()[0]
        ):
            found.append(file)
    return found
