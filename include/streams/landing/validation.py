"""One unit of a run: landed texts become good rows in a staging file, or dead letters.

If it is killed anywhere, the retry repeats it with files of its own, and publishes no dead letter that is already in
the inbox. The files of the earlier try go with the others at the end of the run.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.streams.contracts import ContractViolation, NotWanted
from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.kafka.dead_letters import DeadLetter
from include.streams.kafka.offsets import OffsetRange
from include.streams.kafka.originals import Originals
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.lake.catalog import warehouse_io
from include.streams.lake.datafiles import filesystem
from include.streams.lake.engine import connect, fetched, literal, quoted, read_files
from include.streams.lake.offsets import among
from include.streams.lake.types import arrow_type, sql_type
from include.streams.landing import dead_letters, staging
from include.streams.landing.broken import reading
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.landed import stored_files
from include.streams.landing.tables import PLACE, load_landing_table
from include.streams.landing.units import offset_ranges
from include.streams.landing.xcom import ValidatedUnit, WorkUnit
from include.streams.validators import rows
from include.streams.validators.columns import table_columns
from include.streams.validators.coordinates import COORDINATES

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection
    from pyiceberg.schema import Schema

log = logging.getLogger(__name__)

# Limits for the rows that are parsed at a time: their number, and the total size of their texts. The texts and their
# Kafka records are in memory.
EXAMINED_AT_ONCE, EXAMINED_BYTES = 2_000, 32 * 1024 * 1024
# Of a file's column: without it, a whole row group is read at once.
READ_BUFFER = 1024 * 1024
# Rows of every unit for which the screen's result is compared with the contract's.
SAMPLE = 64


@dataclass
class _Examined:
    """The results of parsing rows that the screen could not decide."""

    good: list[dict[str, Any]] = field(default_factory=list)
    bad: list[DeadLetter] = field(default_factory=list)


def validate_unit(consumer: LandingConsumer, unit: WorkUnit, run_id: str) -> ValidatedUnit:
    """Validate a unit's rows.

    When it returns, the broker has acknowledged the dead letters and they are recorded.

    It asks the catalog's database only when files are gone: the unit has the rest. It asks the inbox at each try for
    dead letters that are on record, because an earlier try of this task, or of the run before it was cleared, may have
    published some since the plan: a second publication would be a second message.

    Args:
        consumer: The landing consumer.
        unit: The unit, as it was planned.
        run_id: The Dag run.

    Returns:
        The unit's staging files and counts.

    Raises:
        ScreenDiffers: The screen accepted a row that the contract parses differently.
        Exception: What the store, the broker or the database raise; Airflow retries.
    """
    import duckdb

    from include.streams.landing.planning import plan_again

    def validate() -> ValidatedUnit:
        try:
            return _validate(consumer, unit, run_id)
        except (OSError, duckdb.Error) as error:
            # DuckDB wraps the filesystem's exception or not, depending on where it happens. So look at the files.
            table = load_landing_table(consumer.topic)
            named = stored_files(table, ((r["partition"], r["start"], r["end"]) for r in unit["ranges"]))
            gone = {file["path"] for file in unit["files"]} - {file.path for file in named}
            if not gone:
                raise
            log.warning("%d files are gone since the run was planned, planning again: %s (%s)", len(gone), gone, error)
            return _validate(consumer, plan_again(consumer, unit), run_id)

    return reading(consumer.topic, validate, conn_id=consumer.conn_id)


def _validate(consumer: LandingConsumer, unit: WorkUnit, run_id: str) -> ValidatedUnit:
    ranges = offset_ranges(consumer.topic, unit)
    settled = dead_letters.known(consumer, ranges)
    # A name of its own for every try: maintenance may be removing the files of an earlier one.
    address = f"{unit['staging']}/{int(unit['unit'])}-{uuid.uuid4().hex}"
    io = warehouse_io(unit["staging"])
    with (
        tempfile.TemporaryDirectory(prefix="validate-") as folder,
        connect(filesystem=filesystem(io, unit["staging"])) as connection,
    ):
        connection.execute(rows.MACROS)
        screened = Path(folder) / "screened.parquet"
        paths = fetched(connection, [file["path"] for file in unit["files"]])
        landing = read_files(connection, _schema(unit), paths)
        # Not each file restricted to its own slice: a record that is in two files is dropped as repeated.
        mine = among(connection, landing, unit["ranges"], PLACE)
        mine.project(_all_headers(consumer, unit)).create_view("landed")
        repeated, letters_before = _screen(connection, consumer, settled, screened)
        letters_here = letters_before
        _compare_with_contract(connection, consumer, unit)
        here = f"read_parquet({literal(str(screened))})"
        # Not count_if: it is null when there is no row.
        undecided, unwanted = quoted(rows.EXAMINE), quoted(rows.NOT_WANTED)
        counted = f"select count(*), count(*) filter ({undecided}), count(*) filter ({unwanted}) from {here}"
        total, doubtful, not_wanted = connection.sql(counted).fetchall()[0]
        screened_good = total - doubtful - not_wanted
        files = []
        examined_good = 0
        if screened_good:
            files.append(f"{address}.parquet")
            staging.upload(io, screened, files[0])
        if doubtful:
            local = Path(folder) / "examined.parquet"
            examined_good, examined_bad = _examine(connection, consumer, ranges, here, run_id, local)
            if examined_good:
                files.append(f"{address}-examined.parquet")
                staging.upload(io, local, files[-1])
            letters_here += examined_bad
            not_wanted += doubtful - examined_good - examined_bad
    validated: ValidatedUnit = {
        "unit": unit["unit"],
        "files": files,
        "landed": total + letters_before,
        "good": screened_good + examined_good,
        "dead_lettered": letters_here,
        "not_wanted": not_wanted,
        "without_record": sum(map(len, ranges)) - total - letters_before,
        "repeated": repeated,
    }
    log.info("validated: consumer=%s run_id=%s %s", consumer.name, run_id, validated)
    return validated


def _schema(unit: WorkUnit) -> Schema:
    """The landing table's columns. Files are read by the columns' ids."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    return Schema(
        # PyIceberg takes the name of a type for the type.
        *(NestedField(each["id"], each["name"], each["type"], required=False) for each in unit["columns"])  # type: ignore[arg-type]
    )


def _all_headers(consumer: LandingConsumer, unit: WorkUnit) -> str:
    """The columns of the landing table, with null for the headers that it has no column for yet.

    Their rows are examined with the headers of the original records.
    """
    there = {column["name"] for column in unit["columns"]}
    wanted = {header_column(name): "blob" for name in consumer.topic.headers}
    if wanted:
        wanted[HEADERS_LANDED] = "varchar"
    return ", ".join(["*", *(f"null::{kind} as {quoted(n)}" for n, kind in wanted.items() if n not in there)])


def _screen(
    connection: DuckDBPyConnection, consumer: LandingConsumer, settled: Sequence[tuple[int, int]], target: Path
) -> tuple[int, int]:
    """Write the screen's rows to a local file, each offset once.

    Returns:
        (rows that were dropped as repeated, dead letters on record that are among the landed rows).
    """
    source, letters_here = "from landed", 0
    if settled:
        import pyarrow as pa

        # A table and not a list in the query: DuckDB's parser takes some 11 kB for each listed row, beyond any limit.
        partitions, offsets = zip(*settled, strict=True)
        listed = {"partition": pa.array(partitions, pa.int32()), "offset": pa.array(offsets, pa.int64())}
        connection.register("settled", pa.table(listed))
        # Rows may have been removed since they became dead letters.
        present = 'select count(*) from settled semi join landed using ("partition", "offset")'
        (letters_here,) = connection.execute(present).fetchall()[0]
        source += ' anti join settled using ("partition", "offset")'
    file = literal(str(target))
    query = rows.screen(consumer.topic, source)
    (written,) = connection.execute(f"copy ({query}) to {file} (format parquet, compression zstd)").fetchall()[0]
    each = f"select count(distinct kafka_offset) as offsets from read_parquet({file}) group by kafka_partition"
    (distinct,) = connection.execute(f"select coalesce(sum(offsets), 0) from ({each})").fetchall()[0]
    if distinct < written:
        again = f"select * from ({query}) qualify row_number() over (partition by kafka_partition, kafka_offset) = 1"
        connection.execute(f"copy ({again}) to {file} (format parquet, compression zstd)")
    return written - int(distinct), letters_here


def _compare_with_contract(connection: DuckDBPyConnection, consumer: LandingConsumer, unit: WorkUnit) -> None:
    """Compare the screen with the contract, on rows spread over the unit's first and last file."""
    # No file: all of the unit's records are lost.
    if not unit["files"] or not rows.is_screened(consumer.topic):
        return
    parts = []
    for file in (unit["files"][0], unit["files"][-1]):
        step = max(1, (file["end"] - file["start"]) // (SAMPLE // 2))
        offsets = ", ".join(str(offset) for offset in range(file["start"], file["end"], step))
        parts.append(f'"partition" = {file["partition"]} and "offset" in ({offsets})')
    rows.verify(connection, consumer.topic, f"from landed where {' or '.join(parts)}")


def _examine(
    connection: DuckDBPyConnection,
    consumer: LandingConsumer,
    ranges: Sequence[OffsetRange],
    screened: str,
    run_id: str,
    target: Path,
) -> tuple[int, int]:
    """Parse the rows that the screen could not decide: good rows go to a local file, bad rows become dead letters.

    Returns:
        (how many rows were good, how many became dead letters); no contract of the topic's union takes the others.
    """
    import pyarrow.parquet

    schema = staging_schema(consumer)
    topic_ids = {r.partition: r.topic_id for r in ranges}
    longest = f"select coalesce(max(strlen({quoted(rows.TEXT)})), 0) from {screened} where {quoted(rows.EXAMINE)}"
    (largest,) = connection.execute(longest).fetchall()[0]
    at_once = max(1, min(EXAMINED_AT_ONCE, EXAMINED_BYTES // max(1, largest)))
    # In a file of their own, which is read a few rows at a time: as the result of a query, all of their texts would be
    # in memory, beyond any limit when they are large.
    doubtful = target.with_name("doubtful.parquet")
    query = (
        f"select kafka_partition, kafka_offset, kafka_timestamp, {quoted(rows.TEXT)}, {quoted(rows.HEADERS)} "
        f"from {screened} where {quoted(rows.EXAMINE)}"
    )
    connection.execute(f"copy ({query}) to {literal(str(doubtful))} (format parquet, compression zstd)")
    good = bad = 0
    with (
        pyarrow.parquet.ParquetFile(doubtful, buffer_size=READ_BUFFER) as found,
        pyarrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer,
        AcknowledgedProducer(consumer.conn_id) as producer,
        dead_letters.originals(consumer, ranges[0].topic_id) as originals,
    ):
        for read in found.iter_batches(at_once):
            batch = sorted(tuple(row.values()) for row in read.to_pylist())
            examined = _examine_batch(consumer, batch, topic_ids, originals)
            if examined.good:
                writer.write_table(_as_table(examined.good, schema))
            dead_letters.publish_dead_letters(consumer, examined.bad, run_id=run_id, producer=producer)
            good += len(examined.good)
            bad += len(examined.bad)
    return good, bad


def _examine_batch(
    consumer: LandingConsumer,
    batch: Sequence[tuple[int, int, Any, str | None, list[bytes | None] | None]],
    topic_ids: dict[int, str],
    originals: Originals,
) -> _Examined:
    examined = _Examined()
    doubtful = []
    for partition, offset, timestamp, text, landed in batch:
        place = {"kafka_partition": partition, "kafka_offset": offset, "kafka_timestamp": timestamp}
        headers = [] if landed is None else rows.headers_of(consumer.topic, landed)
        if landed is None or (text is not None and rows.REPLACEMENT in text):
            # The row landed before the contract needed its headers; or the sink may have put the replacement character
            # there for bytes that were not UTF-8.
            doubtful.append((place, text, headers))
            continue
        try:
            examined.good.append({**rows.examine(consumer.topic, text, headers), **place})
        except ContractViolation:
            doubtful.append((place, text, headers))
        except NotWanted:
            continue
    records = originals.fetch((p["kafka_partition"], p["kafka_offset"]) for p, _, _ in doubtful) if doubtful else {}
    for place, text, headers in doubtful:
        partition, offset = place["kafka_partition"], place["kafka_offset"]
        record = records.get((partition, offset))
        message = record or dead_letters.landed_message(
            consumer, topic_ids[partition], (partition, offset), place["kafka_timestamp"], text, headers
        )
        try:
            examined.good.append({**rows.examine(consumer.topic, message.value, message.headers), **place})
        except NotWanted:
            continue
        except ContractViolation as violation:
            examined.bad.append(DeadLetter(message, violation.reason, violation.detail, landed_text=record is None))
    return examined


def staging_schema(consumer: LandingConsumer) -> pyarrow.Schema:
    """The columns of a staging file that holds only good rows."""
    import pyarrow as pa

    return pa.schema([(name, arrow_type(kind)) for name, kind in _columns(consumer).items()])


def _columns(consumer: LandingConsumer) -> dict[str, str]:
    """{column: its Iceberg type} of a validated row: the contract's fields, the event's id, and the coordinates."""
    own = {column.name: column.iceberg_type for column in table_columns(consumer.topic)}
    return {**own, "event_id": "string", **COORDINATES}


def _as_table(good: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(good, schema=schema)


def staged(connection: DuckDBPyConnection, consumer: LandingConsumer, files: Sequence[str]) -> str:
    """A query for the good rows in staging files.

    Args:
        connection: The engine's DuckDB connection.
        consumer: The landing consumer.
        files: The addresses of the staging files.
    """
    columns = _columns(consumer)
    names = ", ".join(f"{quoted(name)}::{sql_type(kind)} as {quoted(name)}" for name, kind in columns.items())
    parts = list(_by_kind(files))
    if not parts:
        nulls = ", ".join(f"null::{sql_type(kind)} as {quoted(name)}" for name, kind in columns.items())
        return f"select {nulls} where false"
    return " union all ".join(
        f"select {names} from read_parquet([{', '.join(map(literal, fetched(connection, listed)))}]) {condition}"
        for listed, condition in parts
    )


def _by_kind(files: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    examined = [file for file in files if file.endswith("-examined.parquet")]
    screened = [file for file in files if file not in examined]
    if screened:
        yield screened, f"where not {quoted(rows.EXAMINE)} and not {quoted(rows.NOT_WANTED)}"
    if examined:
        yield examined, ""
