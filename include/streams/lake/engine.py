"""DuckDB for the lake: a connection with limits, and the rows of an Iceberg table."""

from __future__ import annotations

import logging
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from include.streams.lake.types import sql_type

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyiceberg.manifest import DataFile
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.types import NestedField

# DuckDB's limit for data. Python, Arrow and the Parquet writers need more on top. Beyond it DuckDB spills to the
# temporary folder.
MEMORY_LIMIT = "800MB"
ALL_ROWS = "true"
# With spaces, which no field of a contract has, because DuckDB refuses a name that is also a column of the file.
_FILE = "file of the row"
# Through the store's filesystem, DuckDB sends at least four requests per file. Small files are fetched whole with one
# request each, several at a time.
SMALL_BYTES = 16 * 2**20
FETCHES_AT_ONCE = 8


class _Fetched:
    """Local copies of data files, kept as long as a connection; data files never change."""

    def __init__(self, store: Any, folder: Path) -> None:
        self._store = store
        self.folder = folder
        self._local: dict[str, str] = {}

    def paths(self, addresses: Sequence[str]) -> list[str]:
        missing = [address for address in dict.fromkeys(addresses) if address not in self._local]
        if missing:
            first = len(self._local)
            # The local name contains the file's own name, so that DuckDB's errors show it.
            names = (Path(urlsplit(address).path).name for address in missing)
            local = [str(self.folder / f"{number}-{name}") for number, name in enumerate(names, first)]
            self._store.get(missing, local, batch_size=FETCHES_AT_ONCE)
            self._local.update(zip(missing, local, strict=True))
        return [self._local[address] for address in addresses]


# By connection, because attributes cannot be set on a DuckDB connection.
_FETCHED: dict[DuckDBPyConnection, _Fetched] = {}


@contextmanager
def connect(*, filesystem: Any = None, memory_limit: str = MEMORY_LIMIT) -> Iterator[DuckDBPyConnection]:
    """Open a private in-memory DuckDB that can read and write the addresses of the warehouse. Its time zone is UTC.

    Args:
        filesystem: An fsspec filesystem; by default the one of the catalog.
        memory_limit: DuckDB's limit for data, for example "800MB".

    Yields:
        The connection.
    """
    import duckdb

    for chatty in ("fsspec.caching", "pyiceberg.io"):
        # These loggers write a line for every file that is opened.
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="duckdb-") as folder:
        config = {
            "memory_limit": memory_limit,
            # DuckDB's default is a folder below the working directory, in which a worker may not write.
            "temp_directory": f"{folder}/spilled",
            # DuckDB's default may be every core of the worker, which other tasks use too.
            "threads": 2,
            # Loading extensions would run code from outside.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
        }
        with duckdb.connect(":memory:", config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            # A progress bar makes a task's log unreadable.
            connection.execute("SET enable_progress_bar = false")
            store = filesystem or _warehouse_filesystem()
            connection.register_filesystem(store)
            _FETCHED[connection] = _Fetched(store, Path(folder))
            try:
                yield connection
            finally:
                del _FETCHED[connection]


def local_copies(connection: DuckDBPyConnection, addresses: Sequence[str]) -> list[str]:
    """Fetch files from the store, each once per connection.

    Args:
        connection: A connection of `connect`.
        addresses: Addresses of files that never change.

    Returns:
        The paths of local copies, in the order of `addresses`.

    Raises:
        Exception: What the store raises, for example FileNotFoundError.
    """
    return _FETCHED[connection].paths(addresses)


def folder_of(connection: DuckDBPyConnection) -> Path:
    """The folder for local files of a connection of `connect`, removed with the connection."""
    return _FETCHED[connection].folder


def scan(
    connection: DuckDBPyConnection,
    table: Table,
    *,
    row_filter: str = ALL_ROWS,
    columns: Sequence[str] | None = None,
) -> DuckDBPyRelation:
    """The rows of the table's current snapshot for which `row_filter` holds.

    PyIceberg plans the files, so files that the filter excludes are not opened. DuckDB reads the other files and finds
    a column by its id: a column that was added later is null in older files.

    Args:
        connection: A connection of `connect`.
        table: The Iceberg table.
        row_filter: A condition that both PyIceberg and DuckDB parse: comparisons of columns with literals, joined by
            and, or, not. Times are text ("hour >= '2026-01-01T00:00:00+00:00'"); a column name that is an SQL keyword
            is in double quotes.
        columns: The names of the columns to return; by default all.

    Raises:
        ValueError: The table has delete files: reading its data files alone would show deleted rows.
    """
    rows = read_data_files(connection, table, files_where(table, row_filter))
    if row_filter != ALL_ROWS:
        rows = rows.filter(row_filter)
    return rows.project(", ".join(quoted(name) for name in columns)) if columns else rows


def files_where(table: Table, row_filter: str) -> list[DataFile]:
    """The data files of the current snapshot that may hold rows for which the condition holds.

    Args:
        table: The Iceberg table.
        row_filter: As for `scan`.

    Raises:
        ValueError: The table has delete files: reading its data files alone would show deleted rows.
    """
    files = []
    for task in table.scan(row_filter="True" if row_filter == ALL_ROWS else row_filter).plan_files():
        _require_no_deletes(table, task)
        files.append(task.file)
    return files


def count_by_file(
    connection: DuckDBPyConnection,
    table: Table,
    files: Iterable[DataFile],
    counted: Callable[[DuckDBPyRelation], DuckDBPyRelation],
) -> dict[str, int]:
    """How many rows of each data file are counted: {address: rows}, without files that have none.

    Args:
        connection: A connection of `connect`.
        table: The Iceberg table.
        files: Data files of it.
        counted: Returns those of the rows that are counted.
    """
    small, large = _by_size(files)
    addresses = dict(zip([*local_copies(connection, small), *large], [*small, *large], strict=True))
    rows = read_files(connection, table.schema(), addresses, file_column=_FILE)
    counts = counted(rows).aggregate(f"{quoted(_FILE)}, count(*)", quoted(_FILE)).fetchall()
    return {addresses[path]: count for path, count in counts}


Span = tuple[datetime | date, datetime | date]


def files_within(table: Table, column: str, wanted: Sequence[Span]) -> list[DataFile]:
    """The data files of the current snapshot that may hold rows whose `column` lies in one of the spans.

    Uses the files' bounds: the time of PyIceberg's own planning grows, for each file, with the number of spans.

    Args:
        table: The Iceberg table.
        column: A column of times or dates.
        wanted: Spans [start, end), sorted by time, that do not overlap; any number of them.

    Returns:
        The data files, including files without bounds for the column.

    Raises:
        ValueError: The table has delete files: reading its data files alone would show deleted rows.
    """
    if not wanted:
        return []
    field = table.schema().find_field(column)
    starts = [_number(start) for start, _ in wanted]
    ends = [_number(end) for _, end in wanted]
    whole = f"{column} >= '{wanted[0][0].isoformat()}' and {column} < '{wanted[-1][1].isoformat()}'"
    if str(field.field_type) == "date":
        starts, ends = [start // _DAY for start in starts], [-(-end // _DAY) for end in ends]
    overlapping = []
    for file in files_where(table, whole):
        if (bounds := bounds_of(file, field)) is not None:
            first, last = bounds
            # The last span that begins before the file ends. All earlier spans end earlier.
            nearest = bisect_right(starts, last) - 1
            if nearest < 0 or ends[nearest] <= first:
                continue
        overlapping.append(file)
    return overlapping


def bounds_of(file: DataFile, field: NestedField) -> tuple[Any, Any] | None:
    """The bounds of the file's values in a column; None when the file has no bounds for it.

    Nulls do not count. The bounds of long texts are truncated, so they may be wider than the values.

    Args:
        file: The data file.
        field: The column.

    Returns:
        (lowest, highest).
    """
    from pyiceberg.conversions import from_bytes

    kind: Any = field.field_type
    lower, upper = ((bounds or {}).get(field.field_id) for bounds in (file.lower_bounds, file.upper_bounds))
    return None if lower is None or upper is None else (from_bytes(kind, lower), from_bytes(kind, upper))


# Microseconds.
_DAY = 86_400_000_000


def _number(moment: datetime | date) -> int:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _require_no_deletes(table: Table, task: FileScanTask) -> None:
    if task.delete_files:
        name = ".".join(table.name())
        raise ValueError(f"table {name} has delete files; rewrite it (copy on write) before it is read here")


def read_data_files(connection: DuckDBPyConnection, table: Table, files: Iterable[DataFile]) -> DuckDBPyRelation:
    """The rows of data files of the table. Small files are fetched first, several at a time.

    Args:
        connection: A connection of `connect`.
        table: The Iceberg table.
        files: Data files of it.
    """
    small, large = _by_size(files)
    return read_files(connection, table.schema(), [*local_copies(connection, small), *large])


def _by_size(files: Iterable[DataFile]) -> tuple[list[str], list[str]]:
    """The addresses of the files that are fetched whole, and of the others."""
    small, large = [], []
    for file in files:
        (small if file.file_size_in_bytes <= SMALL_BYTES else large).append(file.file_path)
    return small, large


def read_files(
    connection: DuckDBPyConnection, schema: Schema, files: Iterable[str], *, file_column: str | None = None
) -> DuckDBPyRelation:
    """The rows of data files of a table with this schema. Columns are found by their ids; a missing column is null.

    Args:
        connection: A connection of `connect`.
        schema: The table's schema.
        files: Addresses or local paths of Parquet files.
        file_column: The name of an additional column with the file of each row; None for no such column.
    """
    files = list(files)
    if not files:
        columns = [f"NULL::{sql_type(field.field_type)} AS {quoted(field.name)}" for field in schema.fields]
        columns += [f"NULL::VARCHAR AS {quoted(file_column)}"] if file_column else []
        return connection.sql(f"SELECT {', '.join(columns)} WHERE false")
    paths = ", ".join(literal(path) for path in files)
    columns = ", ".join(
        f"{field.field_id}: {{name: {literal(field.name)}, type: {literal(sql_type(field.field_type))}, "
        "default_value: NULL}"
        for field in schema.fields
    )
    options = f"schema = MAP {{{columns}}}, filename = {literal(file_column) if file_column else 'false'}"
    return connection.sql(f"SELECT * FROM read_parquet([{paths}], {options})")


def quoted(name: str) -> str:
    """A name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _warehouse_filesystem() -> Any:
    from include.streams.compat.objects import ObjectIO
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.stores import store_in_use

    properties = load_catalog().properties
    scheme = urlsplit(str(properties.get("warehouse", ""))).scheme or store_in_use().schemes[0]
    return ObjectIO(properties).get_fs(scheme)
