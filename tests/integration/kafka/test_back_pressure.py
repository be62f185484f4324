"""One Dag run per message, with more messages than runs can handle: keys wait in Kafka, not in Airflow's queue."""

import asyncio

import pytest

from include.streams.kafka import tasks
from include.streams.kafka.consumers import Shape
from tests.integration.kafka.conftest import alarms, committed, numbers, open_claims, order
from tests.integration.kafka.test_claims import remake
from tests.integration.kafka.test_partition_keys import grow_older
from tests.integration.kafka.test_trigger import Firings, trigger_for

pytestmark = pytest.mark.integration


@pytest.fixture
def lane(make_topic, make_consumer, send):
    """A consumer that claims two messages at once, and seven messages in one partition."""
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic, shape=Shape.per_message, max_messages_per_claim=2, chunk_size=2, max_lag=1)
    send(topic, *(order(n) for n in range(7)))
    return topic, consumer


def test_no_keys_are_claimed_while_two_claims_are_unhandled(lane):
    topic, consumer = lane
    keys = [tasks.claim_partition_keys(consumer, f"run {n}") for n in range(4)]
    assert [len(claimed) for claimed in keys] == [2, 2, 0, 0]
    tasks.handle_message(consumer, keys[0][0], "run of a key")
    assert tasks.claim_partition_keys(consumer, "three are unhandled") == []
    tasks.handle_message(consumer, keys[0][1], "run of a key")
    assert tasks.claim_partition_keys(consumer, "two are unhandled") == [f"{topic.name}-0-4", f"{topic.name}-0-5"]


def test_messages_that_are_not_claimed_stay_visible_as_lag(lane, admin):
    topic, consumer = lane
    for n in range(4):
        tasks.claim_partition_keys(consumer, f"run {n}")
    # The committed offsets do not move, so the trigger starts runs at growing intervals.
    assert committed(admin, consumer.group, topic) == {0: 4}
    assert "lag" in alarms(consumer)
    assert open_claims(consumer) == 2


def test_a_retried_fan_out_gets_its_keys_while_two_claims_are_unhandled(lane):
    _, consumer = lane
    first = tasks.claim_partition_keys(consumer, "first")
    tasks.claim_partition_keys(consumer, "second")
    assert tasks.claim_partition_keys(consumer, "third") == []
    assert tasks.claim_partition_keys(consumer, "first") == first


def test_failed_runs_block_no_claim_if_the_worker_has_no_queue(lane):
    _, consumer = lane
    keys = []
    for n in range(4):
        keys += tasks.claim_partition_keys(consumer, f"run {n}", worker_has_queue=lambda: False)
        grow_older(consumer, 1)
    assert len(keys) == 7
    for key in keys:
        tasks.handle_message(consumer, key, "run of a key")
    assert numbers(consumer.topics[0]) == [str(n) for n in range(7)]


def test_keys_that_are_not_runs_yet_count_as_the_workers_queue(lane):
    _, consumer = lane
    keys = [tasks.claim_partition_keys(consumer, f"run {n}", worker_has_queue=lambda: False) for n in range(3)]
    assert [len(claimed) for claimed in keys] == [2, 2, 0]


def test_the_trigger_starts_few_runs_while_nothing_is_claimed(lane, monkeypatch):
    monkeypatch.setattr("include.streams.kafka.trigger.BACKOFF_FIRST_SECONDS", 1.0)
    _, consumer = lane
    for n in range(2):
        tasks.claim_partition_keys(consumer, f"run {n}")

    async def scenario() -> list[float]:
        async with Firings(trigger_for(consumer, min_interval=0.05)) as firings:
            for n in range(2):
                await firings.until(n + 1)
                await asyncio.to_thread(tasks.claim_partition_keys, consumer, f"refused {n}")
            await asyncio.sleep(1)
            return firings.at

    # The second event comes after 1 s, and the next one not within 2 s, although runs have ended.
    first, second = asyncio.run(scenario())
    assert second - first >= 1


def test_the_workers_queue_is_looked_up_only_when_a_claim_is_blocked(lane):
    _, consumer = lane

    def ask() -> bool:
        raise AssertionError("a single message would wait for the answer")

    assert len(tasks.claim_partition_keys(consumer, "run", worker_has_queue=ask)) == 2


def test_keys_that_wait_in_the_queue_are_not_emitted_again(lane):
    _, consumer = lane
    keys = tasks.claim_partition_keys(consumer, "run")
    grow_older(consumer, 110)
    assert tasks.claim_keys_again(consumer, worker_is_idle=False, worker_has_queue=True) == []
    # A worker whose queue is never empty must not hide keys that were lost.
    grow_older(consumer, 11)
    assert tasks.claim_keys_again(consumer, worker_is_idle=False, worker_has_queue=True) == keys


def test_a_claim_that_cannot_be_read_delays_the_keys_of_no_other_claim(make_topic, make_consumer, send, admin):
    gone, healthy = make_topic(partitions=1), make_topic(partitions=1)
    consumer = make_consumer(gone, healthy, shape=Shape.per_message)
    send(gone, order("gone"))
    tasks.claim_partition_keys(consumer, "claims what is deleted")
    send(healthy, order("a"))
    keys = tasks.claim_partition_keys(consumer, "claims what stays")
    remake(admin, gone, make_topic)
    grow_older(consumer, 11)
    assert tasks.claim_keys_again(consumer, worker_is_idle=False) == keys


def test_a_claim_that_cannot_be_read_is_named_and_waits_for_its_next_try(make_topic, make_consumer, send, admin):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("gone"))
    tasks.claim_partition_keys(consumer, "claims what is deleted")
    remake(admin, topic, make_topic)
    grow_older(consumer, 11)
    with pytest.raises(tasks.ClaimsUnreadable, match=f"claims what is deleted.*{topic.name} was deleted"):
        tasks.claim_keys_again(consumer, worker_is_idle=False)
    assert tasks.claim_keys_again(consumer, worker_is_idle=False) == []
