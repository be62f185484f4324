"""Shares of a claim, chunks, the trigger's backoff, and refused settings, without a broker."""

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.streams.contracts import Contract, Topic
from include.streams.kafka import trigger
from include.streams.kafka.claims import Claimed, fair_shares
from include.streams.kafka.connection import UnsafeKafkaConnection, check
from include.streams.kafka.consumers import RETRIES, Consumer
from include.streams.kafka.offsets import OffsetRange, Partition, PartitionOffsets
from include.streams.kafka.tasks import split


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 1000), max_size=20), st.integers(1, 2000))
def test_shares_add_up_to_the_total_and_none_exceeds_its_demand(wanted, total):
    shares = fair_shares({Partition("t", n): lag for n, lag in wanted.items()}, total)
    assert sum(shares.values()) == min(total, sum(wanted.values()))
    assert all(0 <= shares[Partition("t", n)] <= lag for n, lag in wanted.items())


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20), st.integers(1, 2000))
def test_partitions_with_unmet_demand_get_equal_shares(wanted, total):
    shares = fair_shares({Partition("t", n): lag for n, lag in enumerate(wanted)}, total)
    for n, lag in enumerate(wanted):
        share = shares[Partition("t", n)]
        if share < lag:
            assert share >= max(shares.values()) - 1


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(1, 100))
def test_chunks_hold_every_offset_once_and_all_but_the_last_are_full(lengths, chunk_size):
    ranges = tuple(OffsetRange("t", "id", n, 10 * n, 10 * n + length) for n, length in enumerate(lengths))
    chunks = split(Claimed(7, ranges, (), 0), chunk_size)
    sizes = [sum(r["end"] - r["start"] for r in chunk["ranges"]) for chunk in chunks]
    assert all(size == chunk_size for size in sizes[:-1])
    offsets = [(r["partition"], o) for chunk in chunks for r in chunk["ranges"] for o in range(r["start"], r["end"])]
    assert offsets == [(r.partition, o) for r in ranges for o in range(r.start, r.end)]
    assert {chunk["claim_id"] for chunk in chunks} <= {7}


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(trigger.time, "monotonic", lambda: now[0])
    return now


def current(**committed):
    return {Partition("t", int(name[1:])): PartitionOffsets("id", 0, 100, offset) for name, offset in committed.items()}


def fires(backoff, clock, seconds, offsets):
    """The seconds from now at which it fires, if it is asked eight times a second."""
    start, when = clock[0], []
    while clock[0] - start < seconds:
        if backoff.is_due(offsets):
            when.append(round(clock[0] - start))
        clock[0] += 0.125
    return when


def test_a_stalled_consumer_gets_ten_runs_in_half_an_hour(clock):
    when = fires(trigger.FireBackoff(0.5), clock, 1800, current(p0=5))
    gaps = [b - a for a, b in pairwise(when)]
    assert gaps == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]


def test_a_moved_position_fires_at_once_and_restarts_the_backoff(clock):
    backoff = trigger.FireBackoff(0.5)
    fires(backoff, clock, 100, current(p0=5))
    assert fires(backoff, clock, 12, current(p0=6)) == [0, 5]


def test_a_partition_that_is_missing_for_a_moment_does_not_fire(clock):
    backoff = trigger.FireBackoff(0.5)
    assert fires(backoff, clock, 2, current(p0=5, p1=5)) == [0]
    assert fires(backoff, clock, 1, current(p0=5)) == []
    assert fires(backoff, clock, 1, current(p0=5, p1=5)) == []


def test_the_trigger_never_fires_twice_within_the_interval(clock):
    backoff = trigger.FireBackoff(2)
    assert backoff.is_due(current(p0=1))
    backoff.reset()
    assert not backoff.is_due(current(p0=2))
    clock[0] += 2
    assert backoff.is_due(current(p0=2))


def test_removed_offsets_are_no_lag_and_a_later_position_is_truncated():
    assert PartitionOffsets("id", 50, 50, 10).lag == 0
    assert PartitionOffsets("id", 0, 7).lag == 7
    assert PartitionOffsets("id", 0, 7, 9).truncated
    assert not PartitionOffsets("id", 0, 7, 7).truncated


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("enable.auto.commit", True),
        ("enable.auto.commit", "TRUE"),
        ("isolation.level", "read_uncommitted"),
        ("auto.offset.reset", "latest"),
        ("acks", 1),
        ("enable.idempotence", "false"),
        ("allow.auto.create.topics", "true"),
    ],
)
def test_an_unsafe_setting_is_refused_with_its_name_and_connection(setting, value):
    with pytest.raises(UnsafeKafkaConnection, match=f"connection my_kafka: {setting} is"):
        check("my_kafka", {"bootstrap.servers": "x", setting: value})


def test_a_safe_connection_is_accepted():
    check("my_kafka", {"bootstrap.servers": "x", "enable.auto.commit": "false", "acks": "all", "sasl.username": "u"})


def test_handling_tasks_are_retried_for_more_than_six_hours():
    first, last = RETRIES["retry_delay"].total_seconds(), RETRIES["max_retry_delay"].total_seconds()
    waits = [min(first * RETRIES["retry_exponential_backoff"] ** n, last) for n in range(RETRIES["retries"])]
    assert sum(waits) > 6 * 3600


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topics": ()}, "at least one topic"),
        ({"chunk_size": 0}, "at least one message"),
        ({"chunk_size": 10, "max_messages_per_claim": 5}, "at least one chunk"),
        ({"chunk_size": 1, "max_messages_per_claim": 5000}, "1024 mapped tasks"),
    ],
)
def test_a_consumer_with_contradictory_numbers_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"consumer mine: .*{message}"):
        Consumer(**{"name": "mine", "topics": ("topic",), "effect": "a:b", **settings})


def contract(name: str, **members: str) -> type[Contract]:
    """A contract class of this name, as if it were declared in its own module."""
    body = {"__annotations__": {"version": Literal[1], "number": str}, "event_id": property(lambda self: self.number)}
    return type(name, (Contract,), {"__module__": __name__, **body, **members})


def test_contracts_of_one_name_in_one_consumer_are_refused():
    def consumer(*contracts: type[Contract]) -> Consumer:
        topics = [
            Topic(f"topic-{number}", contract, key="number", partitions=1, retention=None)
            for number, contract in enumerate(contracts)
        ]
        return Consumer(name="mine", topics=tuple(topics), effect="a:b")

    first, second = contract("Order"), contract("Order")
    with pytest.raises(ValueError, match="consumer mine: the contracts of two topics are both named Order"):
        consumer(first, second)
    # Two topics may have the same contract: an event is the same in both.
    consumer(first, first)
    consumer(first, contract("Order", contract_name="other.Order"))
    # A derived contract has another name.
    consumer(first, type("Special", (first,), {"__module__": __name__}))
