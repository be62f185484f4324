"""Where a clean row's record was in Kafka: the columns, and the condition that finds the rows of offset ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from include.lake.engine import literal

COORDINATES = {"kafka_partition": "int", "kafka_offset": "long", "kafka_timestamp": "timestamptz"}
# The identity of the log that the offset is of. A topic that was recreated, or reset after it lost the end of a log,
# uses its offsets once more: without this column its rows would replace those of the log before.
LOG = "kafka_log"


def condition(ranges: Iterable[Mapping[str, Any]]) -> str:
    """Which rows of a clean table came from these offsets, for PyIceberg and DuckDB.

    Args:
        ranges: Each with `partition`, `start`, `end` (exclusive), and `log`, the identity of the partition's log. A
            range without `log`, from a run that began before there was one, is of any log.

    Returns:
        A condition; it holds for no row when there is no range. Rows without a log, written before the column was
        added, count as rows of every log.
    """
    return " or ".join(_one(part) for part in ranges) or "kafka_partition < 0"


def _one(part: Mapping[str, Any]) -> str:
    offsets = (
        f"kafka_partition = {int(part['partition'])} and kafka_offset >= {int(part['start'])} "
        f"and kafka_offset < {int(part['end'])}"
    )
    log = part.get("log")
    return f"({offsets})" if log is None else f"({offsets} and ({LOG} = {literal(log)} or {LOG} is null))"
