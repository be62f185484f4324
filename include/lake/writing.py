"""Write Iceberg tables: one atomic commit, safe beside other writers.

Killed before the commit: the table is as it was; the files that were written lie there unreferenced, until the
maintenance removes them. Killed after it: all of it is there.
"""

from __future__ import annotations

import logging
import random
import time
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

# Other writers of a table: maintenance, and a task that was given up and still runs. Each try takes seconds.
COMMIT_TRIES = 8
MAX_PAUSE_SECONDS = 5.0
# Old metadata files go with the commits, and manifests are merged: both would else grow by one a run for ever.
TABLE_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
}


def replace_where(
    table: Table, rows: pyarrow.Table, row_filter: str, properties: Mapping[str, str] | None = None
) -> Table:
    """Delete what matches `row_filter` and append `rows`, in one commit; returns the table as it is then.

    To repeat it changes nothing, so a retry needs no memory of the try before. `properties` (a claim's id, for
    instance) are kept in the summary of the snapshot. A commit of somebody else in between is not overwritten: the
    deletion is planned again from what is there then.
    """
    kept = dict(properties or {})
    rows = rows.select([field.name for field in table.schema().fields])

    def change(transaction: Transaction) -> None:
        transaction.overwrite(rows, overwrite_filter=row_filter, snapshot_properties=kept)

    return commit(table, change)


def commit(table: Table, change: Callable[[Transaction], None]) -> Table:
    """Apply `change` to a transaction on the newest state of the table, again when somebody else commits meanwhile.

    The commit is made on the very state that `change` has seen, or not at all: what it has counted or read of the table
    holds. Raises PyIceberg's CommitFailedException or ValidationException after COMMIT_TRIES.
    """
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    for attempt in range(1, COMMIT_TRIES + 1):
        only_on_this_state(table.refresh())
        try:
            # "Delete operation did not match any records": the usual case, said once a commit.
            with warnings.catch_warnings(action="ignore", category=UserWarning), table.transaction() as transaction:
                change(transaction)
            return table
        except (CommitFailedException, ValidationException) as error:
            if attempt == COMMIT_TRIES:
                raise
            log.warning("table %s was changed meanwhile, planned again: %s", ".".join(table.name()), error)
            time.sleep(random.uniform(0, min(MAX_PAUSE_SECONDS, 0.1 * 2**attempt)))
    raise AssertionError("not reached")


def only_on_this_state(table: Table) -> None:
    """Have the table's next commit fail when somebody else commits before it.

    PyIceberg would repeat an append on whatever state is there then, one that holds the same rows already perhaps. Only
    this copy of the metadata says no; the table's own properties stay.

    Args:
        table: As loaded or refreshed; the next refresh ends it.
    """
    once = {**table.metadata.properties, "commit.retry.num-retries": "0"}
    table.metadata = table.metadata.model_copy(update={"properties": once})


def append_files(transaction: Transaction, files: Iterable[DataFile], properties: Mapping[str, str]) -> None:
    """Append data files that `datafiles.upload` made; without any, the transaction stays as it is."""
    files = list(files)
    if not files:
        return
    with transaction.update_snapshot(snapshot_properties=dict(properties)).merge_append() as append:
        for file in files:
            append.append_data_file(file)


def ensure_table(catalog: Catalog, name: str, schema: Schema, spec: PartitionSpec) -> Table:
    """The table `namespace.name`, made if it does not exist, and given the optional columns that it lacks.

    Raises ValueError when it differs in any other way: that needs a person, and a plan for the rows that are there.
    """
    from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    try:
        table = catalog.load_table(name)
    except NoSuchTableError:
        # Raised when somebody else makes it at the same moment.
        with suppress(NamespaceAlreadyExistsError, IntegrityError):
            catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
        try:
            return catalog.create_table(name, schema, partition_spec=spec, properties=TABLE_PROPERTIES)
        except TableAlreadyExistsError:
            table = catalog.load_table(name)
    return _with_columns_of(table, schema)


def _with_columns_of(table: Table, schema: Schema) -> Table:
    from pyiceberg.exceptions import CommitFailedException

    name = ".".join(table.name())
    found = {field.name: field for field in table.schema().fields}
    missing = [field for field in schema.fields if field.name not in found]
    for field in schema.fields:
        there = found.get(field.name)
        if there is None and field.required:
            raise ValueError(f"table {name}: lacks the column {field.name}, which is required: old rows have no value")
        if there is not None and (str(there.field_type), there.required) != (str(field.field_type), field.required):
            raise ValueError(f"table {name}: column {field.name} is `{there}`, and should be `{field}`")
    if not missing:
        return table
    try:
        with table.update_schema() as update:
            for field in missing:
                update.add_column(field.name, field.field_type)
    except CommitFailedException:
        # Somebody else commits: with these columns, perhaps.
        return _with_columns_of(table.refresh(), schema)
    log.info("table %s: added columns %s", name, ", ".join(field.name for field in missing))
    return table
