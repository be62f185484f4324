"""Recorded offsets without a record: only requested ones are loaded, and transactions do not fill the database."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import func, select

from include.streams.landing import gaps
from include.streams.landing.gaps import State, landing_gaps
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import operations

__all__ = ["operations"]

pytestmark = pytest.mark.integration


@pytest.fixture
def topic_id(operations) -> str:
    return uuid.uuid4().hex


def record(topic_id: str, *ranges: tuple[int, int], partition: int = 0, state: State = State.no_record) -> None:
    gaps.record_outcome("orders", topic_id, partition, state, list(ranges))


def settled(topic_id: str, starts: dict[int, int]) -> dict:
    with begin() as connection:
        return gaps.settled(connection, topic_id, starts)


def rows_of(topic_id: str) -> int:
    with begin() as connection:
        mine = select(func.count()).select_from(landing_gaps).where(landing_gaps.c.topic_id == topic_id)
        return connection.scalar(mine) or 0


def test_only_requested_partitions_are_loaded(topic_id):
    record(topic_id, (3, 4))
    record(topic_id, (5, 6), partition=1)
    assert settled(topic_id, {1: 0}) == {1: [(5, 6)]}
    assert settled(topic_id, {}) == {}


def test_holes_of_many_transactions_share_rows(topic_id):
    holes = [(n, n + 1) for n in range(0, 6_000, 2)]
    for first in range(0, len(holes), 30):
        record(topic_id, *holes[first : first + 30])
    assert rows_of(topic_id) <= len(holes) // gaps.MAX_RANGES + 1
    assert settled(topic_id, {0: 0}) == {0: holes}
    assert settled(topic_id, {0: 5_000})[0] == [hole for hole in holes if hole[1] > 5_000]


def test_adjacent_ranges_are_joined_and_repeats_change_nothing(topic_id):
    for _ in range(2):
        record(topic_id, (0, 2))
        record(topic_id, (2, 5), (7, 8))
        record(topic_id, (1, 4))
    assert rows_of(topic_id) == 1
    assert settled(topic_id, {0: 0}) == {0: [(0, 5), (7, 8)]}
    record(topic_id, (5, 6), state=State.lost)
    assert settled(topic_id, {0: 0}) == {0: [(0, 6), (7, 8)]}


def test_earlier_offsets_recorded_later_are_found(topic_id):
    record(topic_id, (100, 101))
    record(topic_id, (10, 11))
    assert settled(topic_id, {0: 50}) == {0: [(100, 101)]}
    assert settled(topic_id, {0: 0}) == {0: [(10, 11), (100, 101)]}
