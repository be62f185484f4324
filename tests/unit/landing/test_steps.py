"""Sets of offsets, and the steps and spans in which a repair reads them, compared with plain sets of numbers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from include.streams.landing import intervals, repair
from include.streams.landing.intervals import Ranges

offsets = st.sets(st.integers(0, 300), max_size=80).map(intervals.of_numbers)


def numbers(ranges: Ranges) -> list[int]:
    return [number for start, end in ranges for number in range(start, end)]


@given(offsets, st.integers(0, 300), st.integers(0, 300))
def test_between_returns_the_offsets_inside(ranges, start, end):
    assert numbers(intervals.between(ranges, start, end)) == [n for n in numbers(ranges) if start <= n < end]


@given(offsets, st.integers(1, 50), st.integers(0, 10))
def test_steps_are_small_and_cover_all_ranges(ranges, size, through):
    before = repair.STEP_OFFSETS, repair.READ_THROUGH
    repair.STEP_OFFSETS, repair.READ_THROUGH = size, through
    try:
        steps = list(repair._steps(ranges))
        spans = [span for step in steps for span in repair._spans(step)]
    finally:
        repair.STEP_OFFSETS, repair.READ_THROUGH = before
    assert [n for step in steps for n in numbers(step)] == numbers(ranges)
    assert all(steps)
    for step in steps:
        assert intervals.total(step) <= size
        assert step == intervals.union(step)
    assert [n for span in spans for n in numbers(span)] == numbers(ranges)
    for span in spans:
        assert all(later[0] - earlier[1] <= through for earlier, later in pairwise(span))
        assert span[-1][1] - span[0][0] <= size + through
