"""Sets of offsets, as sorted lists of ranges [start, end) that neither overlap nor touch."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Ranges = list[tuple[int, int]]
# An end greater than every offset that Kafka can have.
MAX_OFFSET = 2**63 - 1


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All offsets of the ranges. The ranges may be unsorted and may overlap."""
    merged: Ranges = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def subtract(ranges: Ranges, others: Ranges) -> Ranges:
    """The offsets of `ranges` that are not in `others`. Both must have the form that `union` returns."""
    left: Ranges = []
    skip = 0
    for start, end in ranges:
        while skip < len(others) and others[skip][1] <= start:
            skip += 1
        at = skip
        while at < len(others) and others[at][0] < end:
            if others[at][0] > start:
                left.append((start, others[at][0]))
            start = max(start, others[at][1])
            at += 1
        if start < end:
            left.append((start, end))
    return left


def intersect(ranges: Ranges, others: Ranges) -> Ranges:
    """The offsets that are in both. Both must have the form that `union` returns."""
    return subtract(ranges, subtract(ranges, others))


def between(ranges: Ranges, start: int, end: int) -> Ranges:
    """The offsets of `ranges`, as `union` returns them, in [start, end); takes time only for the result."""
    first = bisect_right(ranges, start, key=lambda part: part[1])
    last = bisect_left(ranges, end, key=lambda part: part[0])
    return [(max(start, low), min(end, high)) for low, high in ranges[first:last]]


def total(ranges: Iterable[tuple[int, int]]) -> int:
    """How many offsets the ranges have."""
    return sum(end - start for start, end in ranges)


def of_numbers(numbers: Iterable[int]) -> Ranges:
    """Single offsets as ranges."""
    return union((number, number + 1) for number in numbers)


def text(ranges: Iterable[tuple[int, int]], limit: int = 20) -> str:
    """The first `limit` ranges as text for logs and alarms, and the number of the others."""
    listed = list(ranges)
    shown = ", ".join(f"[{start}, {end})" for start, end in listed[:limit])
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"
