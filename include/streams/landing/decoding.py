"""Decode plain objects, JSON lines or Parquet: the records of an object with their offsets, or only the offsets.

A record counts if its line is complete. If an object's compression is damaged, none of its records count: a damaged
block may decompress to other text. The offsets of such records are gaps, which are repaired from Kafka.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from include.streams.contracts.objects import PlainObjects
from include.streams.lake.engine import literal, quoted
from include.streams.landing import intervals
from include.streams.landing.intervals import Ranges

if TYPE_CHECKING:
    from pathlib import Path

    import numpy
    import pyarrow
    from duckdb import DuckDBPyConnection

# The text that is in memory at once. A longer line is still read whole.
BLOCK_BYTES = 16 * 2**20
# The milliseconds of the years 1 to 9999. Python has no other times.
CALENDAR = (-62_135_596_800_000, 253_402_300_799_999)
_PARQUET = b"PAR1"
BLOCK_ROWS = 65_536
# With spaces, which no field of a record has.
_ROW = "offset of the row"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# What begins a JSON value that shows its own end: a text that was cut off is no such value.
_WITH_END = (b"{", b"[", b'"')


class DamagedObject(Exception):
    """The content of an object cannot be decoded; every attempt fails."""


class Held(NamedTuple):
    """What an object holds.

    Attributes:
        offsets: The offsets of its records.
        records: How many records it has.
        repeated: The offsets of which it has more than one record.
    """

    offsets: Ranges
    records: int
    repeated: Ranges


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
        count = _rows(local) if _is_parquet(local) else sum(len(lines) for lines in _lines(local))
        return Held([(start, start + count)] if count else [], count, [])
    held: Ranges = []
    repeated: Ranges = []
    count = 0
    with _engine() as connection:
        for table in _envelopes(connection, local, source, only_offsets=True):
            rows, once, twice = of_array(table["offset"].to_numpy())
            count += rows
            repeated = intervals.union([*repeated, *twice, *intervals.intersect(held, once)])
            held = intervals.union([*held, *once])
    return Held(held, count, repeated)


def of_array(offsets: numpy.ndarray) -> tuple[int, Ranges, Ranges]:
    """Count offsets.

    Args:
        offsets: Offsets in any order.

    Returns:
        (how many there are, the offsets, the offsets that occur more than once).
    """
    import numpy as np

    numbers, counts = np.unique(offsets, return_counts=True)
    return len(offsets), _ranges(numbers), _ranges(numbers[counts > 1])


def _ranges(numbers: numpy.ndarray) -> Ranges:
    breaks = (numbers[1:] != numbers[:-1] + 1).nonzero()[0] + 1
    starts, ends = [0, *breaks], [*breaks, len(numbers)]
    return [(int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, ends, strict=True) if b > a]


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
        if _is_parquet(local):
            yield from _parquet_values(connection, local, start)
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

    if _is_parquet(local):
        yield from _parquet_envelopes(connection, local, source, only_offsets=only_offsets)
        return
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


def _is_parquet(local: Path) -> bool:
    with local.open("rb") as raw:
        return raw.read(4) == _PARQUET


def _rows(local: Path) -> int:
    return sum(len(batch) for batch in _parquet(local, []))


def _parquet(local: Path, columns: list[str] | None) -> Iterator[Any]:
    """The rows of a Parquet file, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(local) as file:
            if columns and (missing := set(columns) - set(file.schema_arrow.names)):
                raise DamagedObject(f"it has no column {', '.join(sorted(missing))}")
            for batch in file.iter_batches(BLOCK_ROWS, columns=columns):
                yield pa.table(batch)
    except (pa.ArrowException, OSError) as error:
        raise DamagedObject(f"it is no whole Parquet file: {error}") from error


def _parquet_envelopes(
    connection: DuckDBPyConnection, local: Path, source: PlainObjects, *, only_offsets: bool
) -> Iterator[pyarrow.Table]:
    needed = [source.offset_field] if only_offsets else [source.offset_field, source.value_field]
    offset = f"try_cast({quoted(source.offset_field)} as bigint)"
    for rows in _parquet(local, needed if only_offsets else None):
        if missing := set(needed) - set(rows.column_names):
            raise DamagedObject(f"it has no column {', '.join(sorted(missing))}")
        columns = f'{offset} as "offset"'
        if not only_offsets:
            columns += (
                f', {_moment(rows, source)} as "timestamp", '
                f'{_column(rows.schema.field(source.value_field), source)} as "value"'
            )
        connection.register("rows", rows)
        yield _arrow(connection, f"select {columns} from rows where {offset} >= 0")


def _parquet_values(connection: DuckDBPyConnection, local: Path, start: int) -> Iterator[pyarrow.Table]:
    import pyarrow as pa

    for rows in _parquet(local, None):
        fields = ", ".join(f"{literal(name)}: {quoted(name)}" for name in rows.column_names)
        numbered = rows.append_column(_ROW, pa.array(range(start, start + len(rows)), pa.int64()))
        start += len(rows)
        connection.register("rows", numbered)
        values = f"encode(to_json({{{fields}}})::varchar)"
        query = f'select {quoted(_ROW)} as "offset", null::timestamptz as "timestamp", {values} as "value" from rows'
        yield _arrow(connection, query)


def _moment(rows: Any, source: PlainObjects) -> str:
    """SQL: the time of a row; null if the file has no such column."""
    import pyarrow.types as kinds

    if source.timestamp_field not in rows.column_names:
        return "null::timestamptz"
    kind, name = rows.schema.field(source.timestamp_field).type, quoted(source.timestamp_field)
    if not kinds.is_integer(kind):
        return f"try_cast({name} as timestamptz)"
    return f"case when {name} between {CALENDAR[0]} and {CALENDAR[1]} then make_timestamptz({name}::bigint * 1000) end"


def _column(field: Any, source: PlainObjects) -> str:
    """SQL: the bytes of a value in a column: bytes and text as they are, everything else as JSON."""
    import pyarrow.types as kinds

    name = quoted(field.name)
    if kinds.is_binary(field.type) or kinds.is_large_binary(field.type):
        return name
    if kinds.is_string(field.type) or kinds.is_large_string(field.type):
        return f"coalesce(try(from_base64({name})), encode({name}))" if source.value == "base64" else f"encode({name})"
    return f"case when {name} is not null then encode(to_json({name})::varchar) end"


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
