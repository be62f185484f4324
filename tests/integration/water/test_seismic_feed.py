"""The task functions of ingest_seismic_feed against the simulated feed, a real broker and a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator
from confluent_kafka import Consumer, KafkaException, TopicPartition
from sqlalchemy import delete, select, update

from include.project import PROJECT
from include.streams.kafka.connection import client_config, consumer_config
from include.streams.kafka.producer import DeliveryFailed
from include.streams.operations.database import begin
from include.streams.operations.retention import prune
from include.water.feeds import seismic
from include.water.retention import PUBLISHED_KEPT, rules
from include.water.simulators.feed_server import server
from include.water.simulators.quakes import Quakes
from include.water.tables import published_seismic_events
from include.water.topics import SEISMIC_EVENTS, TOPICS, SeismicEvent
from tests.clients import reader_at
from tests.conftest import PROJECT as ROOT

pytestmark = pytest.mark.integration

DAG_FILE = ROOT / "dags" / "batch" / "ingest_seismic_feed.py"


class Clock:
    """The quakes of one fixed hour, at a time that the test chooses."""

    def __init__(self, quakes: Quakes, now: datetime) -> None:
        self.quakes, self.now = quakes, now

    def features(self, _: datetime, back: timedelta) -> list[dict[str, Any]]:
        return self.quakes.features(self.now, back)


@pytest.fixture
def feed(services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A feed, with tables and topics, and nothing published yet."""
    PROJECT.prepare()
    with begin() as connection:
        connection.execute(delete(published_seismic_events))
    start = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
    clock = Clock(Quakes(1, start, interval_seconds=20), start + timedelta(minutes=10))
    running = server(0, clock)  # type: ignore[arg-type]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("AIRFLOW_CONN_SEISMIC_FEED", f"http://127.0.0.1:{running.server_address[1]}")
    yield clock
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def since(feed: Clock) -> dict[str, list[int]]:
    """The end offsets of the topic and its dead-letter topic before the test."""
    return {name: ends(name) for name in (SEISMIC_EVENTS.name, SEISMIC_EVENTS.dead_letter_name)}


def ends(topic: str) -> list[int]:
    """The end offset of each partition; repeated while a new topic has no leader."""
    consumer = Consumer(consumer_config(client_config(), "test"))
    until = time.monotonic() + 15
    while True:
        try:
            partitions = sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
            offsets = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1] for n in partitions]
        except KafkaException:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            consumer.close()
            return offsets


def read(topic: str, since: dict[str, list[int]]) -> list[Any]:
    """Every record of the topic since then, read by an independent consumer."""
    places = (TopicPartition(topic, n, offset) for n, offset in enumerate(since[topic]))
    consumer = reader_at(consumer_config(client_config(), "test"), *places)
    expected = sum(ends(topic)) - sum(since[topic])
    records = consumer.consume(expected, timeout=20) if expected else []
    consumer.close()
    assert len(records) == expected
    assert all(record.error() is None for record in records)
    return records


def events(since: dict[str, list[int]]) -> list[SeismicEvent]:
    parsed = [SEISMIC_EVENTS.parse(record.value()) for record in read(SEISMIC_EVENTS.name, since)]
    return [event for event in parsed if isinstance(event, SeismicEvent)]


def produce(new: list[seismic.Event], topic: str | None = None) -> None:
    """Run the Dag's produce task with events as from XCom."""
    spec = importlib.util.spec_from_file_location("ingest_seismic_feed", DAG_FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    operator = module.ingest_seismic_feed().get_task("produce")
    assert isinstance(operator, ProduceToTopicOperator)
    operator.producer_function_args = [new]
    operator.topic = topic or operator.topic
    operator.execute({})  # type: ignore[arg-type]


def run_once() -> int:
    """Run all tasks; returns the number of produced events."""
    new = seismic.read_new_events("all_day", "run")
    if new:
        produce(new)
        seismic.record_published(event["event_id"] for event in new)
    return len(new)


def test_every_event_is_produced_once_keyed_by_its_quake(feed: Clock, since):
    shown = {feature["id"] for feature in feed.features(feed.now, timedelta(days=1))}
    assert run_once() == len(shown) > 20
    assert run_once() == 0
    produced = events(since)
    assert len(produced) == len(shown)
    assert {event.seismic_id for event in produced} == shown
    for record in read(SEISMIC_EVENTS.name, since):
        assert record.key().decode() == json.loads(record.value())["seismic_id"]


def test_a_revised_event_is_produced_again_and_an_unchanged_one_is_not(feed: Clock, since):
    run_once()
    before = {event.event_id for event in events(since)}
    feed.now += timedelta(minutes=1)
    assert run_once() > 0
    produced = [event.event_id for event in events(since)]
    assert len(produced) == len(set(produced))
    new = set(produced) - before
    revised = {event_id.split("@")[0] for event_id in new} & {event_id.split("@")[0] for event_id in before}
    assert revised
    shown = feed.features(feed.now, timedelta(days=1))
    assert {event.event_id for event in seismic.split(shown)[0].values()} <= set(produced)


def test_a_crash_after_the_produce_repeats_events_and_loses_none(feed: Clock, since):
    first = seismic.read_new_events("all_day", "run")
    produce(first)  # then the worker is killed, before it has recorded the events
    assert run_once() == len(first)
    ids = [event.event_id for event in events(since)]
    assert len(ids) == 2 * len(first)
    assert len(set(ids)) == len(first)
    assert run_once() == 0


def test_a_crash_before_the_produce_loses_nothing(feed: Clock, since):
    first = seismic.read_new_events("all_day", "run")
    assert run_once() == len(first)
    assert len(events(since)) == len(first)


def test_an_invalid_feature_becomes_one_dead_letter(feed: Clock, since):
    feed.quakes = Quakes(feed.quakes.seed, feed.quakes.since, feed.quakes.interval_seconds, bad_every=7)
    shown = feed.features(feed.now, timedelta(days=1))
    good, bad = seismic.split(shown)
    assert run_once() == len(good)
    assert run_once() == 0
    letters = read(SEISMIC_EVENTS.dead_letter_name, since)
    assert len(letters) == len(bad) > 2
    assert all(json.loads(letter.value()) in shown for letter in letters)
    for letter in letters:
        headers = dict(letter.headers())
        assert headers["feed"] == b"seismic_feed"
        assert headers["dlq.topic"] == b"seismic.events"
        assert headers["dlq.partition"] == b"-1"
        assert headers["dlq.consumer"] == b"ingest_seismic_feed"
        assert headers["dlq.reason"] in {b"wrong_type", b"missing_field", b"out_of_bounds"}
    assert len(events(since)) == len(good)


def test_a_run_sends_a_limited_number_of_events(feed: Clock, since, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seismic, "MAX_EVENTS_PER_RUN", 10)
    counts = [run_once() for _ in range(6)]
    assert counts[0] == 10
    assert counts[-1] == 0
    produced = events(since)
    assert len({event.event_id for event in produced}) == len(produced) == sum(counts)


def test_a_failed_delivery_fails_the_task(feed: Clock, services, monkeypatch: pytest.MonkeyPatch):
    new = seismic.read_new_events("all_day", "run")
    impatient = {**client_config(), "message.timeout.ms": 1500}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": impatient}))
    with pytest.raises(DeliveryFailed, match=r"topic no\.such\.topic"):
        produce(new, topic="no.such.topic")


def test_only_records_that_no_feed_shows_are_deleted(feed: Clock):
    run_once()
    old = datetime.now(UTC) - PUBLISHED_KEPT - timedelta(days=1)
    with begin() as connection:
        kept, forgotten, *_ = connection.scalars(select(published_seismic_events.c.event_id).order_by("event_id"))
        connection.execute(
            update(published_seismic_events)
            .where(published_seismic_events.c.event_id == forgotten)
            .values(published_at=old)
        )
    seismic.record_published(["another"])
    prune([rule for rule in rules(None) if rule.table is published_seismic_events], seconds=60)
    assert seismic.published([kept, forgotten, "another", "unknown"]) == {kept, "another"}


def test_preparing_the_services_again_changes_nothing(feed: Clock):
    # Without a connection to Kafka Connect, which other tests may have set, the output says that no topic lands.
    assert [change for change in PROJECT.prepare() if not change.startswith("no topic lands")] == []
    consumer = Consumer(consumer_config(client_config(), "test"))
    topics = consumer.list_topics(timeout=10).topics
    consumer.close()
    assert {name for topic in TOPICS for name in (topic.name, topic.dead_letter_name)} <= set(topics)
