"""What has landed of a topic, from all sources: its landing table, and the plain objects of another product's sink.

A topic with plain objects has a landing table too. The table holds the records that were read from Kafka because they
were missing in the objects, and it identifies the topic and its first offsets. A record that is in both counts once.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from include.streams.landing import intervals
from include.streams.landing.index import LandingIndex, OffsetIndex, in_order
from include.streams.landing.intervals import Ranges
from include.streams.landing.objects import LIST_SECONDS, Objects, Scope, objects_of
from include.streams.landing.stored import DataFileRange, require_stored
from include.streams.landing.tables import LandedTopic, start_offsets, topic_id
from include.streams.landing.xcom import PlannedFile, TableColumn

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table


def landed_index(topic: LandedTopic, table: "Table", *, at_once: bool = False) -> OffsetIndex:
    """What has landed of the topic.

    Args:
        topic: The landed topic.
        table: Its landing table.
        at_once: Whether objects are listed now. Otherwise they may have been listed some seconds ago.

    Raises:
        UnreadableTable: The table has row-level deletes or files without bounds.
        Exception: The store or the database is unavailable.
    """
    if (source := objects_of(topic)) is None:
        return LandingIndex(table)
    objects = Objects(topic, source, topic_id(table), start_offsets(table))
    objects.list_new(Scope.recent, 0 if at_once else LIST_SECONDS)
    return ObjectIndex(LandingIndex(table), objects)


class ObjectIndex(OffsetIndex):
    """A landing table and plain objects.

    Args:
        table: The landing table's index.
        objects: The topic's objects.
    """

    def __init__(self, table: LandingIndex, objects: Objects) -> None:
        self._table, self.objects = table, objects
        objects.read_last()
        self._ends = objects.ends()
        self._held: dict[DataFileRange, Ranges] = {}

    @property
    def partitions(self) -> list[int]:
        return sorted({*self._table.partitions, *self._ends})

    def end(self, partition: int) -> int:
        return max(self._table.end(partition), self._ends.get(partition, 0))

    def files(self, partition: int, start: int, end: int | None = None) -> list[DataFileRange]:
        of_table = self._table.files(partition, start, end)
        held = self.objects.files(partition, start, end)
        # Only offsets before landed offsets: the others have not landed yet.
        last = self.end(partition) if end is None else min(end, self.end(partition))
        if self._missing(of_table, held, start, last):
            # Before offsets count as missing: objects that began earlier, and objects that appeared late.
            self.objects.list_new(Scope.wide, LIST_SECONDS)
            self.objects.read_earlier(partition, last)
            held = self.objects.files(partition, start, end)
        self._held |= held
        return in_order([*of_table, *held])

    @staticmethod
    def _missing(
        of_table: Sequence[DataFileRange], held: Mapping[DataFileRange, Ranges], start: int, end: int
    ) -> Ranges:
        spans = [(file.start, file.end) for file in of_table]
        spans += [part for ranges in held.values() for part in ranges]
        return intervals.subtract([(start, end)] if start < end else [], intervals.union(spans))

    def offsets(self, file: DataFileRange) -> Ranges:
        return self._held[file] if file.version else self._table.offsets(file)

    def read_ahead(self, files: Iterable[DataFileRange]) -> None:
        self._table.read_ahead(file for file in files if not file.version)

    def prove(self, committed: Mapping[int, int]) -> None:
        self.objects.prove(committed)


def ends_before(topic: LandedTopic, table: "Table", moment: datetime, partitions: Iterable[int]) -> dict[int, int]:
    """{partition: the end of what had landed at a moment}; empty when the table no longer knows it.

    Args:
        topic: The landed topic.
        table: Its landing table.
        moment: The moment.
        partitions: The partitions.
    """
    before = LandingIndex.before(table, moment)
    source = objects_of(topic)
    if source is None:
        return {} if before is None else {number: before.end(number) for number in partitions}
    ends = Objects(topic, source, topic_id(table)).ends(moment)
    return {number: max(ends.get(number, 0), before.end(number) if before else 0) for number in partitions}


def stored_files(topic: LandedTopic, table: "Table", ranges: Iterable[tuple[int, int, int]]) -> list[DataFileRange]:
    """The files that hold offsets of these ranges, after a check that the store still holds them unchanged.

    Args:
        topic: The landed topic.
        table: Its landing table.
        ranges: (partition, start, end) of each range.

    Raises:
        BrokenFiles: The store has lost or truncated some of the table's files.
        Exception: The store is unavailable.
    """
    ranges = list(ranges)
    landed = landed_index(topic, table)

    def find() -> list[DataFileRange]:
        return list(dict.fromkeys(file for span in ranges for file in landed.files(*span)))

    files = find()
    if isinstance(landed, ObjectIndex) and (addresses := [file.path for file in files if file.version]):
        landed.objects.look_again(addresses)
        files = find()
    require_stored(table.io, [file for file in files if not file.version])
    return files


def local_files(
    connection: "DuckDBPyConnection", topic: LandedTopic, columns: Sequence[TableColumn], files: Sequence[PlannedFile]
) -> list[str]:
    """Local Parquet files with the records of landed files, in the columns of the landing table.

    Args:
        connection: A connection of `engine.connect`.
        topic: The landed topic.
        columns: The columns of the landing table.
        files: Landed files; of a plain object, the version that was planned is read.

    Returns:
        The paths, in the order of `files`.

    Raises:
        ObjectChanged: A plain object no longer exists in its version.
        Exception: What the store raises.
    """
    from include.streams.lake.engine import folder_of, local_copies

    of_table = [file["path"] for file in files if not file.get("version")]
    objects = [file for file in files if file.get("version")]
    local = dict(zip(of_table, local_copies(connection, of_table), strict=True))
    if objects and (source := objects_of(topic)) is not None:
        wanted = [(file["path"], file.get("version", ""), file["partition"]) for file in objects]
        written = Objects(topic, source, "").local_parquet(wanted, _schema(columns), folder_of(connection))
        local |= zip((file["path"] for file in objects), written, strict=True)
    return [local[file["path"]] for file in files]


def _schema(columns: Sequence[TableColumn]) -> Any:
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    # PyIceberg accepts the name of a type instead of the type.
    fields = (NestedField(c["id"], c["name"], c["type"], required=False) for c in columns)  # type: ignore[arg-type]
    return schema_to_pyarrow(Schema(*fields))


def as_planned(files: Iterable[DataFileRange]) -> list[PlannedFile]:
    """Whole files as a plan names them.

    Args:
        files: Landed files.
    """
    return [
        {"path": f.path, "partition": f.partition, "start": f.start, "end": f.end, "version": f.version}
        for f in dict.fromkeys(files)
    ]
