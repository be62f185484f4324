"""The hours of the clean readings in offset ranges."""

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
    """The hours of the readings that the clean table has now in these offset ranges, sorted."""
    if not ranges:
        return []
    rows = engine.read_data_files(connection, readings, files_of(readings, ranges))
    # One span for all ranges; the query joins the exact ranges. A condition of some hundred ranges would take DuckDB
    # longer than everything else.
    rows.filter(span(ranges)).create_view("readings", replace=True)
    rows = queries.run(connection, queries.TOUCHED_HOURS, queries.for_touched_hours(ranges))
    return sorted(rows["hour"].to_pylist())
