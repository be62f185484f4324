"""What a landing table holds: which offsets of each Kafka partition, in which files, from its manifests alone.

The table is partitioned by the Kafka partition, so a file's offset bounds are those of one partition. A file with as
many records as its bounds span holds every offset between them. Of any other file (transactions and compaction leave
offsets without a record; a record may be there twice) the offsets themselves are read, that one column only.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.landing import intervals
from include.landing.intervals import Ranges

if TYPE_CHECKING:
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# Neither a manifest nor a data file ever changes, so what was read of them stays true: a sensor that looks every few
# seconds reads what is new. Bounds for a process that runs for months.
MAX_CACHED_MANIFESTS = 2_000
MAX_CACHED_COLUMNS = 2_000
# Waiting for the store, mostly.
READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class LandedFile:
    """A data file: offsets [start, end) of one Kafka partition by its bounds; `records` rows."""

    path: str
    partition: int
    start: int
    end: int
    records: int

    @property
    def is_dense(self) -> bool:
        """Whether it holds every offset between its bounds."""
        return self.records == self.end - self.start


class UnreadableTable(Exception):
    """The table holds something from which landed offsets cannot be told."""


class Landed:
    """The files of a table's current snapshot.

    Raises UnreadableTable for row-level deletes and for files without bounds: what they hold could only be guessed.
    """

    def __init__(self, table: "Table") -> None:
        self._io = table.io
        self.snapshot_id: int | None = None
        self._files: dict[int, list[LandedFile]] = {}
        snapshot = table.current_snapshot()
        if snapshot is None:
            return
        self.snapshot_id = snapshot.snapshot_id
        manifests = snapshot.manifests(table.io)
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="manifests") as pool:
            for files in pool.map(lambda manifest: _files_of(table, manifest), manifests):
                for file in files:
                    self._files.setdefault(file.partition, []).append(file)
        for files in self._files.values():
            files.sort(key=lambda file: (file.start, -file.end, file.path))

    @property
    def partitions(self) -> list[int]:
        return sorted(self._files)

    def end(self, partition: int) -> int:
        """One more than the highest landed offset of the partition; 0 when there is none."""
        return max((file.end for file in self._files.get(partition, ())), default=0)

    def files(self, partition: int, start: int, end: int | None = None) -> list[LandedFile]:
        """The files whose bounds reach into [start, end), by their first offset."""
        return [
            file
            for file in self._files.get(partition, ())
            if file.end > start and (end is None or file.start < end) and file.records
        ]

    def offsets(self, file: LandedFile) -> Ranges:
        """The offsets that the file holds; reads its offset column if the bounds do not tell."""
        return [(file.start, file.end)] if file.is_dense else _offset_column(self._io, file)

    def read_ahead(self, files: Iterable[LandedFile]) -> None:
        """Read what `offsets` will have to read, several files at a time."""
        sparse = [file for file in files if not file.is_dense and file.path not in _columns]
        if len(sparse) > 1:
            with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="offsets") as pool:
                list(pool.map(self.offsets, sparse))

    def covered(self, partition: int, start: int, end: int | None = None) -> Ranges:
        """The offsets of the partition from `start` on that have landed."""
        files = self.files(partition, start, end)
        self.read_ahead(files)
        landed = intervals.union(piece for file in files for piece in self.offsets(file))
        last = landed[-1][1] if landed else start
        return intervals.intersect(landed, [(start, last if end is None else end)])


def contiguous_end(start: int, covered: Ranges) -> int:
    """Where the offsets that begin at `start` have their first hole."""
    for first, end in covered:
        if first > start:
            break
        start = max(start, end)
    return start


_manifests: "OrderedDict[str, tuple[LandedFile, ...]]" = OrderedDict()
_columns: "OrderedDict[str, Ranges]" = OrderedDict()


def _remember(cache: OrderedDict, key: str, value: Any, size: int) -> None:
    cache[key] = value
    while len(cache) > size:
        cache.popitem(last=False)


def _files_of(table: "Table", manifest: "ManifestFile") -> tuple[LandedFile, ...]:
    from pyiceberg.manifest import ManifestContent, ManifestEntryStatus

    name = ".".join(table.name())
    if manifest.content == ManifestContent.DELETES:
        raise UnreadableTable(
            f"table {name} has row-level deletes ({manifest.manifest_path}): remove rows by rewriting files"
        )
    found = _manifests.get(manifest.manifest_path)
    if found is None:
        entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        live = (entry.data_file for entry in entries if entry.status != ManifestEntryStatus.DELETED)
        found = tuple(_landed_file(table, file) for file in live if file.record_count)
        _remember(_manifests, manifest.manifest_path, found, MAX_CACHED_MANIFESTS)
    return found


def _landed_file(table: "Table", file: Any) -> LandedFile:
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
    return LandedFile(file.file_path, file.partition[0], first, last + 1, file.record_count)


def _offset_column(io: Any, file: LandedFile) -> Ranges:
    found = _columns.get(file.path)
    if found is None:
        import numpy as np
        import pyarrow.parquet as pq

        with io.new_input(file.path).open() as stream:
            column = pq.read_table(stream, columns=["offset"])["offset"]
        numbers = np.unique(column.drop_null().to_numpy())
        breaks = (numbers[1:] != numbers[:-1] + 1).nonzero()[0] + 1
        starts, ends = [0, *breaks], [*breaks, len(numbers)]
        found = [(int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, ends, strict=True) if b > a]
        _remember(_columns, file.path, found, MAX_CACHED_COLUMNS)
    return found
