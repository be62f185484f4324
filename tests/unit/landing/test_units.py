"""Sets of offsets, and the units of work of a claim: each offset is read once, and none is missing."""

import itertools
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.streams.contracts import Contract, Topic
from include.streams.kafka.offsets import OffsetRange
from include.streams.landing import intervals
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.index import contiguous_end
from include.streams.landing.stored import DataFileRange, FileOffsets
from include.streams.landing.units import FileSlice, NotLanded, batches, offset_ranges, slices, work_unit


class Order(Contract):
    version: Literal[1]
    number: str

    @property
    def event_id(self) -> str:
        return self.number


ORDERS = Topic("orders", Order, key="number", partitions=1, retention=timedelta(days=1), landed=True)
RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def numbers(ranges) -> set[int]:
    return {n for start, end in ranges for n in range(start, end)}


def consumer(**kwargs) -> LandingConsumer:
    return LandingConsumer(name="lane", topic=ORDERS, **{"min_messages_per_unit": 1, **kwargs})


@given(RANGES, RANGES)
def test_sets_of_offsets_behave_like_sets(a, b):
    one, other = intervals.union(a), intervals.union(b)
    assert numbers(one) == numbers(a)
    assert intervals.total(one) == len(numbers(a))
    assert all(first[1] < second[0] for first, second in itertools.pairwise(one))
    assert numbers(intervals.subtract(one, other)) == numbers(a) - numbers(b)
    assert numbers(intervals.intersect(one, other)) == numbers(a) & numbers(b)
    end = contiguous_end(5, one)
    assert end not in numbers(a)
    assert set(range(5, end)) <= numbers(a)


def held_files(files: list[set[int]], partition: int = 0) -> list[FileOffsets]:
    """Files that hold exactly these offsets, sorted by first offset."""
    found = []
    for number, offsets in enumerate(files):
        path = f"gs://landing/{partition}-{number}.parquet"
        file = DataFileRange(path, partition, min(offsets), max(offsets) + 1, len(offsets), 1)
        found.append(FileOffsets(file, intervals.of_numbers(offsets)))
    return sorted(found, key=lambda held: (held.file.start, -held.file.end, held.file.path))


@given(st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=6), st.integers(0, 30), st.data())
def test_each_offset_is_read_once_or_reported_as_missing(files, start, data):
    wanted = OffsetRange("orders", "id", 0, start, data.draw(st.integers(start + 1, 31)))
    landed = held_files(files)
    there = set().union(*files) & set(range(wanted.start, wanted.end))
    holes = intervals.of_numbers(set(range(wanted.start, wanted.end)) - there)
    if holes:
        with pytest.raises(NotLanded):
            slices(landed, wanted, [])
    pieces = slices(landed, wanted, holes)
    held = {f"gs://landing/0-{number}.parquet": offsets for number, offsets in enumerate(files)}
    read = [n for piece in pieces for n in held[piece.path] if piece.start <= n < piece.end]
    assert sorted(read) == sorted(there)
    # Together they are the range, so that what a run has done can be told from its units.
    if pieces:
        assert [p.start for p in pieces] == [wanted.start, *(p.end for p in pieces[:-1])]
        assert pieces[-1].end == wanted.end


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 20), st.integers(1, 100))
def test_batches_keep_order_and_never_exceed_the_limit(sizes, max_units, least):
    pieces, start = [], 0
    for number, size in enumerate(sizes):
        pieces.append(FileSlice(str(number), 0, start, start + size))
        start += size
    units = batches(consumer(max_units=max_units, min_messages_per_unit=least), pieces)
    assert [piece for batch in units for piece in batch] == pieces
    assert all(units)
    assert len(units) == min(len(sizes), max_units, -(-sum(sizes) // least))


def test_two_thousand_files_become_the_allowed_number_of_even_units():
    pieces = [FileSlice(str(n), n % 4, n // 4 * 500, n // 4 * 500 + 500) for n in range(2000)]
    pieces.sort(key=lambda piece: (piece.partition, piece.start))
    units = batches(consumer(max_units=1000), pieces)
    assert {sum(map(len, batch)) for batch in units} == {1000}
    assert len(units) == 1000


def test_small_files_share_a_unit():
    pieces = [FileSlice(str(n), 0, n * 10, n * 10 + 10) for n in range(100)]
    (only,) = batches(consumer(min_messages_per_unit=50_000), pieces)
    made = work_unit(7, 0, only, logs={0: "a log"}, staging="gs://landing/staging/lane/7", columns=[])
    assert made["ranges"] == [{"partition": 0, "start": 0, "end": 1000, "log": "a log"}]
    assert made["files"][3] == {"path": "3", "partition": 0, "start": 30, "end": 40}
    assert made["claim_id"] == 7
    assert offset_ranges(ORDERS, made) == [OffsetRange("orders", "a log", 0, 0, 1000)]


def test_the_largest_plan_stays_small():
    """It is one value in Airflow's database: what each unit repeats of the plan must not outweigh its files."""
    columns = [{"id": n, "name": f"column {n}", "type": "timestamptz"} for n in range(8)]
    path = "gs://landing/warehouse/raw/meter_readings/data/partition=11/00000-0-{}.parquet"
    pieces = [FileSlice(path.format(f"{n:036}"), n % 12, n * 500, n * 500 + 500) for n in range(2_000)]
    logs = {partition: "b" * 22 for partition in range(12)}
    staging = "gs://landing/staging/aggregate_meter_readings/123456"
    units = [
        work_unit(123_456, number, some, logs=logs, staging=staging, columns=columns)  # type: ignore[arg-type]
        for number, some in enumerate(batches(consumer(max_units=256), pieces))
    ]
    assert len(units) == 256
    files = len(json.dumps([unit["files"] for unit in units]))
    assert len(json.dumps(units)) < 2 * files < 1_000_000


def test_units_by_partition_hold_one_partition_each():
    pieces = [FileSlice(f"{p}-{n}", p, n * 10, n * 10 + 10) for p in range(3) for n in range(5)]
    units = batches(consumer(map_by="partition"), pieces)
    assert [{piece.partition for piece in batch} for batch in units] == [{0}, {1}, {2}]
    assert len(batches(consumer(map_by="partition", max_units=2), pieces)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_units": 1024}, "max_units is 1024"),
        ({"map_by": "row"}, "map_by is 'row'"),
        ({"min_messages_per_unit": 0}, "min_messages_per_unit is 0"),
    ],
)
def test_a_consumer_with_invalid_settings_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        consumer(**settings)


def test_a_consumer_of_a_topic_that_is_not_landed_is_refused():
    topic = SimpleNamespace(name="orders", landed=False)
    with pytest.raises(ValueError, match="declare landed=True"):
        LandingConsumer(name="lane", topic=topic)  # type: ignore[arg-type]
