"""Gaps, claimable offsets and files, computed from a snapshot of a landing table without any service."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.streams.kafka.offsets import OffsetRange, Partition, PartitionOffsets
from include.streams.landing import intervals
from include.streams.landing.gaps import Gap
from include.streams.landing.intervals import Ranges
from include.streams.landing.snapshot import LandingSnapshot
from include.streams.landing.units import NotLanded
from tests.unit.landing.test_units import held_files, numbers

NOW, HOUR = timedelta(), timedelta(hours=1)


def snapshot(
    files: dict[int, list[set[int]]],
    *,
    settled: dict[int, Ranges] | None = None,
    starts: dict[int, int] | None = None,
    begins: dict[int, int] | None = None,
    ends: dict[int, int] | None = None,
    log_ends: dict[int, int] | None = None,
    lost: Collection[int] = (),
    unanswered: Collection[int] = (),
    long_landed: dict[int, int] | None = None,
    max_offsets: int | None = None,
) -> LandingSnapshot:
    """A snapshot of these files: {partition: the offsets that each file holds}. The logs are 40 offsets long."""
    starts, ends, partitions = starts or {}, ends or {}, {*files}
    tops = {n: max(starts.get(n, 0), ends.get(n, 0), *(max(offsets) + 1 for offsets in files[n])) for n in partitions}
    return LandingSnapshot(
        topic="orders",
        topic_id="id",
        location="gs://landing/warehouse/raw/orders",
        columns=[],
        begins=begins or {},
        checked={n: (starts.get(n, 0), tops[n]) for n in partitions},
        ends=tops,
        files={n: held_files(files[n], n) for n in partitions},
        settled=settled or {},
        kafka={
            Partition("orders", n): PartitionOffsets("id", 0, (log_ends or {}).get(n, 40), leader_epoch=3)
            for n in partitions - {*unanswered}
        },
        lost={Partition("orders", n): "it has lost its end" for n in lost},
        unanswered={Partition("orders", n) for n in unanswered},
        long_landed=long_landed or {},
        max_offsets=max_offsets,
    )


OFFSETS = st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=5)
RANGES = st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)), max_size=4)


@given(OFFSETS, RANGES, st.integers(0, 20), st.integers(0, 25), st.integers(1, 35))
def test_a_claim_never_passes_a_gap_and_each_of_its_offsets_is_read_once(files, ranges, start, next_now, end):
    settled = intervals.union(ranges)
    found = snapshot({0: files}, settled={0: settled}, starts={0: start}, ends={0: end})
    there = set().union(*files) | numbers(settled)
    checked = set(range(*found.checked[0]))
    assert numbers(found.gaps()[0]) == checked - there
    # The consumer may have claimed since the snapshot, or have been reset.
    offsets = found.available({0: next_now})[Partition("orders", 0)]
    assert (offsets.topic_id, offsets.leader_epoch) == ("id", 3)
    claimable = set(range(next_now, offsets.end))
    assert claimable <= there
    assert offsets.end >= next_now
    # All landed and settled offsets up to the first gap are available.
    assert next_now < start or offsets.end not in there & checked
    if not claimable:
        return
    wanted = OffsetRange("orders", "id", 0, next_now, offsets.end)
    (pieces,) = found.slices([wanted]).values()
    held = {file.path: numbers(ranges) for file, ranges in found.files[0]}
    read = [n for piece in pieces for n in held[piece.path] if piece.start <= n < piece.end]
    assert sorted(read) == sorted(set().union(*files) & claimable)


def test_slices_of_offsets_that_have_not_landed_are_refused():
    found = snapshot({0: [{0, 1, 2}, {4, 5}]})
    with pytest.raises(NotLanded, match=r"not in the landing table: \[3, 4\)"):
        found.slices([OffsetRange("orders", "id", 0, 0, 6)])
    with pytest.raises(NotLanded):
        found.slices([OffsetRange("orders", "id", 1, 0, 1)])


def test_a_log_that_ends_before_the_claimed_offsets_is_reported():
    found = snapshot({0: [set(range(10))]}, log_ends={0: 5})
    assert found.available({0: 10})[Partition("orders", 0)].end == 5


def test_nothing_is_claimed_or_repaired_if_the_log_may_be_another():
    found = snapshot({n: [{0, 1, 2}, {5}] for n in range(3)}, lost=[0], unanswered=[1])
    available = found.available({0: 1, 1: 1, 2: 1})
    assert {partition.number: offsets.end for partition, offsets in available.items()} == {0: 1, 2: 3}
    assert [n for n in range(3) if found.is_comparable(gap_of(n, 3, 5))] == [2]


def test_a_claim_begins_where_the_table_begins():
    found = snapshot({0: [{7, 8}]}, begins={0: 7}, starts={0: 7})
    offsets = found.available({})[Partition("orders", 0)]
    assert (offsets.low, offsets.end) == (7, 9)


def gap_of(partition: int, start: int, end: int, age: timedelta = NOW) -> Gap:
    return Gap(OffsetRange("orders", "id", partition, start, end), age)


def test_a_gap_is_due_after_its_grace_or_if_later_offsets_are_old():
    found = snapshot({0: [{0}, {5}, {9}]}, long_landed={0: 6})
    inner, outer, old = gap_of(0, 1, 5), gap_of(0, 6, 9), gap_of(0, 6, 9, HOUR)
    assert found.due([inner, outer, old], HOUR) == [inner, old]
    assert found.due([inner, outer], NOW) == [inner, outer]


def test_only_gaps_within_the_share_of_a_claim_are_needed():
    found = snapshot({0: [{29}], 1: [{3}]}, max_offsets=10)
    cut = found.needed([gap_of(0, 0, 29), gap_of(1, 0, 3)])
    # Partition 1 wants four of the ten offsets, so partition 0 gets six.
    assert [(g.offsets.partition, g.offsets.start, g.offsets.end) for g in cut] == [(0, 0, 6), (1, 0, 3)]
    assert found.needed([gap_of(0, 6, 29)]) == []
    assert snapshot({0: [{29}]}).needed([gap_of(0, 0, 29)]) == [gap_of(0, 0, 29)]
