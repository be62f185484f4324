"""An index of a landing table, read from its manifests: which offsets of each Kafka partition are in which files.

The table is partitioned by the Kafka partition, so a file's offset bounds belong to one partition. A file with as many
records as its bounds span holds every offset between them. In any other file, transactions or compaction have left
offsets without a record, or a record occurs twice. Of such a file, the offset column is read, and no other column.

Manifests are opened only if their bounds (`manifests.py`) overlap the requested offsets.
"""

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from include.streams.landing import intervals, manifests
from include.streams.landing.intervals import Ranges
from include.streams.landing.manifests import Bounds
from include.streams.landing.stored import (
    READ_THREADS,
    BrokenFiles,
    DataFileRange,
    FileOffsets,
    find_broken,
    require_stored,
)

if TYPE_CHECKING:
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

log = logging.getLogger(__name__)

# Manifests and data files never change, so cached content stays valid: a sensor that polls every few seconds reads only
# new files. The limits are for a process that runs for months. A manifest lists up to some thousand files.
MAX_CACHED_MANIFESTS = 200
MAX_CACHED_BOUNDS = 20_000
MAX_CACHED_COLUMNS = 2_000


class UnreadableTable(Exception):
    """The landed offsets cannot be determined, because of row-level deletes or files without bounds."""


class OffsetIndex(ABC):
    """What has landed: the offsets of each partition, and the files that hold them."""

    @property
    @abstractmethod
    def partitions(self) -> list[int]:
        """The partitions of which something has landed."""

    @abstractmethod
    def end(self, partition: int) -> int:
        """One more than the highest landed offset of the partition; 0 when nothing has landed."""

    @abstractmethod
    def files(self, partition: int, start: int, end: int | None = None) -> list[DataFileRange]:
        """The files whose bounds overlap [start, end), sorted by first offset.

        Args:
            partition: The Kafka partition.
            start: The first offset.
            end: The end, exclusive; None for no upper limit.
        """

    @abstractmethod
    def offsets(self, file: DataFileRange) -> Ranges:
        """The offsets that the file holds; raises BrokenFiles if the store has lost or truncated it."""

    @abstractmethod
    def read_ahead(self, files: Iterable[DataFileRange]) -> None:
        """Read what `offsets` will need, several files at a time.

        Raises:
            BrokenFiles: The store has lost or truncated some of the files; the error names all of them.
        """

    def prove(self, committed: Mapping[int, int]) -> None:  # noqa: B027
        """Use the sink's committed offsets as the ends of what has landed; a table needs no such proof.

        Args:
            committed: {partition: the sink's committed offset}.
        """

    def files_with_offsets(self, partition: int, start: int, end: int | None = None) -> list[FileOffsets]:
        """Like `files`, with the offsets that each file holds. Raises BrokenFiles as `read_ahead` does."""
        files = self.files(partition, start, end)
        self.read_ahead(files)
        return [FileOffsets(file, self.offsets(file)) for file in files]

    def covered(self, partition: int, start: int, end: int | None = None) -> Ranges:
        """The landed offsets of the partition in [start, end).

        Args:
            partition: The Kafka partition.
            start: The first offset.
            end: The end, exclusive; None for no upper limit.

        Returns:
            The offsets as `intervals.union` returns them.
        """
        landed = intervals.union(
            piece for held in self.files_with_offsets(partition, start, end) for piece in held.offsets
        )
        last = landed[-1][1] if landed else start
        return intervals.intersect(landed, [(start, last if end is None else end)])


class LandingIndex(OffsetIndex):
    """The data files and offsets of one snapshot of a landing table.

    Args:
        table: The landing table.
        snapshot: The snapshot; None for the current one.

    Raises:
        UnreadableTable: The table has row-level deletes or files without bounds.
    """

    def __init__(self, table: "Table", snapshot: "Snapshot | None" = None) -> None:
        snapshot = snapshot or table.current_snapshot()
        self.snapshot_id: int | None = snapshot.snapshot_id if snapshot else None
        self._sources = _sources(table, snapshot.manifests(table.io) if snapshot else [])
        self._io = table.io

    @classmethod
    def before(cls, table: "Table", moment: datetime) -> "LandingIndex | None":
        """The index of the snapshot that was current at this moment; None when it was expired."""
        snapshot = table.snapshot_as_of_timestamp(int(1000 * moment.timestamp()))
        return cls(table, snapshot) if snapshot is not None else None

    @property
    def partitions(self) -> list[int]:
        return sorted({partition for source in self._sources for partition in source.bounds})

    def end(self, partition: int) -> int:
        return max((source.bounds[partition][1] for source in self._sources if partition in source.bounds), default=0)

    def files(self, partition: int, start: int, end: int | None = None) -> list[DataFileRange]:
        wanted = [source for source in self._sources if source.reaches(partition, start, end)]
        unread = [source for source in wanted if not source.is_read]
        if len(unread) > 1:
            with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="manifests") as pool:
                list(pool.map(_Source.files, unread))
        found = [
            file
            for source in wanted
            for file in source.files()
            if file.partition == partition and file.end > start and (end is None or file.start < end)
        ]
        return in_order(found)

    def offsets(self, file: DataFileRange) -> Ranges:
        # Reads the offset column if the bounds are not enough.
        return [(file.start, file.end)] if file.is_dense else offset_column(self._io, file)

    def read_ahead(self, files: Iterable[DataFileRange]) -> None:
        sparse = [file for file in files if not file.is_dense and file.path not in _columns]
        if len(sparse) > 1:
            try:
                with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="offsets") as pool:
                    list(pool.map(self.offsets, sparse))
            except BrokenFiles as error:
                # All broken files are found at once. Hundreds may be gone, and each separate finding would be a commit.
                raise BrokenFiles(error.files | find_broken(self._io, sparse)) from error


def in_order(files: Iterable[DataFileRange]) -> list[DataFileRange]:
    """Files sorted by first offset; of those that begin together, the longest first."""
    return sorted(files, key=lambda file: (file.start, -file.end, file.path))


def contiguous_end(start: int, covered: Ranges) -> int:
    """The first offset, from `start` on, that `covered` does not contain.

    Args:
        start: The first offset to check.
        covered: Offsets as `intervals.union` returns them.
    """
    for first, end in covered:
        if first > start:
            break
        start = max(start, end)
    return start


class _Source:
    """A manifest: the offset bounds of its files, and the files themselves, which are read on demand."""

    def __init__(self, bounds: Bounds, read: Callable[[], tuple[DataFileRange, ...]]) -> None:
        self.bounds = bounds
        self._read = read
        self._files: tuple[DataFileRange, ...] | None = None

    @property
    def is_read(self) -> bool:
        return self._files is not None

    def reaches(self, partition: int, start: int, end: int | None) -> bool:
        first, last = self.bounds.get(partition, (0, 0))
        return last > start and (end is None or first < end)

    def files(self) -> tuple[DataFileRange, ...]:
        if self._files is None:
            self._files = self._read()
        return self._files


_manifests: "OrderedDict[str, tuple[DataFileRange, ...]]" = OrderedDict()
_bounds: "OrderedDict[str, Bounds]" = OrderedDict()
_columns: "OrderedDict[str, Ranges]" = OrderedDict()


def clear_caches() -> None:
    """Clear the caches of manifests and files, so that they are read again, as in a new process."""
    for cache in (_manifests, _bounds, _columns):
        cache.clear()


def _cache(cache: OrderedDict, key: str, value: Any, size: int) -> None:
    cache[key] = value
    while len(cache) > size:
        cache.popitem(last=False)


def bounds_of(files: Iterable[DataFileRange]) -> Bounds:
    """{partition: (start, end)}: the offsets between the first and the last of the files."""
    bounds: dict[int, tuple[int, int]] = {}
    for file in files:
        start, end = bounds.get(file.partition, (file.start, file.end))
        bounds[file.partition] = (min(start, file.start), max(end, file.end))
    return bounds


def _sources(table: "Table", manifest_files: "Iterable[ManifestFile]") -> list[_Source]:
    """The manifests with their bounds. Manifests without recorded bounds are read, and their bounds recorded."""
    from pyiceberg.manifest import ManifestContent

    manifest_files = list(manifest_files)
    for manifest in manifest_files:
        if manifest.content == ManifestContent.DELETES:
            raise UnreadableTable(
                f"table {'.'.join(table.name())} has row-level deletes ({manifest.manifest_path}): remove rows by "
                "rewriting files"
            )
    bounds = {m.manifest_path: b for m in manifest_files if (b := _bounds.get(m.manifest_path)) is not None}
    unknown = [manifest for manifest in manifest_files if manifest.manifest_path not in bounds]
    if unknown:
        bounds |= manifests.load_bounds([manifest.manifest_path for manifest in unknown])
        unread = [manifest for manifest in unknown if manifest.manifest_path not in bounds]
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="manifests") as pool:
            read = pool.map(lambda manifest: bounds_of(_files_of(table, manifest)), unread)
            new = dict(zip((manifest.manifest_path for manifest in unread), read, strict=True))
        if new:
            manifests.store_bounds(str(table.metadata.table_uuid), new)
        bounds |= new
        for manifest in unknown:
            _cache(_bounds, manifest.manifest_path, bounds[manifest.manifest_path], MAX_CACHED_BOUNDS)
    return [_Source(bounds[manifest.manifest_path], partial(_files_of, table, manifest)) for manifest in manifest_files]


def _files_of(table: "Table", manifest: "ManifestFile") -> tuple[DataFileRange, ...]:
    from pyiceberg.manifest import ManifestEntryStatus

    files = _manifests.get(manifest.manifest_path)
    if files is None:
        entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        live = (entry.data_file for entry in entries if entry.status != ManifestEntryStatus.DELETED)
        files = tuple(file_range(table, file) for file in live if file.record_count)
        _cache(_manifests, manifest.manifest_path, files, MAX_CACHED_MANIFESTS)
    return files


def file_range(table: "Table", file: Any) -> DataFileRange:
    """The offsets of a data file, from its manifest entry.

    Args:
        table: The landing table.
        file: The file's entry in a manifest.

    Raises:
        UnreadableTable: The entry has no partition or no offset bounds.
    """
    from pyiceberg.conversions import from_bytes

    offset: Any = table.schema().find_field("offset")
    lower, upper = ((bounds or {}).get(offset.field_id) for bounds in (file.lower_bounds, file.upper_bounds))
    if file.partition[0] is None or lower is None or upper is None:
        raise UnreadableTable(
            f"file {file.file_path} of table {'.'.join(table.name())} says neither its partition nor its offsets: it "
            "was not written by the sink; remove it from the table"
        )
    first: Any = from_bytes(offset.field_type, lower)
    last: Any = from_bytes(offset.field_type, upper)
    return DataFileRange(file.file_path, file.partition[0], first, last + 1, file.record_count, file.file_size_in_bytes)


def offset_column(io: Any, file: DataFileRange) -> Ranges:
    """The offsets that a data file holds, from its offset column.

    Args:
        io: The file IO of the table.
        file: The data file.

    Returns:
        The offsets as `intervals.union` returns them.

    Raises:
        BrokenFiles: The store has lost or truncated the file.
    """
    ranges = _columns.get(file.path)
    if ranges is None:
        import numpy as np
        import pyarrow.parquet as pq

        from include.streams.lake.datafiles import filesystem

        try:
            with filesystem(io, file.path).open(file.path, size=file.size_bytes) as stream:
                column = pq.read_table(stream, columns=["offset"])["offset"]
        except Exception:
            # Each client raises its own error for a range beyond the end of the file, so the file is checked.
            require_stored(io, [file])
            raise
        numbers = np.unique(column.drop_null().to_numpy())
        breaks = (numbers[1:] != numbers[:-1] + 1).nonzero()[0] + 1
        starts, ends = [0, *breaks], [*breaks, len(numbers)]
        ranges = [(int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, ends, strict=True) if b > a]
        _cache(_columns, file.path, ranges, MAX_CACHED_COLUMNS)
    return ranges
