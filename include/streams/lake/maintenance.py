"""Keep Iceberg tables small: expire snapshots, bundle small files, and delete files that no snapshot refers to.

Each step makes at most one commit, is safe with concurrent writers, and can be repeated.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.streams.lake import datafiles, engine, writing

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile, ManifestFile
    from pyiceberg.table import Table, Transaction
    from pyiceberg.table.snapshots import Snapshot

    # Divides the small files of one partition into groups; each group becomes one file.
    Grouping = Callable[[list[DataFile]], Iterable[list[DataFile]]]

log = logging.getLogger(__name__)

# After a day, readers that planned with the replaced files and commits that were in progress have finished.
ORPHAN_AGE = timedelta(days=1)
SMALL_BYTES = 32 * 1024 * 1024
# Fewer files are not rewritten, because rewriting them costs more than opening them.
MIN_SMALL_FILES = 8
# Limits of one bundle, which is rewritten in one commit.
MAX_BUNDLE_BYTES = 512 * 1024 * 1024
MAX_BUNDLE_ROWS = 500_000
# Snapshots per update, the oldest first: PyIceberg searches all remaining snapshots for each of them.
EXPIRED_AT_ONCE = 1_000
# Concurrent requests to the store. Each takes some tens of milliseconds, and a night may need a hundred thousand.
REQUESTS_AT_ONCE = 8


def expire_snapshots(
    table: Table, older_than: timedelta, is_needed: Callable[[Snapshot], bool] = lambda snapshot: True
) -> int:
    """Expire old snapshots. `remove_unreferenced` deletes their files later.

    The current snapshot stays, and its ancestors up to and including the first one that is needed. A writer that
    searches for its own last commit walks from parent to parent, and stops where a parent is missing.

    Args:
        table: The Iceberg table.
        older_than: Younger snapshots stay.
        is_needed: Whether a snapshot must stay; by default every snapshot, so that only the current one stays.

    Returns:
        How many snapshots were expired.

    Raises:
        CommitFailedException: Other writers committed first, COMMIT_TRIES times.
    """
    return _expire(table, older_than, lambda _: _from_first_needed(table, is_needed))


def thin_snapshots(table: Table, older_than: timedelta, every: timedelta) -> int:
    """Expire snapshots, but keep the newest one of each period; `expire_snapshots` expires those too, later.

    A file that no snapshot refers to afterwards was written and replaced within one period. `remove_unreferenced`
    deletes it a day after it was written: no reader that planned with it is left.

    Args:
        table: The Iceberg table.
        older_than: Younger snapshots stay.
        every: The period; less than ORPHAN_AGE.

    Returns:
        How many snapshots were expired.

    Raises:
        CommitFailedException: Other writers committed first, COMMIT_TRIES times.
        ValueError: `every` is not less than ORPHAN_AGE.
    """
    if every >= ORPHAN_AGE:
        raise ValueError(f"every is {every}; it must be less than {ORPHAN_AGE}, or files of readers are deleted")

    def newest_of_each(old: Iterable[Snapshot]) -> set[int]:
        newest: dict[int, Snapshot] = {}
        for snapshot in old:
            period = int(snapshot.timestamp_ms / 1000 / every.total_seconds())
            newest[period] = max(snapshot, newest.get(period, snapshot), key=lambda each: each.timestamp_ms)
        return {snapshot.snapshot_id for snapshot in newest.values()}

    return _expire(table, older_than, newest_of_each)


def _expire(table: Table, older_than: timedelta, kept: Callable[[list[Snapshot]], set[int]]) -> int:
    """Expire the old snapshots whose ids `kept` does not return; the current ones of branches and tags stay."""
    from pyiceberg.exceptions import CommitFailedException

    for attempt in range(1, writing.COMMIT_TRIES + 1):
        table.refresh()
        before = (datetime.now(UTC) - older_than).timestamp() * 1000
        old = [snapshot for snapshot in table.snapshots() if snapshot.timestamp_ms < before]
        stay = kept(old) | {ref.snapshot_id for ref in table.refs().values()}
        expired = [snapshot.snapshot_id for snapshot in old if snapshot.snapshot_id not in stay]
        try:
            if expired:
                _remove_snapshots(table, expired)
            return len(expired)
        except CommitFailedException:
            # Conflicts are normal: a sink commits every few seconds.
            if attempt == writing.COMMIT_TRIES:
                raise
        except ValueError:
            # PyIceberg raises this if another process has expired one of them at the same time.
            if {snapshot.snapshot_id for snapshot in table.refresh().snapshots()}.issuperset(expired):
                raise
    return 0


def _from_first_needed(table: Table, is_needed: Callable[[Snapshot], bool]) -> set[int]:
    kept: set[int] = set()
    snapshot = table.current_snapshot()
    while snapshot is not None:
        kept.add(snapshot.snapshot_id)
        if is_needed(snapshot):
            break
        snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None
    return kept


def _remove_snapshots(table: Table, old: list[int]) -> None:
    """Remove snapshots in one commit through the catalog; a PyIceberg transaction copies all snapshots in each step."""
    from pyiceberg.table.refs import MAIN_BRANCH
    from pyiceberg.table.update import AssertRefSnapshotId, AssertTableUUID, RemoveSnapshotsUpdate

    newest = table.current_snapshot()
    table.catalog.commit_table(
        table,
        # Fails if the table has just been rolled back to one of these snapshots.
        (
            AssertTableUUID(uuid=table.metadata.table_uuid),
            AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=newest.snapshot_id if newest else None),  # type: ignore[call-arg]
        ),
        tuple(
            RemoveSnapshotsUpdate(snapshot_ids=old[first : first + EXPIRED_AT_ONCE])  # type: ignore[call-arg]
            for first in range(0, len(old), EXPIRED_AT_ONCE)
        ),
    )


def set_properties(table: Table, wanted: Mapping[str, str]) -> bool:
    """Set the properties that the table does not have yet; existing values stay. Returns whether any was missing."""
    missing = {name: value for name, value in wanted.items() if name not in table.properties}
    if missing:
        with table.transaction() as transaction:
            transaction.set_properties(missing)
    return bool(missing)


def bundle_small_files(
    table: Table,
    *,
    min_files: int = MIN_SMALL_FILES,
    small_bytes: int = SMALL_BYTES,
    group: Grouping | None = None,
    order_by: str = "",
    unique: Sequence[str] = (),
    leave_out: Callable[[list[DataFile]], bool] | None = None,
    seconds: float = math.inf,
) -> int:
    """Rewrite the small files of each partition as one file per group.

    If another process has replaced one of the files in the meantime, the bundle is left for the next call.

    Args:
        table: The Iceberg table.
        min_files: Partitions with fewer small files than this are skipped.
        small_bytes: Files below this size are small.
        group: Divides the small files of one partition into groups, each of which becomes one file; by default in order
            of time, at most MAX_BUNDLE_ROWS rows in each.
        order_by: A column by which the rows of a bundle are sorted, so that readers can skip parts of the file.
        unique: Columns that identify a row. A group is skipped if two of its rows have the same values.
        leave_out: Called with a group that cannot be read; returns whether to skip the group.
        seconds: After about this time, the rest is left for the next call.

    Returns:
        How many files were replaced.

    Raises:
        ValueError: The table has delete files.
    """
    import duckdb

    until = time.monotonic() + seconds
    table.refresh()
    if group is None:
        order_by, group = _in_order(table)
    replaced = 0
    for files in _bundles(table, min_files, small_bytes, group):
        if time.monotonic() > until:
            break
        try:
            added = _bundle(table, files, order_by, unique)
        except (OSError, duckdb.Error):
            if leave_out is None or not leave_out(files):
                raise
            log.exception(
                "table %s: %d small files cannot be read and are not bundled", ".".join(table.name()), len(files)
            )
            continue
        if not added:
            log.warning(
                "table %s: %d small files hold rows twice and are not bundled", ".".join(table.name()), len(files)
            )
            continue
        if sum(file.record_count for file in added) != sum(file.record_count for file in files):
            raise RuntimeError(
                f"table {'.'.join(table.name())}: a bundle holds a different number of rows than its files"
            )
        replaced += _replace(table, files, added)
    return replaced


def _bundle(table: Table, files: list[DataFile], order_by: str, unique: Sequence[str]) -> list[DataFile]:
    """Upload the rows of these files as one file; returns no file if a row that must be unique occurs twice."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder, engine.connect() as connection:
        local = Path(folder) / "bundle.parquet"
        paths = engine.local_copies(connection, [file.file_path for file in files])
        small = engine.read_files(connection, table.schema(), paths)
        small.create_view("small")
        if unique and _repeats(small, unique):
            return []
        rows = f"(select * from small order by {engine.quoted(order_by)})" if order_by else "small"
        connection.execute(f"copy {rows} to {engine.literal(str(local))} ({datafiles.copy_options(table)})")
        return datafiles.upload(table, [local])


def _repeats(rows: DuckDBPyRelation, columns: Sequence[str]) -> bool:
    names = ", ".join(map(engine.quoted, columns))
    return bool(rows.aggregate(f"{names}, count(*) as rows", names).filter("rows > 1").limit(1).fetchall())


def _bundles(table: Table, min_files: int, small_bytes: int, group: Grouping) -> list[list[DataFile]]:
    by_partition: dict[str, list[DataFile]] = {}
    for task in table.scan().plan_files():
        if task.delete_files:
            raise ValueError(f"table {'.'.join(table.name())} has delete files; rewrite it (copy on write) first")
        if task.file.file_size_in_bytes < small_bytes and task.file.spec_id == table.spec().spec_id:
            by_partition.setdefault(repr(task.file.partition), []).append(task.file)
    enough = (files for files in by_partition.values() if len(files) >= min_files)
    return [bundle for files in enough for bundle in group(files) if len(bundle) > 1]


def _in_order(table: Table) -> tuple[str, Grouping]:
    """The time column by which the table is partitioned, and a grouping in which each bundle covers one span of it.

    A reader of a few hours then opens only the bundles of those hours, not the whole day.
    """
    from pyiceberg.conversions import from_bytes

    fields = table.spec().fields
    source: Any = table.schema().find_field(fields[0].source_id) if fields else None

    def first(file: DataFile) -> Any:
        if source is None or (bound := (file.lower_bounds or {}).get(source.field_id)) is None:
            return 1, 0
        return 0, from_bytes(source.field_type, bound)

    def group(files: list[DataFile]) -> list[list[DataFile]]:
        bundles: list[list[DataFile]] = []
        size, rows = MAX_BUNDLE_BYTES, 0
        for file in sorted(files, key=first):
            size, rows = size + file.file_size_in_bytes, rows + file.record_count
            if size > MAX_BUNDLE_BYTES or rows > MAX_BUNDLE_ROWS:
                bundles.append([])
                size, rows = file.file_size_in_bytes, file.record_count
            bundles[-1].append(file)
        return bundles

    return (source.name if source is not None else ""), group


class _Replaced(Exception):
    """Another process has replaced one of the files."""


def _replace(table: Table, files: list[DataFile], added: list[DataFile]) -> int:
    def change(transaction: Transaction) -> None:
        current = {task.file.file_path for task in table.scan().plan_files()}
        if not current.issuperset(file.file_path for file in files):
            raise _Replaced
        writing.replace_files(transaction, files, added)

    try:
        writing.commit(table, change)
    except _Replaced:
        log.info("table %s: another process has replaced the small files", ".".join(table.name()))
        return 0
    return len(files)


def remove_unreferenced(table: Table, *, older_than: timedelta = ORPHAN_AGE, spared: Collection[str] = ()) -> int:
    """Delete files below the table's location that no snapshot refers to.

    For a landing table, call it only after a gap check: files that a sink has written but not committed are its missing
    rows.

    Args:
        table: The Iceberg table.
        older_than: Younger files stay: a commit in progress has files that no snapshot refers to yet.
        spared: File names, without folders, that stay because they are still to be committed.

    Returns:
        How many files were deleted.

    Raises:
        ValueError: `older_than` is less than ORPHAN_AGE.
    """
    if older_than < ORPHAN_AGE:
        raise ValueError(
            f"older_than is {older_than}; it must be at least {ORPHAN_AGE}, because commits may be in progress"
        )
    store = datafiles.filesystem(table.io, table.location())
    before = datetime.now(UTC) - older_than
    # List the files before reading the references: a file that is committed in between is too young to be deleted.
    listed = store.find(table.location(), detail=True)
    table.refresh()
    known = {_key(path) for path in _referenced(table)}
    old = [
        path
        for path, entry in listed.items()
        if _key(path) not in known and path.rpartition("/")[2] not in spared and _changed_at(entry) < before
    ]

    def remove(path: str) -> None:
        # Another process may delete the same files: the task's retry, while the first try still runs.
        with suppress(FileNotFoundError):
            store.rm_file(path)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="unreferenced") as pool:
        for _ in pool.map(remove, old):
            pass
    log.info("table %s: removed %d files that no snapshot refers to", ".".join(table.name()), len(old))
    return len(old)


def _referenced(table: Table) -> Iterator[str]:
    yield table.metadata_location
    yield from (entry.metadata_file for entry in table.metadata.metadata_log)
    yield from (file.statistics_path for file in table.metadata.statistics)
    snapshots = table.snapshots()
    yield from (snapshot.manifest_list for snapshot in snapshots)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="references") as pool:
        manifests = {
            manifest.manifest_path: manifest
            for listed in pool.map(lambda snapshot: snapshot.manifests(table.io), snapshots)
            for manifest in listed
        }
        yield from manifests
        for paths in pool.map(lambda manifest: _files_of(manifest, table.io), manifests.values()):
            yield from paths


def _files_of(manifest: ManifestFile, io: FileIO) -> list[str]:
    return [entry.data_file.file_path for entry in manifest.fetch_manifest_entry(io, discard_deleted=True)]


def _key(path: str) -> str:
    """The key of an object: gs://bucket/x and bucket/x are the same object."""
    return path.partition("://")[2] or path


def _changed_at(entry: dict[str, Any]) -> datetime:
    # gcsfs: "mtime"; s3fs: "LastModified". A file without either counts as new, so it is never deleted.
    changed_at = entry.get("mtime") or entry.get("LastModified") or entry.get("updated")
    if isinstance(changed_at, str):
        changed_at = datetime.fromisoformat(changed_at)
    return changed_at if isinstance(changed_at, datetime) else datetime.now(UTC)
