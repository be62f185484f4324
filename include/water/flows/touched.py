"""Which hours the clean readings of offset ranges are in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from include.streams.lake import engine
from include.streams.lake.offsets import LogRange
from include.streams.validators.coordinates import files_of, span
from include.water.flows import queries

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table


def hours_of(connection: DuckDBPyConnection, readings: Table, ranges: Sequence[LogRange]) -> list[datetime]:
    """The hours of the readings that the clean table has of these offset ranges now, by time."""
    if not ranges:
        return []
    rows = engine.read_data_files(connection, readings, files_of(readings, ranges))
    # The query picks the rows: a condition of some hundred ranges takes DuckDB longer than everything else.
    rows.filter(span(ranges)).create_view("readings", replace=True)
    rows = queries.run(connection, queries.TOUCHED_HOURS, queries.for_touched_hours(ranges))
    return sorted(rows["hour"].to_pylist())
