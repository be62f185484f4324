"""The data files of a landing table, and the check whether the store still holds them unchanged."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from include.streams.landing.intervals import Ranges

if TYPE_CHECKING:
    from pyiceberg.io import FileIO

# The threads mostly wait for the store.
READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class DataFileRange:
    """A data file: offsets [start, end) of one Kafka partition by its bounds; `records` rows, `size_bytes` long.

    `version` is the version of a plain object; empty for a data file of a table, which never changes.
    """

    path: str
    partition: int
    start: int
    end: int
    records: int
    size_bytes: int
    version: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether the file holds every offset between its bounds."""
        return self.records == self.end - self.start


class FileOffsets(NamedTuple):
    """A data file, and the offsets that it holds."""

    file: DataFileRange
    offsets: Ranges


class BrokenFiles(Exception):
    """Files of the table that the store has lost or truncated: every attempt to read them fails.

    Args:
        files: {file: what is wrong with it}; not empty.
    """

    def __init__(self, files: Mapping[DataFileRange, str]) -> None:
        self.files = dict(files)
        first, wrong = next(iter(self.files.items()))
        more = f", and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        super().__init__(f"{first.path} {wrong}{more}")


def find_broken(io: "FileIO", files: Iterable[DataFileRange]) -> dict[DataFileRange, str]:
    """Check in the store which of the files are lost or truncated.

    Args:
        io: The file IO of the table.
        files: Files that the table names.

    Returns:
        {file: what is wrong with it} for files that are gone, shorter than the table says, or without the end of a
        Parquet file.

    Raises:
        Exception: The store is unavailable.
    """
    from include.streams.lake.datafiles import MAGIC, filesystem

    listed = list(files)
    if not listed:
        return {}
    store = filesystem(io, listed[0].path)

    def trouble(file: DataFileRange) -> str:
        try:
            size = store.info(file.path)["size"]
            if size < file.size_bytes:
                return f"has {size} bytes in the store, and should have {file.size_bytes}"
            # PyIceberg records the size that the store reports after the upload, so a truncated file may have the
            # recorded size.
            is_whole = size > len(MAGIC) and store.cat_file(file.path, start=size - len(MAGIC)) == MAGIC
        except FileNotFoundError:
            return "is no longer in the store"
        return "" if is_whole else "is not a complete Parquet file"

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="stored") as pool:
        return {file: wrong for file, wrong in zip(listed, pool.map(trouble, listed), strict=True) if wrong}


def require_stored(io: "FileIO", files: Iterable[DataFileRange]) -> None:
    """Raise BrokenFiles if the store has lost or truncated one of the files; raises as `find_broken` does."""
    if broken := find_broken(io, files):
        raise BrokenFiles(broken)
