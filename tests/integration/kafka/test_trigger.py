"""Lag starts a run soon, again if lag remains after a claim, and rarely if nobody claims."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from itertools import pairwise

import pytest

from include.streams.kafka import tasks
from include.streams.kafka.offsets import DESCRIBE_SECONDS, GroupOffsets, Partition
from include.streams.kafka.trigger import ConsumerLagTrigger, Tail, lag_watcher
from tests.clients import WithoutLeaders
from tests.integration.kafka.conftest import numbers, order

pytestmark = pytest.mark.integration


class Firings:
    """Runs a trigger as the triggerer does, and records the times at which it fired."""

    def __init__(self, trigger: ConsumerLagTrigger) -> None:
        self.trigger = trigger
        self.at: list[float] = []
        self.lags: list[int] = []

    async def __aenter__(self) -> "Firings":
        self.task = asyncio.create_task(self.collect())
        return self

    async def collect(self) -> None:
        async with aclosing(self.trigger.run()) as events:
            async for event in events:
                self.at.append(time.monotonic())
                self.lags.append(event.payload["lag"])

    async def until(self, count: int, timeout: float = 15) -> None:
        deadline = time.monotonic() + timeout
        while len(self.at) < count:
            assert not self.task.done(), self.task.exception()
            assert time.monotonic() < deadline, f"fired {len(self.at)} times, not {count}"
            await asyncio.sleep(0.01)

    async def __aexit__(self, *_) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def tries(monkeypatch) -> list[float]:
    """The times at which triggers started to watch: once, and again after each failure. Failures are detected soon."""
    monkeypatch.setattr("include.streams.kafka.offsets.REQUEST_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr("include.streams.kafka.trigger.REFRESH_SECONDS", 0.5)
    monkeypatch.setattr("include.streams.kafka.trigger.AWAY_FIRST_SECONDS", 0.2)
    watch, began = ConsumerLagTrigger._watch, []

    def watched(self, backoff):
        began.append(time.monotonic())
        return watch(self, backoff)

    monkeypatch.setattr(ConsumerLagTrigger, "_watch", watched)
    return began


async def until_failed(tries: list[float], times: int) -> None:
    until = time.monotonic() + 60
    while len(tries) <= times:
        assert time.monotonic() < until, f"it has failed {len(tries) - 1} times, not {times}"
        await asyncio.sleep(0.05)


def trigger_for(consumer, **kwargs) -> ConsumerLagTrigger:
    names = [topic.name for topic in consumer.topics]
    return ConsumerLagTrigger(topics=names, group=consumer.group, **kwargs)


def test_the_trigger_fires_when_a_message_arrives_and_not_before(make_topic, make_consumer, send):
    topic = make_topic()

    async def scenario():
        async with Firings(trigger_for(make_consumer(topic))) as firings:
            await asyncio.sleep(1.5)
            assert firings.at == []
            await asyncio.to_thread(send, topic, order(1))
            sent = time.monotonic()
            await firings.until(1, timeout=5)
            # Far below the 5 s between two full requests: the poll has found the message.
            assert firings.at[0] - sent < 2
            assert firings.lags == [1]

    asyncio.run(scenario())


def test_messages_that_wait_when_the_trigger_starts_fire_it_at_once(make_topic, make_consumer, send):
    topic = make_topic()
    send(topic, order(1), b"not even JSON", None)

    async def scenario():
        async with Firings(trigger_for(make_consumer(topic))) as firings:
            await firings.until(1)
            assert firings.lags == [3]

    asyncio.run(scenario())


def test_lag_that_remains_after_a_claim_fires_again_at_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=2, chunk_size=2)
    send(topic, *(order(n) for n in range(5)))

    async def scenario():
        async with Firings(trigger_for(consumer, min_interval=0.2)) as firings:
            for n in range(3):
                await firings.until(n + 1)
                await asyncio.to_thread(tasks.claim_messages, consumer, f"run {n}")
            await asyncio.sleep(1.5)
            assert firings.lags == [5, 3, 1]
            assert firings.at[2] - firings.at[0] < 4

    asyncio.run(scenario())
    assert len(numbers(topic)) == 5


def test_lag_that_nobody_claims_fires_with_backoff_despite_new_messages(make_topic, make_consumer, send, monkeypatch):
    monkeypatch.setattr("include.streams.kafka.trigger.BACKOFF_FIRST_SECONDS", 0.5)
    topic = make_topic()

    async def scenario():
        async with Firings(trigger_for(make_consumer(topic), min_interval=0.05)) as firings:
            until = time.monotonic() + 6
            while time.monotonic() < until:
                await asyncio.to_thread(send, topic, order("more"))
            gaps = [b - a for a, b in pairwise(firings.at)]
            # With waits of 0.5, 1 and 2 s: at 0, 0.5, 1.5 and 3.5 s.
            assert 3 <= len(firings.at) <= 5
            assert gaps == sorted(gaps)

    asyncio.run(scenario())


def test_the_trigger_finds_new_topics_and_new_partitions(make_topic, make_consumer, send, admin, monkeypatch):
    from datetime import timedelta

    from confluent_kafka.admin import NewPartitions

    from include.streams.contracts import Topic
    from tests.integration.kafka.conftest import Order

    monkeypatch.setattr("include.streams.kafka.trigger.REFRESH_SECONDS", 0.5)
    topic = make_topic(partitions=1)
    later = Topic(f"{topic.name}.later", Order, key="number", partitions=1, retention=timedelta(days=1))
    consumer = make_consumer(topic, later)

    async def scenario():
        async with Firings(trigger_for(consumer)) as firings:
            await asyncio.sleep(1)
            await asyncio.to_thread(make_topic, name=later.name, partitions=1)
            await asyncio.to_thread(send, later, order(1))
            await firings.until(1)
            await asyncio.to_thread(tasks.claim_messages, consumer, "first")
            for future in admin.create_partitions([NewPartitions(topic.name, 2)]).values():
                future.result(10)
            await asyncio.sleep(1)
            await asyncio.to_thread(send, topic, order(2), partition=1)
            await firings.until(2)

    asyncio.run(scenario())


def test_positions_after_the_logs_end_fire_so_that_a_run_alarms(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    with GroupOffsets(consumer.group) as group:
        group.commit({Partition(topic.name, 0): 50})

    async def scenario():
        async with Firings(trigger_for(consumer)) as firings:
            await firings.until(1)
            assert firings.lags == [0]

    asyncio.run(scenario())


def test_a_broker_that_is_away_delays_it_and_is_logged_once(make_topic, make_consumer, send, services, tries, caplog):
    topic = make_topic()
    consumer = make_consumer(topic)

    async def scenario():
        async with Firings(trigger_for(consumer)) as firings:
            await asyncio.sleep(1)
            await asyncio.to_thread(services.stop, "kafka")
            await until_failed(tries, 2)
            assert firings.at == []
            await asyncio.to_thread(services.start, "kafka")
            await asyncio.to_thread(send, topic, order(1))
            await firings.until(1, timeout=60)

    asyncio.run(scenario())
    said = [record.getMessage() for record in caplog.records if record.name == "include.streams.kafka.trigger"]
    assert len([line for line in said if "cannot fetch the lag" in line]) == 1
    assert any("the broker is back" in line for line in said)


def test_without_known_leaders_the_trigger_still_finds_the_next_message(make_topic, make_consumer, send):
    topic = make_topic(partitions=1)

    async def scenario() -> float:
        with GroupOffsets(make_consumer(topic).group) as group:
            current = await group.fetch_offsets([topic.name])
            group.consumer = WithoutLeaders(group.consumer)
            began = time.monotonic()
            waiting = asyncio.create_task(Tail(group).wait(current, seconds=30))
            await asyncio.to_thread(send, topic, order(1))
            await waiting
            return time.monotonic() - began

    assert asyncio.run(scenario()) < 15


def test_brokers_that_hang_occupy_no_threads_of_other_triggers(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic(partitions=1)
    send(topic, order(1))
    # A broker that accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        extra = {"bootstrap.servers": f"127.0.0.1:{silent.getsockname()[1]}"}
        monkeypatch.setenv("AIRFLOW_CONN_SILENT", json.dumps({"conn_type": "kafka", "extra": extra}))

        async def scenario() -> None:
            # As many threads as the triggerer has in a container with one core.
            threads = ThreadPoolExecutor(5)
            asyncio.get_running_loop().set_default_executor(threads)
            hanging = [ConsumerLagTrigger(topics=["t"], group=f"g{n}", conn_id="silent") for n in range(12)]
            async with AsyncExitStack() as stack:
                for trigger in hanging:
                    await stack.enter_async_context(Firings(trigger))
                # Their requests for descriptions got no answer; now they wait for metadata.
                await asyncio.sleep(2 * DESCRIBE_SECONDS[0])
                async with Firings(trigger_for(make_consumer(topic))) as firings:
                    # An occupied thread would be occupied for ten seconds.
                    await firings.until(1, timeout=8)

        asyncio.run(scenario())


def test_a_serialized_trigger_is_recreated_with_equal_arguments(make_topic, make_consumer):
    consumer = make_consumer(make_topic(), min_seconds_between_runs=2)
    trigger = lag_watcher(consumer).trigger
    classpath, kwargs = trigger.serialize()
    assert classpath == "include.streams.kafka.trigger.ConsumerLagTrigger"
    assert ConsumerLagTrigger(**kwargs).serialize() == (classpath, kwargs)
    assert kwargs["min_interval"] == 2
