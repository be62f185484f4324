"""The plain objects of a landed topic: which offsets each of them holds, recorded in the operational database.

A sink of another product writes an object under a name with its first offset. After a crash it may write the object
again, with other records, or write objects whose offsets overlap. Nothing marks an object as complete. So an object is
recorded in the version that was read, and only the offsets that were found in it count. If it is written again, it is
another object of the same name.

Only new names are listed: from some objects before the last known one on. If offsets are missing, more names are
listed, because an object may appear late. Only objects that may hold the requested offsets are read, once. So a plan
costs as much as its claim, not as the whole prefix.

If the process is killed, objects are not recorded, and are listed and read again. Two processes record the same.
"""

import logging
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import MultiRange, Range, insert

from include.streams.contracts.objects import PlainObjects
from include.streams.lake.objects import ObjectChanged, ObjectStore, StoredObject, object_store
from include.streams.landing import decoding
from include.streams.landing.intervals import Ranges
from include.streams.landing.object_rows import landing_objects
from include.streams.landing.stored import READ_THREADS, DataFileRange
from include.streams.landing.tables import LandedTopic, raw_table
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm
from include.streams.operations.database import begin

log = logging.getLogger(__name__)

# Names of known objects before the last one of each list that are listed again, because the last objects are those that
# a sink writes again after a crash; and if offsets are missing, because objects appear late.
RECENT, WIDE = 20, 2_000
# How long a process does not list again, unless it plans a run.
LIST_SECONDS = 10.0
# Only names with so many digits are in the order of their offsets: "9" is after "10".
PADDED = 10
# Rows in one statement.
AT_ONCE = 1_000

_column = landing_objects.c


class Scope(IntEnum):
    """Which names are listed: the last ones, those of the last WIDE objects, or all."""

    recent = 1
    wide = 2
    all = 3


@dataclass(frozen=True)
class _Name:
    partition: int
    start: int
    is_padded: bool


def objects_of(topic: LandedTopic) -> PlainObjects | None:
    """How a sink of another product lands the topic; None if the topic lands only in its table."""
    landed = getattr(topic, "landed", None)
    return landed if isinstance(landed, PlainObjects) else None


# {(topic id, scope): when this process has listed it}.
_listed: dict[tuple[str, Scope], float] = {}


class Objects:
    """The recorded objects of one topic.

    Args:
        topic: The landed topic.
        source: How its sink writes.
        topic_id: The landing table's topic id.
        partitions: The partitions that the topic had when it was first landed.
    """

    def __init__(
        self, topic: LandedTopic, source: PlainObjects, topic_id: str, partitions: Collection[int] = ()
    ) -> None:
        self._topic, self._source, self._id, self._first = topic, source, topic_id, partitions
        self._names = source.names(topic.name)
        self._committed: Mapping[int, int] = {}

    def address(self, path: str) -> str:
        """The address of an object."""
        return f"{self._source.scheme}://{self._source.bucket}/{path}"

    def _path(self, address: str) -> str:
        return address.removeprefix(self.address(""))

    def _store(self) -> ObjectStore:
        return object_store(self._source.scheme, self._source.bucket)

    def list_new(self, scope: Scope, max_age: float = 0.0) -> None:
        """List objects, and record those that are new or were written again.

        Args:
            scope: Which names are listed.
            max_age: Nothing is listed if this process has listed as much within so many seconds.
        """
        now = time.monotonic()
        if any(now - _listed.get((self._id, each), -1e9) < max_age for each in Scope if each >= scope):
            return
        below = self._source.listed_below(self._topic.name)
        starts = self._starts(below, scope)
        store = self._store()
        for prefix, start_at in starts:
            batch: list[tuple[StoredObject, _Name]] = []
            for stored in store.list(prefix, start_at):
                if (name := self._parsed(stored.path)) is not None:
                    batch.append((stored, name))
                if len(batch) >= AT_ONCE:
                    self._record(batch)
                    batch = []
            self._record(batch)
        _listed[self._id, scope] = now

    def _starts(self, below: str, scope: Scope) -> list[tuple[str, str | None]]:
        """(what names begin with, the first name to list) of each list."""
        known = self._last_known() if scope is not Scope.all else {}
        if not known or not all(self._is_ordered(path) for path in known.values()):
            return [(below, None)]
        back = RECENT if scope is Scope.recent else WIDE
        with begin() as connection:
            if not self._source.template.startswith("{topic}/partition={partition}/"):
                return [(below, self._before(connection, max(known.values()), below, back))]
            folders = {number: path.rpartition("/")[0] + "/" for number, path in known.items()}
            lists = [(folder, self._before(connection, known[n], folder, back)) for n, folder in folders.items()]
        # Partitions that have no object yet; one of them may have been added to the topic.
        numbers = {*self._first, max({*self._first, *known}) + 1}
        return lists + [(f"{below}{number}/", None) for number in sorted(numbers - set(known))]

    def _is_ordered(self, path: str) -> bool:
        name = self._parsed(path)
        return name is not None and name.is_padded

    def _before(self, connection: Connection, path: str, prefix: str, back: int) -> str | None:
        """The name that is so many known names before this one."""
        earlier = select(_column.path).where(
            _column.topic_id == self._id, _column.path <= path, _column.path.startswith(prefix, autoescape=True)
        )
        return connection.scalar(earlier.order_by(_column.path.desc()).offset(back).limit(1))

    def _last_known(self) -> dict[int, str]:
        """{partition: the name of its object with the highest first offset}."""
        with begin() as connection:
            return {row.partition: row.path for row in connection.execute(_LAST, {"of": self._id})}

    def _parsed(self, path: str) -> _Name | None:
        match = self._names.fullmatch(path)
        if match is None:
            return None
        start = match["start_offset"]
        return _Name(int(match["partition"]), int(start), len(start) >= PADDED)

    def _record(self, batch: Sequence[tuple[StoredObject, _Name]]) -> None:
        # Sorted: two processes that insert the same names in different orders would deadlock.
        rows = [
            {
                "topic_id": self._id,
                "path": stored.path,
                "version": stored.version,
                "size_bytes": stored.size,
                "modified_at": stored.modified,
                "partition": name.partition,
                "start_offset": name.start,
                # An object without a byte holds no record. It is not read.
                "state": "listed" if stored.size else "read",
                "records": None if stored.size else 0,
                "proven": not stored.size,
            }
            for stored, name in sorted(batch, key=lambda pair: pair[0].path)
        ]
        if not rows:
            return
        statement = insert(landing_objects)
        new = {name: statement.excluded[name] for name in rows[0] if name not in ("topic_id", "path")}
        changed = statement.on_conflict_do_update(
            index_elements=["topic_id", "path"],
            set_={**new, "first_offset": None, "end_offset": None, "ranges": None},
            where=_column.version != statement.excluded.version,
        )
        with begin() as connection:
            connection.execute(changed, rows)

    def ends(self, before: datetime | None = None) -> dict[int, int]:
        """{partition: the end of what has landed}.

        Args:
            before: Only objects that were written before this time.
        """
        found: dict[int, int] = {}
        with begin() as connection:
            for number in self._numbers(connection):
                of = [_column.topic_id == self._id, _column.partition == number]
                if before is not None:
                    of.append(_column.modified_at <= before)
                # An object that was not read yet, or whose lines are not placed, shows that all offsets before it
                # should have landed.
                proven = select(func.max(_column.end_offset)).where(*of, _column.proven)
                named = select(func.max(_column.start_offset)).where(*of)
                found[number] = max(connection.scalar(proven) or 0, connection.scalar(named) or 0)
        return found

    def _numbers(self, connection: Connection) -> list[int]:
        return list(connection.execute(_PARTITIONS, {"of": self._id}).scalars())

    def prove(self, committed: Mapping[int, int]) -> None:
        """Use the sink's committed offsets as the ends of the last objects of values.

        Args:
            committed: {partition: the sink's committed offset}.
        """
        self._committed = committed

    def _prove(self, connection: Connection, partition: int, start: int) -> None:
        """Record objects of values that end where the next one begins, or at the sink's committed offset.

        Then no offset is missing between their lines. It is recorded, because the next object may be removed later.
        """
        if self._source.records == "values" and not self._source.is_dense:
            at = {"of": self._id, "partition": partition, "start": start, "committed": self._committed.get(partition)}
            connection.execute(_PROVE, at)

    def files(self, partition: int, start: int, end: int | None) -> dict[DataFileRange, Ranges]:
        """{object: its offsets} of the objects that hold offsets of [start, end); reads those that were not read yet.

        Args:
            partition: The Kafka partition.
            start: The first offset.
            end: The end, exclusive; None for no upper limit.
        """
        self._read_unread(partition, start, end)
        found: dict[DataFileRange, Ranges] = {}
        of = [
            _column.topic_id == self._id,
            _column.partition == partition,
            _column.state == "read",
            _column.end_offset > start,
            *([] if end is None else [_column.first_offset < end]),
        ]
        with begin() as connection:
            self._prove(connection, partition, start)
            for row in connection.execute(select(landing_objects).where(*of, _column.proven)):
                file = DataFileRange(
                    self.address(row.path),
                    partition,
                    row.first_offset,
                    row.end_offset,
                    row.records,
                    row.size_bytes,
                    row.version,
                )
                found[file] = _ranges_of(row)
        return found

    def _read_unread(self, partition: int, start: int, end: int | None) -> None:
        of = (_column.topic_id == self._id, _column.partition == partition)
        unread = select(landing_objects).where(*of, _column.state == "listed")
        if end is not None:
            unread = unread.where(_column.start_offset < end)
        # The object that begins last before the requested offsets may hold them. Earlier ones may too, if objects
        # overlap: they are read if offsets are missing (`read_earlier`).
        floor = select(func.max(_column.start_offset)).where(*of, _column.start_offset <= start)
        with begin() as connection:
            rows = connection.execute(
                unread.where(_column.start_offset >= func.coalesce(floor.scalar_subquery(), 0))
            ).all()
        self._read(rows)

    def read_last(self) -> None:
        """Read the last object of each partition: it shows up to which offset records have landed."""
        with begin() as connection:
            rows = connection.execute(_UNREAD_LAST, {"of": self._id}).all()
        self._read(rows)

    def read_earlier(self, partition: int, start: int) -> None:
        """Read the objects whose names begin before an offset, and that were not read yet.

        Args:
            partition: The Kafka partition.
            start: The offset.
        """
        of = (_column.topic_id == self._id, _column.partition == partition, _column.state == "listed")
        with begin() as connection:
            rows = connection.execute(select(landing_objects).where(*of, _column.start_offset < start)).all()
        self._read(rows)

    def look_again(self, addresses: Iterable[str]) -> None:
        """Record what the store has now under these addresses.

        Args:
            addresses: Addresses of recorded objects.
        """
        store = self._store()
        for path in sorted({self._path(address) for address in addresses}):
            name = self._parsed(path)
            if name is None:
                continue
            if (stored := store.find(path)) is None:
                with begin() as connection:
                    connection.execute(
                        delete(landing_objects).where(_column.topic_id == self._id, _column.path == path)
                    )
            else:
                self._record([(stored, name)])

    def _read(self, rows: Collection[Row]) -> None:
        """Read objects and record their offsets. One that was written again in the meantime is read as it is now."""
        while rows:
            store = self._store()
            with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="objects") as pool:
                read = list(pool.map(partial(self._offsets, store), rows))
            results = [each for each in read if each is not None]
            changed = [row.path for row, each in zip(rows, read, strict=True) if each is None]
            self._store_results(results)
            self.look_again(map(self.address, changed))
            rows = []
            if changed:
                of = (_column.topic_id == self._id, _column.state == "listed", _column.path.in_(changed))
                with begin() as connection:
                    rows = connection.execute(select(landing_objects).where(*of)).all()

    def _offsets(self, store: ObjectStore, row: Row) -> dict[str, Any] | None:
        """What an object holds, as columns; None if it no longer exists in this version."""
        of_row = {"of_path": row.path, "of_version": row.version}
        unknown = {"first_offset": None, "end_offset": None, "records": 0, "ranges": None, "proven": False}
        try:
            with _local_copy(store, row.path, row.version) as local:
                held = decoding.offsets_of(local, self._source, row.start_offset)
        except ObjectChanged:
            return None
        except decoding.DamagedObject as error:
            self._report(f"{self.address(row.path)} cannot be read: {error}")
            return {**of_row, **unknown, "state": "damaged"}
        if not held.offsets:
            return {**of_row, **unknown, "state": "read", "proven": True}
        first, end = held.offsets[0][0], held.offsets[-1][1]
        is_dense = len(held.offsets) == 1
        many = None if is_dense else MultiRange(Range(*part, bounds="[)") for part in held.offsets)
        return {
            **of_row,
            "state": "read",
            "first_offset": first,
            "end_offset": end,
            "records": held.records,
            "ranges": many,
            "proven": self._source.records == "envelope" or self._source.is_dense,
        }

    def _store_results(self, results: Sequence[dict[str, Any]]) -> None:
        if not results:
            return
        names = ("state", "first_offset", "end_offset", "records", "ranges", "proven")
        statement = (
            update(landing_objects)
            .where(_column.topic_id == self._id, _column.path == bindparam("of_path"))
            .where(_column.version == bindparam("of_version"))
            .values({name: bindparam(f"new_{name}", type_=_column[name].type) for name in names})
        )
        rows = [
            {"of_path": each["of_path"], "of_version": each["of_version"], **{f"new_{n}": each[n] for n in names}}
            for each in sorted(results, key=lambda each: each["of_path"])
        ]
        with begin() as connection:
            connection.execute(statement, rows)

    def _report(self, what: str) -> None:
        log.error("damaged object: topic=%s %s", self._topic.name, what)
        message = f"{self._topic.name}: {what}. Its records are read from Kafka ({AlarmKind.landing_gap.runbook})"
        with begin() as connection:
            add_to_alarm(connection, raw_table(self._topic), AlarmKind.landing_gap, message)

    def local_parquet(self, files: Iterable[tuple[str, str, int]], schema: Any, folder: Path) -> list[str]:
        """Write the records of objects to local Parquet files with the columns of the landing table.

        Args:
            files: (address, version, partition) of each object.
            schema: The Arrow schema of the columns, with their ids.
            folder: The folder for the local files.

        Returns:
            The paths of the local files, in the order of `files`.

        Raises:
            ObjectChanged: An object no longer exists in this version.
        """
        store = self._store()

        def write(numbered: tuple[int, tuple[str, str, int]]) -> str:
            number, (address, version, partition) = numbered
            path = self._path(address)
            name = self._parsed(path)
            assert name is not None
            target = folder / f"object-{number}-{Path(path).name}.parquet"
            with _local_copy(store, path, version) as local:
                _write(
                    decoding.records_of(local, self._source, name.start), self._topic.name, partition, schema, target
                )
            return str(target)

        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="objects") as pool:
            return list(pool.map(write, enumerate(files)))


@contextmanager
def _local_copy(store: ObjectStore, path: str, version: str) -> Iterator[Path]:
    """A local copy of an object in one version, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="object-") as folder:
        local = Path(folder) / "object"
        store.fetch(path, version, local)
        yield local


def _write(batches: Iterator[Any], topic: str, partition: int, schema: Any, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in batches:
            count = len(batch)
            known = {
                "topic": pa.array([topic] * count, pa.string()),
                "partition": pa.array([partition] * count, pa.int32()),
                "offset": batch["offset"],
                "timestamp": batch["timestamp"],
                "value": _as(batch["value"], schema.field("value").type),
            }
            # Headers are not read from objects. Rows without them are read from Kafka if a contract needs them.
            columns = [known[f.name].cast(f.type) if f.name in known else pa.nulls(count, f.type) for f in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _as(values: Any, kind: Any) -> Any:
    """The values as the landing table's type. In a text, bytes that are not UTF-8 are replaced."""
    import pyarrow as pa

    try:
        return values.cast(kind)
    except pa.ArrowInvalid:
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in values.to_pylist()], kind)


def _ranges_of(row: Row) -> Ranges:
    if row.ranges is None:
        return [(row.first_offset, row.end_offset)]
    return [(part.lower, part.upper) for part in row.ranges]


# The partitions, each found through the index: the table may have millions of rows.
_NUMBERS = """
    with recursive numbers as (
        (select partition from landing_objects where topic_id = :of order by partition limit 1)
        union all
        select (
            select o.partition from landing_objects o
            where o.topic_id = :of and o.partition > n.partition order by o.partition limit 1
        ) from numbers n where n.partition is not null
    )
"""
_PARTITIONS = text(f"{_NUMBERS} select partition from numbers where partition is not null order by partition")
_LAST_ROWS = f"""
    {_NUMBERS}
    select last.* from numbers n
    cross join lateral (
        select * from landing_objects o where o.topic_id = :of and o.partition = n.partition
        order by o.start_offset desc, o.path desc limit 1
    ) as last
    where n.partition is not null
"""
_LAST = text(_LAST_ROWS)
_UNREAD_LAST = text(f"{_LAST_ROWS} and last.state = 'listed'")
# An object of n lines ends where the next object begins, or at the sink's committed offset.
_PROVE = text(
    """
    update landing_objects o set proven = true
    where o.topic_id = :of and o.partition = :partition and o.state = 'read' and not o.proven and o.end_offset > :start
        and o.end_offset = coalesce(
            (
                select min(next.start_offset) from landing_objects next
                where next.topic_id = :of and next.partition = :partition and next.start_offset > o.start_offset
            ),
            cast(:committed as bigint)
        )
    """
)
