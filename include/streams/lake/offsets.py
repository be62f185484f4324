"""Rows by their place in Kafka, for any number of offset ranges at once.

A condition that names each range costs PyIceberg 12 seconds for two thousand of them, and DuckDB 48: a claim of a topic
with many partitions has as many.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

from include.streams.lake.engine import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation


class LogRange(TypedDict):
    """Offsets of a partition from `start` to before `end`, as JSON. `log` is the identity of the partition's log.

    A range without `log`, from a run that began before the column existed, is of any log.
    """

    partition: int
    start: int
    end: int
    log: NotRequired[str | None]


@dataclass(frozen=True)
class Place:
    """The columns of a table that say where in Kafka a row comes from; `log`: the identity of the partition's log."""

    partition: str
    offset: str
    log: str | None = None


def among(
    connection: DuckDBPyConnection,
    rows: DuckDBPyRelation,
    ranges: Sequence[LogRange],
    place: Place,
    *,
    others: bool = False,
) -> DuckDBPyRelation:
    """The rows that came from these offsets.

    Args:
        connection: The engine's DuckDB connection, which made `rows`.
        rows: The rows.
        ranges: The offsets. A row without a log is of any log.
        place: The columns of `rows`; without `log`, that of the ranges is ignored.
        others: The rows that came from other offsets.
    """
    import pyarrow as pa

    # A name of its own, because a relation is read later, when the connection may know other ranges.
    name = f"ranges {uuid.uuid4().hex}"
    columns = {
        "partition": pa.array([int(part["partition"]) for part in ranges], pa.int64()),
        "start": pa.array([int(part["start"]) for part in ranges], pa.int64()),
        "end": pa.array([int(part["end"]) for part in ranges], pa.int64()),
        "log": pa.array([part.get("log") for part in ranges], pa.string()),
    }
    connection.register(name, pa.table(columns))
    is_inside = (
        f'found.{quoted(place.partition)} = ranges."partition" '
        f'and found.{quoted(place.offset)} >= ranges."start" and found.{quoted(place.offset)} < ranges."end"'
    )
    if place.log is not None:
        is_inside += f' and coalesce(found.{quoted(place.log)} = ranges."log", true)'
    if ranges and not others:
        # DuckDB skips the parts of a file that are outside of it.
        rows = rows.filter(span(ranges, place.offset))
    wanted = connection.sql(f"select * from {quoted(name)}").set_alias("ranges")
    return rows.set_alias("found").join(wanted, is_inside, how="anti" if others else "semi")


def span(ranges: Iterable[LogRange], offset: str) -> str:
    """A short condition that holds for all rows of these offset ranges, at least one, and for many others.

    Args:
        ranges: As for `among`.
        offset: The column with the offset.
    """
    ranges = list(ranges)
    first, end = min(int(part["start"]) for part in ranges), max(int(part["end"]) for part in ranges)
    return f"{quoted(offset)} >= {first} and {quoted(offset)} < {end}"
