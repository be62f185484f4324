"""Validate one unit of a run: landed texts become good rows in staging files, or dead letters.

If the process is killed at any point, the retry repeats the unit with new staging files, and publishes no dead letter
that is already in the inbox. The files of the earlier try are removed at the end of the run.
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
from include.streams.lake.engine import connect, literal, local_copies, quoted, read_files
from include.streams.lake.offsets import LogRange, rows_in_ranges
from include.streams.lake.types import arrow_type, sql_type
from include.streams.landing import dead_letters, staging
from include.streams.landing.broken_files import read_with_repair
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.positions import claim_of
from include.streams.landing.sources import local_files, stored_files
from include.streams.landing.tables import OFFSET_COLUMNS, load_landing_table
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
PARSED_AT_ONCE, PARSED_BYTES = 2_000, 32 * 1024 * 1024
# The end of the name of a staging file with rows from the parser. Runs that are in progress during a deploy have such
# files, so it must not change.
PARSED_SUFFIX = "-examined.parquet"
# The buffer for a column of a Parquet file. Without it, a whole row group is read at once.
READ_BUFFER = 1024 * 1024
# Rows of every unit for which the result of the fast path is compared with that of the parser.
SAMPLE = 64


@dataclass
class _Parsed:
    """The results of the parser for rows that the fast path could not decide."""

    good: list[dict[str, Any]] = field(default_factory=list)
    bad: list[DeadLetter] = field(default_factory=list)


def validate_unit(consumer: LandingConsumer, unit: WorkUnit, run_id: str) -> ValidatedUnit:
    """Validate a unit's rows.

    When it returns, the broker has acknowledged the dead letters and they are recorded.

    The catalog's database is queried only when files are gone: the unit has all other facts. Each try queries the inbox
    for recorded dead letters. An earlier try of this task, or of the run before it was cleared, may have published some
    since the plan, and publishing them again would create second messages.

    Args:
        consumer: The landing consumer.
        unit: The unit, as it was planned.
        run_id: The Dag run.

    Returns:
        The unit's staging files and counts.

    Raises:
        FastPathDiffers: The fast path accepted a row that the contract's parser reads differently.
        Exception: What the store, the broker or the database raise; Airflow retries.
    """
    import duckdb

    from include.streams.landing.planning import plan_again

    def validate() -> ValidatedUnit:
        planned = _as_planned_now(consumer, unit, run_id)
        try:
            return _validate(consumer, planned, run_id)
        except (OSError, duckdb.Error) as error:
            # DuckDB wraps the filesystem's exception only in some places, so the files themselves are checked.
            table = load_landing_table(consumer.topic)
            present = stored_files(
                consumer.topic, table, ((r["partition"], r["start"], r["end"]) for r in planned["ranges"])
            )
            gone = {(file["path"], file.get("version", "")) for file in planned["files"]}
            gone -= {(file.path, file.version) for file in present}
            if not gone:
                raise
            log.warning(
                "%d files were removed or changed since the run was planned, the unit is planned again: %s (%s)",
                len(gone),
                gone,
                error,
            )
            return _validate(consumer, plan_again(consumer, planned), run_id)

    return read_with_repair(consumer.topic, validate, conn_id=consumer.conn_id)


def _validate(consumer: LandingConsumer, unit: WorkUnit, run_id: str) -> ValidatedUnit:
    ranges = offset_ranges(consumer.topic, unit)
    settled = dead_letters.known(consumer, ranges)
    # A unique name for every try, because maintenance may be removing the files of an earlier try.
    address = f"{unit['staging']}/{int(unit['unit'])}-{uuid.uuid4().hex}"
    io = warehouse_io(unit["staging"])
    with (
        tempfile.TemporaryDirectory(prefix="validate-") as folder,
        connect(filesystem=filesystem(io, unit["staging"])) as connection,
    ):
        connection.execute(rows.MACROS)
        fast = Path(folder) / "fast.parquet"
        paths = local_files(connection, consumer.topic, unit["columns"], unit["files"])
        landing = read_files(connection, _schema(unit), paths)
        # All files are read together, not each one for its own slice: a record that is in two files is dropped as
        # repeated.
        own_rows = rows_in_ranges(connection, landing, unit["ranges"], OFFSET_COLUMNS)
        own_rows.project(_all_headers(consumer, unit)).create_view("landed")
        repeated, recorded_letters = _run_fast_path(connection, consumer, settled, fast)
        dead_lettered = recorded_letters
        _compare_with_parser(connection, consumer, unit)
        results = f"read_parquet({literal(str(fast))})"
        # Not count_if: it is null when there is no row.
        undecided, unwanted = quoted(rows.NEEDS_PARSER), quoted(rows.NOT_WANTED)
        counted = f"select count(*), count(*) filter ({undecided}), count(*) filter ({unwanted}) from {results}"
        total, doubtful, not_wanted = connection.sql(counted).fetchall()[0]
        fast_good = total - doubtful - not_wanted
        files = []
        parsed_good = 0
        if fast_good:
            files.append(f"{address}.parquet")
            staging.upload(io, fast, files[0])
        if doubtful:
            local = Path(folder) / "parsed.parquet"
            parsed_good, parsed_bad = _parse(connection, consumer, ranges, results, run_id, local)
            if parsed_good:
                files.append(f"{address}{PARSED_SUFFIX}")
                staging.upload(io, local, files[-1])
            dead_lettered += parsed_bad
            not_wanted += doubtful - parsed_good - parsed_bad
    validated: ValidatedUnit = {
        "unit": unit["unit"],
        "files": files,
        "landed": total + recorded_letters,
        "good": fast_good + parsed_good,
        "dead_lettered": dead_lettered,
        "not_wanted": not_wanted,
        "without_record": sum(map(len, ranges)) - total - recorded_letters,
        "repeated": repeated,
    }
    log.info("validated: consumer=%s run_id=%s %s", consumer.name, run_id, validated)
    return validated


def _as_planned_now(consumer: LandingConsumer, unit: WorkUnit, run_id: str) -> WorkUnit:
    """The unit; planned again if the release before has planned it, because its units lack what this task needs.

    Otherwise a run that was in progress during a deploy would fail at each retry, and stop the lane.
    """
    from include.streams.landing.planning import plan_again

    if "staging" in unit:
        return unit
    _, claimed = claim_of(consumer, run_id)
    logs = {part.partition: part.topic_id for part in claimed}
    ranges: list[LogRange] = [{**part, "log": logs[part["partition"]]} for part in unit["ranges"]]
    return plan_again(consumer, {**unit, "ranges": ranges})


def _schema(unit: WorkUnit) -> Schema:
    """The landing table's columns. Files are read by the columns' ids."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    return Schema(
        # PyIceberg accepts the name of a type instead of the type.
        *(NestedField(c["id"], c["name"], c["type"], required=False) for c in unit["columns"])  # type: ignore[arg-type]
    )


def _all_headers(consumer: LandingConsumer, unit: WorkUnit) -> str:
    """The columns of the landing table, and null for each header for which the table has no column yet.

    Rows with such a null are parsed with the headers of the original records.
    """
    present = {column["name"] for column in unit["columns"]}
    wanted = {header_column(name): "blob" for name in consumer.topic.headers}
    if wanted:
        wanted[HEADERS_LANDED] = "varchar"
    return ", ".join(["*", *(f"null::{kind} as {quoted(n)}" for n, kind in wanted.items() if n not in present)])


def _run_fast_path(
    connection: DuckDBPyConnection, consumer: LandingConsumer, settled: Sequence[tuple[int, int]], target: Path
) -> tuple[int, int]:
    """Write the rows of the fast path to a local file, each offset once.

    Returns:
        (rows that were dropped as repeated, recorded dead letters that are among the landed rows).
    """
    source, recorded_letters = "from landed", 0
    if settled:
        import pyarrow as pa

        # A table, not a list in the query: DuckDB's parser uses some 11 kB for each listed row, outside the memory
        # limit.
        partitions, offsets = zip(*settled, strict=True)
        listed = {"partition": pa.array(partitions, pa.int32()), "offset": pa.array(offsets, pa.int64())}
        connection.register("settled", pa.table(listed))
        # Rows may have been removed since they became dead letters.
        present = 'select count(*) from settled semi join landed using ("partition", "offset")'
        (recorded_letters,) = connection.execute(present).fetchall()[0]
        source += ' anti join settled using ("partition", "offset")'
    file = literal(str(target))
    query = rows.fast_path_sql(consumer.topic, source)
    (written,) = connection.execute(f"copy ({query}) to {file} (format parquet, compression zstd)").fetchall()[0]
    counts = f"select count(distinct kafka_offset) as offsets from read_parquet({file}) group by kafka_partition"
    (distinct,) = connection.execute(f"select coalesce(sum(offsets), 0) from ({counts})").fetchall()[0]
    if distinct < written:
        once = f"select * from ({query}) qualify row_number() over (partition by kafka_partition, kafka_offset) = 1"
        connection.execute(f"copy ({once}) to {file} (format parquet, compression zstd)")
    return written - int(distinct), recorded_letters


def _compare_with_parser(connection: DuckDBPyConnection, consumer: LandingConsumer, unit: WorkUnit) -> None:
    """Compare the fast path with the parser, on rows spread over the unit's first and last file."""
    # A unit without files: all of its records are lost.
    if not unit["files"] or not rows.has_fast_path(consumer.topic):
        return
    parts = []
    for file in (unit["files"][0], unit["files"][-1]):
        step = max(1, (file["end"] - file["start"]) // (SAMPLE // 2))
        offsets = ", ".join(str(offset) for offset in range(file["start"], file["end"], step))
        parts.append(f'"partition" = {file["partition"]} and "offset" in ({offsets})')
    rows.verify(connection, consumer.topic, f"from landed where {' or '.join(parts)}")


def _parse(
    connection: DuckDBPyConnection,
    consumer: LandingConsumer,
    ranges: Sequence[OffsetRange],
    results: str,
    run_id: str,
    target: Path,
) -> tuple[int, int]:
    """Parse the rows that the fast path could not decide: good rows go to a local file, bad rows become dead letters.

    Args:
        connection: The engine's DuckDB connection.
        consumer: The landing consumer.
        ranges: The unit's ranges.
        results: The SQL table function with the rows of the fast path.
        run_id: The Dag run.
        target: The local file for the good rows.

    Returns:
        (number of good rows, number of dead letters); no contract of the topic's union takes the other rows.
    """
    import pyarrow.parquet

    schema = staging_schema(consumer)
    topic_ids = {r.partition: r.topic_id for r in ranges}
    longest = f"select coalesce(max(strlen({quoted(rows.TEXT)})), 0) from {results} where {quoted(rows.NEEDS_PARSER)}"
    (largest,) = connection.execute(longest).fetchall()[0]
    at_once = max(1, min(PARSED_AT_ONCE, PARSED_BYTES // max(1, largest)))
    # In a separate file, which is read a few rows at a time. As the result of a query, all of their texts would be in
    # memory, and large texts would exceed any limit.
    doubtful = target.with_name("doubtful.parquet")
    query = (
        f"select kafka_partition, kafka_offset, kafka_timestamp, {quoted(rows.TEXT)}, {quoted(rows.HEADERS)} "
        f"from {results} where {quoted(rows.NEEDS_PARSER)}"
    )
    connection.execute(f"copy ({query}) to {literal(str(doubtful))} (format parquet, compression zstd)")
    good = bad = 0
    with (
        pyarrow.parquet.ParquetFile(doubtful, buffer_size=READ_BUFFER) as undecided,
        pyarrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer,
        AcknowledgedProducer(consumer.conn_id) as producer,
        dead_letters.originals(consumer, ranges[0].topic_id) as originals,
    ):
        for read in undecided.iter_batches(at_once):
            batch = sorted(tuple(row.values()) for row in read.to_pylist())
            parsed = _parse_batch(consumer, batch, topic_ids, originals)
            if parsed.good:
                writer.write_table(_as_table(parsed.good, schema))
            dead_letters.publish_dead_letters(consumer, parsed.bad, run_id=run_id, producer=producer)
            good += len(parsed.good)
            bad += len(parsed.bad)
    return good, bad


def _parse_batch(
    consumer: LandingConsumer,
    batch: Sequence[tuple[int, int, Any, str | None, list[bytes | None] | None]],
    topic_ids: dict[int, str],
    originals: Originals,
) -> _Parsed:
    parsed = _Parsed()
    doubtful = []
    for partition, offset, timestamp, text, landed in batch:
        place = {"kafka_partition": partition, "kafka_offset": offset, "kafka_timestamp": timestamp}
        headers = [] if landed is None else rows.headers_of(consumer.topic, landed)
        if landed is None or (text is not None and rows.REPLACEMENT in text):
            # The row landed before the contract needed its headers, or the sink may have replaced bytes that were not
            # UTF-8.
            doubtful.append((place, text, headers))
            continue
        try:
            parsed.good.append({**rows.parse_row(consumer.topic, text, headers), **place})
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
            parsed.good.append({**rows.parse_row(consumer.topic, message.value, message.headers), **place})
        except NotWanted:
            continue
        except ContractViolation as violation:
            parsed.bad.append(DeadLetter(message, violation.reason, violation.detail, landed_text=record is None))
    return parsed


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
    # By name: files of the release before lack the column NOT_WANTED.
    columns_of_all = f"select null::boolean as {quoted(rows.NOT_WANTED)} where false union all by name select *"
    return " union all ".join(
        f"select {names} from ({columns_of_all} from read_parquet("
        f"[{', '.join(map(literal, local_copies(connection, listed)))}], union_by_name = true)) {condition}"
        for listed, condition in parts
    )


def _by_kind(files: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    parsed = [file for file in files if file.endswith(PARSED_SUFFIX)]
    fast = [file for file in files if file not in parsed]
    if fast:
        yield fast, f"where not {quoted(rows.NEEDS_PARSER)} and not coalesce({quoted(rows.NOT_WANTED)}, false)"
    if parsed:
        yield parsed, ""
