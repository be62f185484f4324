"""Keep Iceberg tables small: old snapshots, small files, and files that no snapshot knows.

Each step is one commit or none, safe beside writers, and can be repeated.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.lake import datafiles, engine, writing

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction
    from pyiceberg.table.snapshots import Snapshot

log = logging.getLogger(__name__)

# Readers that planned their files before they were replaced, and commits that are under way, are done by then.
ORPHAN_AGE = timedelta(days=1)
SMALL_BYTES = 32 * 1024 * 1024
# Fewer are left alone: to rewrite costs more than to open them.
MIN_SMALL_FILES = 8
# Rewritten at a time, in one commit.
MAX_BUNDLE_BYTES = 512 * 1024 * 1024


def expire_snapshots(
    table: Table, older_than: timedelta, is_needed: Callable[[Snapshot], bool] = lambda snapshot: True
) -> int:
    """Forget snapshots older than this; returns how many. Their files go with `remove_unreferenced`.

    The current one stays, and its ancestors up to the first that is needed, with all between: a writer that looks for
    its own last commit goes from parent to parent, and ends where one is missing.
    """
    table.refresh()
    kept: set[int] = set()
    snapshot = table.current_snapshot()
    while snapshot is not None:
        kept.add(snapshot.snapshot_id)
        if is_needed(snapshot):
            break
        snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None
    before = (datetime.now(UTC) - older_than).timestamp() * 1000
    kept |= {ref.snapshot_id for ref in table.refs().values()}
    old = [s.snapshot_id for s in table.snapshots() if s.timestamp_ms < before and s.snapshot_id not in kept]
    if old:
        table.maintenance.expire_snapshots().by_ids(old).commit()
    return len(old)


def bundle_small_files(table: Table, *, min_files: int = MIN_SMALL_FILES, small_bytes: int = SMALL_BYTES) -> int:
    """Rewrite the small files of each partition as one; returns how many files were replaced.

    A partition in which somebody else has replaced one of them meanwhile is left for the next time.
    """
    table.refresh()
    replaced = 0
    for files in _bundles(table, min_files, small_bytes):
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder, engine.connect() as connection:
            local = Path(folder) / "bundle.parquet"
            paths = engine.fetched(connection, [file.file_path for file in files])
            rows = engine.read_files(connection, table.schema(), paths)
            rows.create_view("small")
            connection.execute(f"copy small to {engine.literal(str(local))} ({datafiles.copy_options(table)})")
            added = datafiles.upload(table, [local])
        if sum(file.record_count for file in added) != sum(file.record_count for file in files):
            raise RuntimeError(f"table {'.'.join(table.name())}: a bundle holds another number of rows than its files")
        replaced += _replace(table, files, added)
    return replaced


def _bundles(table: Table, min_files: int, small_bytes: int) -> list[list[DataFile]]:
    by_partition: dict[str, list[DataFile]] = {}
    for task in table.scan().plan_files():
        if task.delete_files:
            raise ValueError(f"table {'.'.join(table.name())} has delete files; rewrite it (copy on write) first")
        if task.file.file_size_in_bytes < small_bytes and task.file.spec_id == table.spec().spec_id:
            by_partition.setdefault(repr(task.file.partition), []).append(task.file)
    bundles: list[list[DataFile]] = []
    for files in by_partition.values():
        if len(files) < min_files:
            continue
        size = MAX_BUNDLE_BYTES
        for file in files:
            if size + file.file_size_in_bytes > MAX_BUNDLE_BYTES:
                bundles.append([])
                size = 0
            bundles[-1].append(file)
            size += file.file_size_in_bytes
    return [bundle for bundle in bundles if len(bundle) > 1]


class _Replaced(Exception):
    """Somebody else has replaced one of the files."""


def _replace(table: Table, files: list[DataFile], added: list[DataFile]) -> int:
    def change(transaction: Transaction) -> None:
        there = {task.file.file_path for task in table.scan().plan_files()}
        if not there.issuperset(file.file_path for file in files):
            raise _Replaced
        with transaction.update_snapshot().overwrite() as overwrite:
            for file in files:
                overwrite.delete_data_file(file)
            for file in added:
                overwrite.append_data_file(file)

    try:
        writing.commit(table, change)
    except _Replaced:
        log.info("table %s: small files were replaced by somebody else", ".".join(table.name()))
        return 0
    return len(files)


def remove_unreferenced(table: Table, *, older_than: timedelta = ORPHAN_AGE) -> int:
    """Delete files below the table's location that no snapshot refers to; returns how many.

    Of a landing table only after a gap check: files that a sink has written and not committed are its missing rows.
    Raises ValueError for an age below ORPHAN_AGE: a commit that is under way has files that no snapshot knows yet.
    """
    if older_than < ORPHAN_AGE:
        raise ValueError(f"older_than is {older_than}; at least {ORPHAN_AGE}, for commits that are under way")
    store = datafiles.filesystem(table.io, table.location())
    before = datetime.now(UTC) - older_than
    store.invalidate_cache()
    # Listed before the references are read: what is committed in between is not among the listed ones that are old.
    listed = store.find(table.location(), detail=True)
    table.refresh()
    known = {_key(path) for path in _referenced(table)}
    removed = 0
    for path, entry in listed.items():
        if _key(path) not in known and _changed_at(entry) < before:
            store.rm_file(path)
            removed += 1
    log.info("table %s: removed %d files that no snapshot refers to", ".".join(table.name()), removed)
    return removed


def _referenced(table: Table) -> Iterator[str]:
    yield table.metadata_location
    yield from (entry.metadata_file for entry in table.metadata.metadata_log)
    yield from (file.statistics_path for file in table.metadata.statistics)
    seen: set[str] = set()
    for snapshot in table.snapshots():
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            yield manifest.manifest_path
            if manifest.manifest_path not in seen:
                seen.add(manifest.manifest_path)
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                yield from (entry.data_file.file_path for entry in entries)


def _key(path: str) -> str:
    """gs://bucket/x and bucket/x are one object."""
    return path.partition("://")[2] or path


def _changed_at(entry: dict[str, Any]) -> datetime:
    # gcsfs: "mtime"; s3fs: "LastModified". Without either the file counts as new.
    found = entry.get("mtime") or entry.get("LastModified") or entry.get("updated")
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found if isinstance(found, datetime) else datetime.now(UTC)
