"""The search for records that Connect refuses, beside partitions that do not answer."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from include.streams.kafka.reading import ReadingStalled
from include.streams.landing import stepping


class Log:
    """A consumer of a topic: {partition: {offset: timestamp}}, one record of each partition in turn.

    It ends no partition: whatever is read behind the last record is still on its way.
    """

    def __init__(self, records: dict[int, dict[int, int]]) -> None:
        self.records = records
        self.assigned: dict[int, int] = {}

    def assign(self, partitions) -> None:
        self.assigned = {each.partition: each.offset for each in partitions}

    def pause(self, partitions) -> None:
        for each in partitions:
            del self.assigned[each.partition]

    def consume(self, count: int, timeout: float) -> list:
        found = []
        for partition, offset in self.assigned.items():
            if offset in self.records[partition]:
                self.assigned[partition] += 1
                found.append(record(partition, offset, self.records[partition][offset]))
        return found


def record(partition: int, offset: int, timestamp: int) -> SimpleNamespace:
    values = {"partition": partition, "offset": offset, "timestamp": (1, timestamp), "error": None}
    return SimpleNamespace(**{name: lambda value=value: value for name, value in values.items()})


@pytest.fixture(autouse=True)
def no_time(monkeypatch) -> None:
    """Each look at the clock is a second later than the one before."""
    clock = itertools.count()
    monkeypatch.setattr(stepping, "time", SimpleNamespace(monotonic=lambda: next(clock)))


def test_refused_records_are_found_beside_a_silent_partition():
    log = Log({0: {}, 1: {7: 1, 8: -5, 9: 1, 10: -9, 11: 1}, 2: {3: 1}})
    found = stepping._refused(log, "orders", {0: (0, 100), 1: (7, 100), 2: (3, 4)})
    assert found == {1: [8, 10]}
    # A partition that was read to its end is not fetched further.
    assert log.assigned.keys() == {0, 1}


def test_a_search_that_times_out_is_an_error_not_an_empty_result():
    with pytest.raises(ReadingStalled, match=r"orders: .* not read: \[0\]"):
        stepping._refused(Log({0: {}, 1: {0: 1}}), "orders", {0: (0, 9), 1: (0, 1)})


def test_records_after_the_end_of_the_search_are_not_stepped_over():
    assert stepping._refused(Log({0: {0: -5, 1: -1, 2: 1, 3: -5}}), "orders", {0: (0, 3)}) == {0: [0]}
