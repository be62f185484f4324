"""Decode plain objects: the records of an object with their offsets, or only the offsets.

A record counts if its line is complete. If an object's compression is damaged, none of its records count: a damaged
block may decompress to other text. The offsets of such records are gaps, which are repaired from Kafka.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from include.streams.contracts.objects import PlainObjects
from include.streams.lake.engine import literal
from include.streams.landing import intervals
from include.streams.landing.intervals import Ranges

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow
    from duckdb import DuckDBPyConnection

# The text that is in memory at once. A longer line is still read whole.
BLOCK_BYTES = 16 * 2**20
# The milliseconds of the years 1 to 9999. Python has no other times.
CALENDAR = (-62_135_596_800_000, 253_402_300_799_999)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# What begins a JSON value that shows its own end: a text that was cut off is no such value.
_WITH_END = (b"{", b"[", b'"')


class DamagedObject(Exception):
    """The content of an object cannot be decoded; every attempt fails."""


class Held(NamedTuple):
    """The offsets of an object, and how many records it has."""

    offsets: Ranges
    records: int


def offsets_of(local: Path, source: PlainObjects, start: int) -> Held:
    """The offsets of the complete records of an object.

    Args:
        local: A local copy.
        source: How the sink writes.
        start: The object's first offset, from its name.

    Raises:
        DamagedObject: The object cannot be decoded.
    """
    if source.records == "values":
        count = sum(len(lines) for lines in _lines(local))
        return Held([(start, start + count)] if count else [], count)
    held: list[tuple[int, int]] = []
    count = 0
    with _engine() as connection:
        for table in _envelopes(connection, local, source, only_offsets=True):
            numbers = table["offset"].to_pylist()
            count += len(numbers)
            held += intervals.of_numbers(numbers)
    return Held(intervals.union(held), count)


def records_of(local: Path, source: PlainObjects, start: int) -> Iterator[pyarrow.Table]:
    """The complete records of an object: tables of offset, timestamp, and value in bytes.

    Args:
        local: A local copy.
        source: How the sink writes.
        start: The object's first offset, from its name.

    Raises:
        DamagedObject: The object cannot be decoded.
    """
    import pyarrow as pa

    with _engine() as connection:
        if source.records == "envelope":
            yield from _envelopes(connection, local, source)
            return
        for lines in _lines(local):
            offsets = pa.array(range(start, start + len(lines)), pa.int64())
            start += len(lines)
            table = pa.table({"offset": offsets, "line": pa.array(lines, pa.binary())})
            if source.value != "json":
                connection.register("lines", table.set_column(1, "line", _as_text(table["line"])))
                value = _value("line", source)
                # A line of another form keeps its offset: the contract judges what it holds.
                value = f"case when json_valid(line) then {value} else encode(line) end"
                table = _arrow(connection, f'select "offset", {value} as line from lines')
            missing = pa.nulls(len(table), pa.timestamp("us", tz="UTC"))
            yield pa.table({"offset": table["offset"], "timestamp": missing, "value": table["line"]})


def _engine() -> DuckDBPyConnection:
    import duckdb

    config = {"threads": 1, "autoinstall_known_extensions": False, "autoload_known_extensions": False}
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _arrow(connection: DuckDBPyConnection, query: str) -> pyarrow.Table:
    return connection.sql(query).to_arrow_table()


def _envelopes(
    connection: DuckDBPyConnection, local: Path, source: PlainObjects, *, only_offsets: bool = False
) -> Iterator[pyarrow.Table]:
    import pyarrow as pa

    offset, value, time = (
        literal("/" + name.replace("~", "~0").replace("/", "~1"))
        for name in (source.offset_field, source.value_field, source.timestamp_field)
    )
    # A line without an offset or a value has another form than declared. Its record cannot be placed, so its offset
    # stays a gap.
    is_record = f"json_valid(line) and json_type(line, {offset}) = 'UBIGINT' and json_type(line, {value}) is not null"
    number = f"try_cast(json_extract_string(line, {offset}) as bigint)"
    columns = f'{number} as "offset"'
    if not only_offsets:
        moment = f"json_extract_string(line, {time})"
        milliseconds = f"try_cast({moment} as bigint)"
        in_calendar = f"{milliseconds} between {CALENDAR[0]} and {CALENDAR[1]}"
        columns += (
            f", coalesce(case when {in_calendar} then make_timestamptz({milliseconds} * 1000) end, "
            f'try_cast({moment} as timestamptz)) as "timestamp", '
            f'{_value(f"json_extract(line, {value})", source)} as "value"'
        )
    for lines in _lines(local):
        connection.register("lines", pa.table({"line": _as_text(pa.array(lines, pa.binary()))}))
        checked = f"select line from lines where case when json_valid(line) then {is_record} else false end"
        yield _arrow(connection, f"select {columns} from ({checked}) where {number} >= 0")


def _value(json: str, source: PlainObjects) -> str:
    """SQL: the bytes of a value, from its JSON; null for a tombstone."""
    whole = f"encode(({json})::varchar)"
    if source.value != "json":
        text = f"json_extract_string({json}, '$')"
        decoded = f"encode({text})" if source.value == "text" else f"coalesce(try(from_base64({text})), encode({text}))"
        whole = f"case when json_type({json}) = 'VARCHAR' then {decoded} else {whole} end"
    return f"case when json_type({json}) <> 'NULL' then {whole} end"


def _as_text(lines: Any) -> Any:
    """The lines as text. Bytes that are not UTF-8 are replaced, as the sink's string converter does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.cast(lines, pa.string())
    except pa.ArrowInvalid:
        return pa.array([line.decode("utf-8", "replace") for line in lines.to_pylist()], pa.string())


def _lines(local: Path) -> Iterator[list[bytes]]:
    """The complete lines of an object, some at a time. The last line needs no newline if it shows its own end."""
    rest = b""
    for block in _blocks(local):
        complete, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield complete.split(b"\n")
    if rest.startswith(_WITH_END) and _is_json(rest):
        yield [rest]


def _is_json(text: bytes) -> bool:
    import json

    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _blocks(local: Path) -> Iterator[bytes]:
    with local.open("rb") as raw:
        stream: IO[bytes] | Any = raw
        head = raw.read(4)
        raw.seek(0)
        try:
            if head.startswith(_GZIP):
                stream = gzip.GzipFile(fileobj=raw)
            elif head == _ZSTD:
                import pyarrow as pa

                stream = pa.CompressedInputStream(raw, "zstd")
            while block := stream.read(BLOCK_BYTES):
                yield block
        except (EOFError, zlib.error, OSError) as error:
            raise DamagedObject(f"its compression is damaged: {error}") from error
