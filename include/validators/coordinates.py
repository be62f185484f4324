"""The Kafka coordinates of clean rows: their columns, and how the rows of offset ranges are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from include.lake.engine import bounds_of, files_where, literal

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

COORDINATES = {"kafka_partition": "int", "kafka_offset": "long", "kafka_timestamp": "timestamptz"}
# The identity of the log to which the offset belongs. A recreated topic, or a topic that was reset after its log was
# truncated, uses its offsets again. Without this column, its rows would replace rows of the earlier log.
LOG = "kafka_log"


def condition(ranges: Iterable[Mapping[str, Any]]) -> str:
    """A condition on the rows of a clean table that came from these offsets, for PyIceberg and DuckDB.

    Args:
        ranges: Each with `partition`, `start`, `end` (exclusive), and `log`, the identity of the partition's log. A
            range without `log`, from a run that began before the column existed, matches any log.

    Returns:
        A condition. It holds for no row when there is no range. Rows without a log, written before the column was
        added, match every log.
    """
    return " or ".join(_one(part) for part in ranges) or "kafka_partition < 0"


def _one(part: Mapping[str, Any]) -> str:
    offsets = (
        f"kafka_partition = {int(part['partition'])} and kafka_offset >= {int(part['start'])} "
        f"and kafka_offset < {int(part['end'])}"
    )
    log = part.get("log")
    return f"({offsets})" if log is None else f"({offsets} and ({LOG} = {literal(log)} or {LOG} is null))"


def span(ranges: Sequence[Mapping[str, Any]]) -> str:
    """A short condition that holds for all rows of these offset ranges, at least one, and for many others."""
    first, end = min(int(part["start"]) for part in ranges), max(int(part["end"]) for part in ranges)
    return f"kafka_offset >= {first} and kafka_offset < {end}"


def files_of(table: Table, ranges: Sequence[Mapping[str, Any]]) -> list[DataFile]:
    """The data files of a clean table that may hold rows of these offset ranges.

    As `files_where(table, condition(ranges))`, for any number of ranges: PyIceberg needs seconds to parse the condition
    of some hundred, and then milliseconds for each file.

    Args:
        table: The clean table, with all columns of its coordinates.
        ranges: As for `condition`.

    Raises:
        ValueError: The table has delete files.
    """
    if not ranges:
        return []
    fields = [table.schema().find_field(name) for name in ("kafka_partition", "kafka_offset", LOG)]
    found = []
    for file in files_where(table, span(ranges)):
        partitions, offsets, logs = (bounds_of(file, field) for field in fields)
        if (file.null_value_counts or {}).get(fields[-1].field_id) != 0:
            # Rows without a log match every log.
            logs = None
        if any(
            (partitions is None or partitions[0] <= part["partition"] <= partitions[1])
            and (offsets is None or (part["start"] <= offsets[1] and part["end"] > offsets[0]))
            and (logs is None or (log := part.get("log")) is None or logs[0] <= log <= logs[1])
            for part in ranges
        ):
            found.append(file)
    return found
