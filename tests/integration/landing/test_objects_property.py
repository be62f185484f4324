"""Whatever a sink does to its objects, each complete record is read once at its own offset, and all others are gaps."""

from __future__ import annotations

import itertools
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.streams.contracts import PlainObjects
from include.streams.kafka.offsets import OffsetRange
from include.streams.lake.objects import ObjectChanged, StoredObject
from include.streams.landing import intervals, objects, units
from include.streams.landing.objects import Objects, Scope
from include.streams.landing.readiness import Named
from include.streams.landing.stored import FileOffsets
from tests.sinks import Sink

pytestmark = pytest.mark.integration

END = 40
SCHEMA = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("value", pa.string()),
    ]
)


class MemoryStore:
    """A bucket in memory, with a new version at each write."""

    def __init__(self) -> None:
        self.versions = itertools.count(1)
        self.stored: dict[str, tuple[str, bytes]] = {}
        self.listed = self.fetched = 0

    def put(self, path: str, content: bytes) -> None:
        self.stored[path] = (str(next(self.versions)), content)

    def list(self, prefix: str, start_at: str | None = None):
        for path in sorted(self.stored):
            if path.startswith(prefix) and path >= (start_at or ""):
                self.listed += 1
                yield self.find(path)

    def find(self, path: str) -> StoredObject | None:
        if path not in self.stored:
            return None
        version, content = self.stored[path]
        return StoredObject(path, version, len(content), datetime(2026, 1, 1, tzinfo=UTC))

    def fetch(self, path: str, version: str, local: Path) -> None:
        if path not in self.stored or self.stored[path][0] != version:
            raise ObjectChanged(path)
        self.fetched += 1
        local.write_bytes(self.stored[path][1])


def record(offset: int) -> bytes:
    return b'{"n":%d}' % offset


# (what happens, the first offset, how many offsets, how much of the object is written in percent).
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "empty", "cut", "remove", "read"]),
        st.integers(0, END - 1),
        st.integers(1, 15),
        st.integers(1, 99),
    ),
    max_size=14,
)
FORMS = st.sampled_from(
    [
        {"layout": "aiven", "extension": ""},
        {"layout": "confluent", "extension": ".json"},
        {"layout": "confluent-time", "extension": ".json.gz"},
        {"layout": "confluent", "extension": ".json.gz", "records": "values", "is_dense": True},
    ]
)


@pytest.fixture
def store(monkeypatch, operations):
    found = MemoryStore()
    monkeypatch.setattr(objects, "object_store", lambda *_: found)
    return found


def held_in(store: MemoryStore, complete: dict[str, set[int]]) -> set[int]:
    return {offset for path in store.stored for offset in complete.get(path, ())}


def read(landed: Objects, covered: intervals.Ranges, files: dict) -> list[tuple[int, str]]:
    """(offset, value) of each record, as the tasks of a run read them."""
    found = []
    held = [FileOffsets(file, ranges) for file, ranges in files.items()]
    held.sort(key=lambda each: (each.file.start, -each.file.end, each.file.path))
    for start, end in covered:
        pieces = units.slices(held, OffsetRange("t", "", 0, start, end), [])
        with tempfile.TemporaryDirectory() as folder:
            wanted = [(piece.path, piece.version, piece.partition) for piece in pieces]
            for piece, local in zip(pieces, landed.local_parquet(wanted, SCHEMA, Path(folder)), strict=True):
                rows = pq.read_table(local).to_pylist()
                # A run reads each offset once, from whichever copy.
                of_piece = {row["offset"]: row["value"] for row in rows if piece.start <= row["offset"] < piece.end}
                found += of_piece.items()
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, form=FORMS)
def test_each_complete_record_is_read_once_at_its_own_offset(store, steps, form):
    store.stored.clear()
    form = dict(form)
    extension: Any = form.pop("extension")
    source = PlainObjects(prefix="gs://b/topics", **form)
    sink = Sink("t", source, extension)
    landed = Objects(Named("t"), source, uuid.uuid4().hex, [0])
    complete: dict[str, set[int]] = {}
    for what, start, count, percent in steps:
        offsets = range(start, min(END, start + count))
        name = sink.name(0, start)
        content = sink.content({offset: record(offset) for offset in offsets})
        if what == "write":
            store.put(name, content)
            complete[name] = set(offsets)
        elif what == "empty":
            store.put(name, b"")
            complete[name] = set()
        elif what == "cut":
            part = content[: len(content) * percent // 100]
            store.put(name, part)
            # Of a compressed object, nothing counts; of a text, the lines whose end was written.
            lines = 0 if extension.endswith(".gz") else part.count(b"\n")
            ends = not extension.endswith(".gz") and len(part) < len(content) and content[len(part) :][:1] == b"\n"
            complete[name] = set(offsets[: lines + ends])
        elif what == "remove":
            store.stored.pop(name, None)
        else:
            landed.list_new(Scope.recent)
            landed.files(0, start, END)
    landed.list_new(Scope.all)
    landed.look_again(landed.address(path) for path in complete)
    landed.read_earlier(0, END)
    files = landed.files(0, 0, END)
    covered = intervals.union(part for ranges in files.values() for part in ranges)
    expected = held_in(store, complete)
    assert covered == intervals.of_numbers(sorted(expected))
    found = sorted(read(landed, covered, files))
    assert [offset for offset, _ in found] == sorted(expected)
    assert all(value.encode() == record(offset) for offset, value in found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    holes=st.sets(st.integers(0, END - 1), max_size=8),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=20),
    gone=st.sets(st.integers(0, 20), max_size=4),
)
def test_values_never_get_the_offset_of_another_record(store, holes, sizes, gone):
    store.stored.clear()
    source = PlainObjects(prefix="gs://b/topics", records="values")
    sink = Sink("t", source)
    landed = Objects(Named("t"), source, uuid.uuid4().hex, [0])
    # Offsets without a record, as after transactions; one writer; some of its objects are lost.
    left = [offset for offset in range(END) if offset not in holes]
    for number, size in enumerate(sizes):
        part, left = left[:size], left[size:]
        if part and number not in gone:
            store.put(sink.name(0, part[0]), sink.content({offset: record(offset) for offset in part}))
    landed.list_new(Scope.all)
    files = landed.files(0, 0, END)
    covered = intervals.union(part for ranges in files.values() for part in ranges)
    assert all(value.encode() == record(offset) for offset, value in read(landed, covered, files))


def test_a_plan_costs_as_much_as_its_claim_not_as_the_whole_prefix(store):
    source = PlainObjects(prefix="gs://b/topics")
    sink = Sink("t", source)
    landed = Objects(Named("t"), source, uuid.uuid4().hex, [0])

    def write(number: int) -> None:
        store.put(sink.name(0, 2 * number), sink.content({2 * number + n: record(2 * number + n) for n in (0, 1)}))

    def costs() -> tuple[int, int]:
        found = store.listed, store.fetched
        store.listed = store.fetched = 0
        return found

    for number in range(10_000):
        write(number)
    # The first listing finds all names, and reads no object.
    landed.list_new(Scope.recent)
    assert costs() == (10_000, 0)
    # A lane that begins reads the objects of its claim.
    assert len(landed.files(0, 0, 100)) == 50
    assert costs() == (0, 50)
    landed.files(0, 0, 100)
    assert costs() == (0, 0)
    # A lane that keeps up lists the last names, and reads the new object.
    write(10_000)
    landed.list_new(Scope.recent)
    landed.read_last()
    assert landed.ends() == {0: 20_002}
    assert len(landed.files(0, 20_000, 20_002)) == 1
    assert costs() == (objects.RECENT + 2, 1)
    # An offset is missing: more names are listed, and still not all.
    landed.list_new(Scope.wide)
    assert costs() == (objects.WIDE + 1, 0)
