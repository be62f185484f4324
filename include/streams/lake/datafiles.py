"""Data files of an Iceberg table: written locally by DuckDB, then uploaded, then committed (`writing.py`)."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from include.streams.lake.engine import count_by_file, literal, quoted, read_data_files
from include.streams.lake.types import sql_type

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

# Each upload holds up to 50 MB of a file in memory.
UPLOADS_AT_ONCE = 8
# The last bytes of every Parquet file.
MAGIC = b"PAR1"
# {a table's partition transform: the DuckDB expression of it}.
_PARTITIONS = {"day": "{column}::date", "month": "date_trunc('month', {column})"}


def write(
    connection: DuckDBPyConnection, query: str, table: Table, folder: Path, *, cut: tuple[str, int] | None = None
) -> dict[Path, int]:
    """Write the rows of a query as Parquet files. The query has the table's columns.

    Args:
        connection: The engine's DuckDB connection.
        query: The query of the rows. Rows of different partitions of the table go to different files.
        table: The Iceberg table whose partitions and field ids the files get.
        folder: The files are written to subfolders of this folder.
        cut: A column and a number of rows. A partition with more rows is split into files of about that many rows. It
            is split between values of the column, so that no two files share a value.

    Returns:
        {file: rows}.

    Raises:
        ValueError: The table's partition spec is not supported: more than one field, or neither days nor months.
    """
    import pyarrow.parquet

    options = copy_options(table)
    if (partition := _partition(table)) is None:
        target = folder / "rows.parquet"
    else:
        names, target = '"partition of the table"', folder
        query = f"select *, {partition} as {names} from ({query})"
        if cut is not None:
            names, query = f'{names}, "part of it"', _cut(connection, query, *cut)
        options += f", partition_by ({names}), write_partition_columns false, overwrite_or_ignore true"
    connection.execute(f"copy ({query}) to {literal(str(target))} ({options})")
    rows = {file: pyarrow.parquet.read_metadata(file).num_rows for file in sorted(folder.rglob("*.parquet"))}
    return {file: count for file, count in rows.items() if count}


def _cut(connection: DuckDBPyConnection, query: str, column: str, rows: int) -> str:
    """The query's rows with a number for the part of the partition that each row belongs to."""
    connection.execute(f"create or replace temp table rows_to_write as {query}")
    (most,) = connection.execute(
        'select max(rows) from (select count(*) as rows from rows_to_write group by "partition of the table")'
    ).fetchall()[0]
    if (most or 0) <= rows:
        return 'select *, 0 as "part of it" from rows_to_write'
    value = quoted(column)
    return f"""
        select rows_to_write.*, parts.number as "part of it" from rows_to_write join (
            select value, name, (sum(rows) over (partition by name order by value) - 1) // {int(rows)} as number
            from (
                select {value} as value, "partition of the table" as name, count(*) as rows
                from rows_to_write group by 1, 2
            )
        ) parts on parts.value = rows_to_write.{value} and parts.name = rows_to_write."partition of the table"
        order by rows_to_write.{value}
    """


def columns(table: Table) -> str:
    """The columns of a table for a query, each cast to its type."""
    fields = table.schema().fields
    return ", ".join(f"{quoted(field.name)}::{sql_type(field.field_type)} as {quoted(field.name)}" for field in fields)


def copy_options(table: Table) -> str:
    """The options of DuckDB's COPY that give the columns of a file the table's field ids."""
    ids = ", ".join(f"{quoted(field.name)}: {field.field_id}" for field in table.schema().fields)
    return f"format parquet, compression zstd, field_ids {{{ids}}}"


def _partition(table: Table) -> str | None:
    fields = list(table.spec().fields)
    if not fields:
        return None
    transform = str(fields[0].transform)
    if len(fields) > 1 or transform not in _PARTITIONS:
        raise ValueError(f"table {'.'.join(table.name())}: files for its partitions, {table.spec()}, are not supported")
    return _PARTITIONS[transform].format(column=quoted(table.schema().find_column_name(fields[0].source_id) or ""))


def upload(table: Table, paths: Iterable[Path]) -> list[DataFile]:
    """Upload local Parquet files as data files, ready to be appended.

    Every upload gets new names, so that no try overwrites the files of another.

    Args:
        table: The Iceberg table.
        paths: Local files whose columns carry the table's field ids. The rows of each file belong to one partition.

    Returns:
        A description of each uploaded file, for the table's manifests.

    Raises:
        ValueError: A file has rows of several partitions.
        OSError: The store has not kept a file as it was uploaded.
    """
    described = {str(path): _describe(table, path) for path in paths}
    if described:
        addresses = [file.file_path for file in described.values()]
        store = filesystem(table.io, addresses[0])
        store.put(list(described), addresses, batch_size=UPLOADS_AT_ONCE)
        require_whole(store, {file.file_path: file.file_size_in_bytes for file in described.values()})
    return list(described.values())


@dataclass(frozen=True)
class Removal:
    """A prepared removal of rows from a table.

    Attributes:
        old: The data files that hold at least one of the rows.
        rest: Uploaded data files with the other rows of `old`.
        rows: The number of removed rows.
    """

    old: list[DataFile]
    rest: list[DataFile]
    rows: int


def prepare_removal(
    connection: DuckDBPyConnection,
    table: Table,
    files: Sequence[DataFile],
    those: Callable[[DuckDBPyRelation], DuckDBPyRelation],
    others: Callable[[DuckDBPyRelation], DuckDBPyRelation],
    *,
    cut: tuple[str, int] | None = None,
) -> Removal:
    """Prepare the removal of rows from a table; `writing.replace_files` commits it.

    PyIceberg's own `delete` reads and writes one file after the other, which takes ten minutes for two thousand small
    files.

    Args:
        connection: The engine's DuckDB connection.
        table: The Iceberg table, in the state on which the commit is made.
        files: The data files that may hold such rows.
        those: Selects, from the rows of the files, the rows to remove.
        others: Selects all other rows.
        cut: As for `write`, for the files of the other rows.
    """
    counts = count_by_file(connection, table, files, those) if files else {}
    old = [file for file in files if file.file_path in counts]
    mixed = [file for file in old if counts[file.file_path] < file.record_count]
    rest: list[DataFile] = []
    if mixed:
        others(read_data_files(connection, table, mixed)).create_view("rest", replace=True)
        with tempfile.TemporaryDirectory(prefix="without-") as folder:
            query = f"select {columns(table)} from rest"
            rest = upload(table, write(connection, query, table, Path(folder), cut=cut))
    return Removal(old, rest, sum(counts.values()))


def require_whole(store: Any, sizes: Mapping[str, int]) -> None:
    """Raise OSError if the store does not hold these Parquet files up to their end.

    A store may acknowledge an upload that it does not keep. If this were found only after the commit, the rows would be
    lost, because the commit has removed the rows that they replace.

    Args:
        store: The fsspec filesystem.
        sizes: {address: bytes that were uploaded}.
    """

    def end_of(address: str) -> bytes:
        try:
            return store.cat_file(address, start=sizes[address] - len(MAGIC), end=sizes[address])
        except Exception as error:
            if _is_beyond_the_end(error):
                return b""
            raise

    with ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="ends") as pool:
        for address, end in zip(sizes, pool.map(end_of, sizes), strict=True):
            if end != MAGIC:
                raise OSError(f"{address}: the store does not hold all {sizes[address]} bytes that were uploaded")


def _is_beyond_the_end(error: Exception) -> bool:
    """Whether the store has refused a range that begins behind the end of the object."""
    # gcsfs raises its own error; s3fs an OSError, caused by the client's.
    answer = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {})
    code = getattr(error, "code", None) or answer.get("HTTPStatusCode")
    return code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def _describe(table: Table, path: Path) -> DataFile:
    """The manifest entry of a local file, with the address that the file will have."""
    import pyarrow.parquet
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

    schema, spec = table.schema(), table.spec()
    statistics = data_file_statistics_from_parquet_metadata(
        pyarrow.parquet.read_metadata(path),
        compute_statistics_plan(schema, table.metadata.properties),
        parquet_path_to_id_mapping(schema),
    )
    partition = statistics.partition(spec, schema)
    below = f"{spec.partition_to_path(partition, schema)}/" if spec.fields else ""
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=table.location_provider().new_data_location(f"{below}{uuid.uuid4()}.parquet"),
        file_format=FileFormat.PARQUET,
        partition=partition,
        file_size_in_bytes=path.stat().st_size,
        sort_order_id=None,
        spec_id=spec.spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def filesystem(io: FileIO, address: str) -> Any:
    """The fsspec filesystem of an address.

    Args:
        io: The file IO of a table.
        address: An address in the store, such as gs://bucket/path.
    """
    return io.get_fs(urlsplit(address).scheme)  # type: ignore[attr-defined]
