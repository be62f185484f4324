"""Arithmetic of the lane, without a broker."""

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
def test_shares_use_up_the_total_and_give_nobody_more_than_wanted(wanted, total):
    shares = fair_shares({Partition("t", n): lag for n, lag in wanted.items()}, total)
    assert sum(shares.values()) == min(total, sum(wanted.values()))
    assert all(0 <= shares[Partition("t", n)] <= lag for n, lag in wanted.items())


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20), st.integers(1, 2000))
def test_nobody_gets_more_than_one_more_than_another_that_wanted_as_much(wanted, total):
    shares = fair_shares({Partition("t", n): lag for n, lag in enumerate(wanted)}, total)
    for n, lag in enumerate(wanted):
        share = shares[Partition("t", n)]
        if share < lag:
            assert share >= max(shares.values()) - 1


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(1, 100))
def test_chunks_hold_every_offset_once_and_only_the_last_is_not_full(lengths, chunk_size):
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


def found(**committed):
    return {Partition("t", int(name[1:])): PartitionOffsets("id", 0, 100, offset) for name, offset in committed.items()}


def fires(refire, clock, seconds, offsets):
    """At which seconds from now it fires, looked at eight times a second."""
    start, when = clock[0], []
    while clock[0] - start < seconds:
        if refire.is_due(offsets):
            when.append(round(clock[0] - start))
        clock[0] += 0.125
    return when


def test_a_stalled_consumer_gets_ten_runs_in_half_an_hour(clock):
    when = fires(trigger.Refire(0.5), clock, 1800, found(p0=5))
    gaps = [b - a for a, b in pairwise(when)]
    assert gaps == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]


def test_movement_fires_at_once_and_starts_the_backoff_anew(clock):
    refire = trigger.Refire(0.5)
    fires(refire, clock, 100, found(p0=5))
    assert fires(refire, clock, 12, found(p0=6)) == [0, 5]


def test_a_partition_that_is_away_for_a_moment_is_no_movement(clock):
    refire = trigger.Refire(0.5)
    assert fires(refire, clock, 2, found(p0=5, p1=5)) == [0]
    assert fires(refire, clock, 1, found(p0=5)) == []
    assert fires(refire, clock, 1, found(p0=5, p1=5)) == []


def test_it_never_fires_twice_within_the_interval(clock):
    refire = trigger.Refire(2)
    assert refire.is_due(found(p0=1))
    refire.forget()
    assert not refire.is_due(found(p0=2))
    clock[0] += 2
    assert refire.is_due(found(p0=2))


def test_what_retention_removed_is_no_lag_and_a_group_ahead_of_the_log_is_noticed():
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
def test_an_unsafe_connection_is_refused_by_name_and_setting(setting, value):
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
def test_a_consumer_whose_numbers_do_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"consumer mine: .*{message}"):
        Consumer(**{"name": "mine", "topics": ("topic",), "effect": "a:b", **settings})


def contract(name: str, **members: str) -> type[Contract]:
    """A contract as a module of its own would declare it."""
    body = {"__annotations__": {"version": Literal[1], "number": str}, "event_id": property(lambda self: self.number)}
    return type(name, (Contract,), {"__module__": __name__, **body, **members})


def test_contracts_of_one_name_in_one_consumer_are_refused():
    def consumer(*contracts: type[Contract]) -> Consumer:
        topics = [
            Topic(f"topic-{number}", each, key="number", partitions=1, retention=None)
            for number, each in enumerate(contracts)
        ]
        return Consumer(name="mine", topics=tuple(topics), effect="a:b")

    one, other = contract("Order"), contract("Order")
    with pytest.raises(ValueError, match="consumer mine: the contracts of two topics are both named Order"):
        consumer(one, other)
    # The same contract in two topics: an event is the same in both.
    consumer(one, one)
    consumer(one, contract("Order", contract_name="other.Order"))
    # A contract that is derived from another is another.
    consumer(one, type("Special", (one,), {"__module__": __name__}))
