"""Write Iceberg tables: one atomic commit, safe with concurrent writers.

If the process is killed before the commit, the table is unchanged; the files that were written stay unreferenced until
maintenance removes them. If it is killed after the commit, the whole change is in the table.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table, Transaction

log = logging.getLogger(__name__)

# Other writers of a table are maintenance, and a task that Airflow has given up but that still runs. Each try takes
# seconds.
COMMIT_TRIES = 8
MAX_PAUSE_SECONDS = 5.0
# Each commit deletes old metadata files and merges manifests: otherwise both would grow by one per run without limit.
TABLE_PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
    # Small manifests, of some thousand files each: a plan opens only those that it needs, and a commit that replaces a
    # file, or merges manifests, rewrites only small ones.
    "commit.manifest.target-size-bytes": str(256 * 1024),
}


def replace_where(
    table: Table, rows: pyarrow.Table, row_filter: str, properties: Mapping[str, str] | None = None
) -> Table:
    """Delete the rows that match `row_filter` and append `rows`, in one commit.

    A repeated call changes nothing, so a retry need not know about the previous try. A commit that another process
    makes in between is not overwritten: the deletion is planned again on the new state.

    Args:
        table: The Iceberg table.
        rows: The new rows, with at least the table's columns.
        row_filter: Which rows to delete, as a PyIceberg filter.
        properties: Kept in the summary of the snapshot, for example a claim's id.

    Returns:
        The table after the commit.
    """
    kept = dict(properties or {})
    rows = rows.select([field.name for field in table.schema().fields])

    def change(transaction: Transaction) -> None:
        transaction.overwrite(rows, overwrite_filter=row_filter, snapshot_properties=kept)

    return commit(table, change)


def commit(table: Table, change: Callable[[Transaction], None]) -> Table:
    """Apply `change` to a transaction on the newest state of the table; repeat it when another process commits first.

    The commit succeeds only on the state that `change` has read. So everything that `change` has counted or read in the
    table still holds.

    Args:
        table: The Iceberg table; it is refreshed.
        change: Adds the changes to a transaction. It may be called several times.

    Returns:
        The table after the commit.

    Raises:
        CommitFailedException: Other writers committed first, COMMIT_TRIES times.
        ValidationException: Other writers made conflicting changes, COMMIT_TRIES times.
    """
    from pyiceberg.exceptions import CommitFailedException, ValidationException
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    def once() -> Table:
        only_on_this_state(table.refresh())
        # Suppresses "Delete operation did not match any records", which is the usual case: one warning per commit.
        with warnings.catch_warnings(action="ignore", category=UserWarning), table.transaction() as transaction:
            change(transaction)
        return table

    def note(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        log.warning(
            "table %s was changed in the meantime, the commit is planned again: %s", ".".join(table.name()), error
        )

    return Retrying(
        retry=retry_if_exception_type((CommitFailedException, ValidationException)),
        stop=stop_after_attempt(COMMIT_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_SECONDS),
        before_sleep=note,
        reraise=True,
    )(once)


def only_on_this_state(table: Table) -> None:
    """Make the table's next commit fail when another process commits before it.

    By default PyIceberg would retry an append on the new state, which may already contain the same rows. Only this copy
    of the metadata changes; the properties and snapshots of the table itself stay.

    Args:
        table: A table as loaded or refreshed; the next refresh undoes the setting.
    """
    metadata = table.metadata
    update = {
        "properties": {**metadata.properties, "commit.retry.num-retries": "0"},
        # A commit needs only the current snapshot. PyIceberg copies all of them some twenty times, which takes seconds
        # for thousands of snapshots.
        "snapshots": [s for s in metadata.snapshots if s.snapshot_id == metadata.current_snapshot_id],
        "snapshot_log": [],
    }
    table.metadata = metadata.model_copy(update=update)


def append_files(transaction: Transaction, files: Iterable[DataFile], properties: Mapping[str, str]) -> None:
    """Append data files that `datafiles.upload` returned. Without files, the transaction stays unchanged.

    Args:
        transaction: A transaction of the table.
        files: The data files.
        properties: Kept in the summary of the snapshot.
    """
    files = list(files)
    if not files:
        return
    with transaction.update_snapshot(snapshot_properties=dict(properties)).merge_append() as append:
        for file in files:
            append.append_data_file(file)


def replace_files(
    transaction: Transaction,
    old: Iterable[DataFile],
    new: Iterable[DataFile],
    properties: Mapping[str, str] | None = None,
) -> None:
    """Remove data files from the table and add others, in one snapshot. Without files, the transaction stays unchanged.

    Args:
        transaction: A transaction of the table.
        old: Data files of the state that the transaction is made on.
        new: Data files that `datafiles.upload` returned.
        properties: Kept in the summary of the snapshot.
    """
    old, new, kept = list(old), list(new), dict(properties or {})
    if not old:
        append_files(transaction, new, kept)
        return
    from include.streams.compat.overwriting import overwrite

    with overwrite(transaction, kept) as replaced:
        for file in old:
            replaced.delete_data_file(file)
        for file in new:
            replaced.append_data_file(file)


def ensure_table(catalog: Catalog, name: str, schema: Schema, spec: PartitionSpec) -> Table:
    """Return the table. It is created if it does not exist, and gets the optional columns that it lacks.

    Args:
        catalog: The Iceberg catalog.
        name: The table's identifier, `namespace.name`.
        schema: The columns that the table must have.
        spec: The partition spec of a new table.

    Raises:
        ValueError: The table differs in any other way. A person must decide about the existing rows.
    """
    from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    try:
        table = catalog.load_table(name)
    except NoSuchTableError:
        # Raised when another process creates the namespace at the same moment.
        with suppress(NamespaceAlreadyExistsError, IntegrityError):
            catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
        try:
            properties = {"format-version": "2", **TABLE_PROPERTIES}
            return catalog.create_table(name, schema, partition_spec=spec, properties=properties)
        except TableAlreadyExistsError:
            table = catalog.load_table(name)
    return _with_columns_of(table, schema)


def _with_columns_of(table: Table, schema: Schema) -> Table:
    from pyiceberg.exceptions import CommitFailedException

    name = ".".join(table.name())
    columns = {field.name: field for field in table.schema().fields}
    missing = [field for field in schema.fields if field.name not in columns]
    for field in schema.fields:
        existing = columns.get(field.name)
        if existing is None and field.required:
            raise ValueError(
                f"table {name} lacks the required column {field.name}, and its old rows have no value for it"
            )
        if existing is not None and (str(existing.field_type), existing.required) != (
            str(field.field_type),
            field.required,
        ):
            raise ValueError(f"table {name}: column {field.name} is `{existing}`, and should be `{field}`")
    if not missing:
        return table
    try:
        with table.update_schema() as update:
            for field in missing:
                update.add_column(field.name, field.field_type)
    except CommitFailedException:
        # Another process has committed at the same time, perhaps the same columns: check again.
        return _with_columns_of(table.refresh(), schema)
    log.info("table %s: added columns %s", name, ", ".join(field.name for field in missing))
    return table
