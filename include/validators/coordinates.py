"""The Kafka coordinates of clean rows: their columns, and the condition that finds the rows of offset ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from include.lake.engine import literal

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
