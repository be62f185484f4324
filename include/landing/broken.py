"""Data files that a landing table names, and that the store has lost or cut.

A lifecycle rule or a person deletes objects; a store acknowledges an upload that it does not keep. Each try to read
such a file fails, and with it the lane. Its records are usually still in Kafka. So the file is taken out of the table:
its offsets are then a gap like any other. They are read from Kafka and appended, or stated as lost.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from include.landing.landed import READ_THREADS, Landed, LandedFile
from include.landing.tables import LandedTopic, load_landing_table, raw_table
from include.landing.verification import GAP_ALARM, RUNBOOK
from include.operations.alarms import add_to_alarm
from include.operations.database import begin

if TYPE_CHECKING:
    from pyiceberg.table import Table, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
# (partition, start, end): the offsets [start, end) of a Kafka partition.
Span = tuple[int, int, int]


def unreadable() -> tuple[type[Exception], ...]:
    """What readers raise for a file that is gone or cut, and for a store that is away."""
    import duckdb
    import pyarrow

    return OSError, pyarrow.ArrowInvalid, duckdb.Error


def reading(topic: LandedTopic, spans: Callable[[], Iterable[Span]], read: Callable[[], T]) -> T:
    """Call `read`; if it cannot read a file that the store has lost or cut, take the file out and call it once more.

    Args:
        topic: The landed topic.
        spans: Returns the offsets whose files are looked at when `read` has failed.
        read: Reads files of the landing table.

    Raises:
        Exception: What `read` raises, if no file is broken, or for the second time.
    """
    try:
        return read()
    except unreadable() as error:
        table = load_landing_table(topic)
        if not take_out(topic, files_of(table, spans())):
            raise
        log.warning("%s: read again, without the files that are broken: %s", raw_table(topic), error)
        return read()


def files_of(table: "Table", spans: Iterable[Span]) -> list[LandedFile]:
    """The files of the table's current snapshot that may hold these offsets, each once."""
    landed = Landed(table)
    return list(dict.fromkeys(file for span in spans for file in landed.files(*span)))


def find(table: "Table", files: Iterable[LandedFile]) -> dict[LandedFile, str]:
    """Ask the store for the files' sizes.

    Args:
        table: The landing table.
        files: Files that it names.

    Returns:
        {file: what is wrong with it} of those that are gone, or that have another size than the table says.

    Raises:
        Exception: What an unavailable store raises.
    """
    from include.lake.datafiles import filesystem

    listed = list(files)
    if not listed:
        return {}
    store = filesystem(table.io, listed[0].path)
    store.invalidate_cache()

    def trouble(file: LandedFile) -> str:
        try:
            size = store.info(file.path)["size"]
        except FileNotFoundError:
            return "is no longer in the store"
        return "" if size == file.size_bytes else f"has {size} bytes in the store, and should have {file.size_bytes}"

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="sizes") as pool:
        return {file: wrong for file, wrong in zip(listed, pool.map(trouble, listed), strict=True) if wrong}


def take_out(topic: LandedTopic, files: Iterable[LandedFile]) -> list[str]:
    """Take those of the files that are broken out of the table, with an alarm.

    If the process is killed between alarm and commit, the next reader does it again. Two processes at once: the second
    one finds nothing left to take out.

    Args:
        topic: The landed topic.
        files: Files that its table names.

    Returns:
        The addresses of the broken files; empty when none is broken.

    Raises:
        Exception: What the store, the catalog or the database raises.
    """
    from include.lake import writing

    table = load_landing_table(topic)
    found = find(table, files)
    if not found:
        return []
    with begin() as connection:
        for file, wrong in sorted(found.items(), key=lambda pair: pair[0].path):
            text = (
                f"{file.path} {wrong}; it was taken out of the table. Its {file.records} records of "
                f"{topic.name}-{file.partition} [{file.start}, {file.end}) are read from Kafka and appended, unless "
                f"all runs are past them ({RUNBOOK})"
            )
            add_to_alarm(connection, raw_table(topic), GAP_ALARM, text)
            log.error("broken file: table=%s %s", raw_table(topic), text)

    def change(transaction: "Transaction") -> None:
        there = {}
        for file in found:
            where = f"partition = {file.partition} and offset >= {file.start} and offset < {file.end}"
            there |= {task.file.file_path: task.file for task in table.scan(row_filter=where).plan_files()}
        if present := [there[file.path] for file in found if file.path in there]:
            with transaction.update_snapshot().overwrite() as overwrite:
                for data_file in present:
                    overwrite.delete_data_file(data_file)

    writing.commit(table, change)
    return [file.path for file in found]
