"""What the Streams page reads from real services: consumers, claims, partitions, numbers; services may be away."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from include.streams import Package, Project, Registry
from include.streams.kafka import tasks, watch
from include.streams.operations import samples
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.pages.reading import read_only
from include.streams.streams_page import database
from include.streams.streams_page.views import Unknown, Views
from tests.integration.kafka.conftest import order

pytestmark = pytest.mark.integration


def read(function):
    with read_only() as connection:
        return function(connection)


def views_of(*consumers) -> Views:
    topics = {topic.name: topic for consumer in consumers for topic in consumer.topics}
    return Views(Project(Package(name="shop", topics=Registry(*topics.values()), consumers=consumers)), read)


@pytest.fixture
def consumer(make_topic, make_consumer):
    return make_consumer(make_topic(partitions=2))


def test_the_overview_counts_messages_and_claims(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"), order("b"), order("a"), b"not json", order("c", amount="many"))
    tasks.claim_messages(consumer, "run")
    send(topic, order("d"), partition=1)
    (row,) = views_of(consumer).overview()["consumers"]
    assert (row["lag"], row["handled"], row["duplicates"], row["dead_letters"]) == (1, 2, 1, 2)
    assert row["reasons"] == {"not_json": 1, "wrong_type": 1}
    assert (row["state"], row["open_claims"], row["alarms"]) == ("busy", 0, 0)
    assert "lag trigger" in row["waits_for"]
    assert row["per_minute"] == pytest.approx(5 / 5, abs=1)


def test_a_consumer_shows_its_open_claim_and_its_partitions(consumer, send):
    (topic,) = consumer.topics
    # -2 stands for an effect that fails.
    send(topic, order("a"), order("b", -2))
    tasks.claim_messages(consumer, "run")
    send(topic, order("c"))
    document = views_of(consumer).consumer(consumer.name)
    (claim,) = [claim for claim in document["claims"] if claim["closed_at"] is None]
    (part,) = [part for part in claim["ranges"] if part["end"]]
    assert (claim["run_id"], part["start"], part["end"], part["handled"]) == ("run", 0, 2, 0)
    first, second = document["partitions"]
    assert (first["position"], first["committed"], first["end"], first["lag"]) == (2, 2, 3, 1)
    assert (second["end"], second["lag"]) == (0, 0)
    assert document["unhandled"] == 2


def test_alarms_make_a_consumer_the_first_one(make_topic, make_consumer):
    well, late, broken = (make_consumer(make_topic(partitions=1)) for _ in range(3))
    kinds = {late: AlarmKind.lag, broken: AlarmKind.consumer_stopped}
    with begin() as connection:
        for consumer, kind in kinds.items():
            open_alarm(connection, consumer.name, kind, "<b>a text</b>")
    try:
        document = views_of(well, late, broken).overview()
        assert [row["name"] for row in document["consumers"]] == [broken.name, late.name, well.name]
        assert [row["state"] for row in document["consumers"]] == ["broken", "late", "well"]
        assert "a reset" in document["consumers"][0]["waits_for"]
        shown = {alarm["source"]: alarm for alarm in document["alarms"]}
        assert shown[late.name]["consumer"] == late.name
        assert shown[late.name]["runbook"] == "docs/runbooks/lag-grows.md"
    finally:
        with begin() as connection:
            for consumer, kind in kinds.items():
                close_alarm(connection, consumer.name, kind)


def test_a_check_leaves_a_sample_for_the_curve(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"))
    watch.check_consumer(consumer)
    views = views_of(consumer)
    (row,) = views.overview()["consumers"]
    assert row["curve"][-1] == 1
    assert row["sampled_at"] is not None
    (sample,) = views.consumer(consumer.name)["history"]
    assert (sample["topic"], sample["lag"]) == (topic.name, 1)


def test_intervals_are_counted_once_and_not_again_in_the_inbox(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"), order("b"), b"not json")
    tasks.claim_messages(consumer, "run")
    with begin() as connection:
        connection.execute(text("delete from outcome_counts"))
        connection.execute(text("delete from outcome_intervals"))
        older = "update inbox set recorded_at = recorded_at - interval '1 hour' where consumer = :name"
        connection.execute(text(older), {"name": consumer.name})
    later = datetime.now(UTC)
    assert samples.count_outcomes(seconds=60, now=later) == samples.COUNTED // samples.INTERVAL
    assert samples.count_outcomes(seconds=60, now=later) == 0
    send(topic, order("c"))
    tasks.claim_messages(consumer, "run 2")
    outcomes = read(database.read_history)["outcomes"][consumer.name, topic.name]
    assert outcomes == {"handled": 3, "dead_letter": 1, "reason:not_json": 1}


def test_a_broker_that_is_away_is_named_within_two_seconds(consumer, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_KAFKA_AWAY", '{"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:9"}}'
    )
    away = replace(consumer, conn_id="kafka_away")
    began = time.monotonic()
    document = views_of(away).overview()
    assert time.monotonic() - began < 5
    (row,) = document["consumers"]
    assert (row["lag"], row["handled"], row["state"]) == (None, 0, "unknown")
    assert [problem["service"] for problem in document["problems"]] == ["Kafka (kafka_away)"]


def test_a_database_that_is_away_is_named_and_the_page_still_lists_the_consumers(consumer):
    def refuse(function):
        raise ConnectionError("refused")

    topics = Registry(*consumer.topics)
    views = Views(Project(Package(name="shop", topics=topics, consumers=(consumer,))), refuse)
    document = views.overview()
    (row,) = document["consumers"]
    assert (row["name"], row["lag"], row["handled"], row["state"]) == (consumer.name, None, None, "unknown")
    assert [problem["service"] for problem in document["problems"]] == ["operational database"]


def test_an_unknown_name_is_refused(consumer):
    with pytest.raises(Unknown):
        views_of(consumer).consumer("nobody")
    with pytest.raises(Unknown):
        views_of(consumer).topic("nothing")


def test_old_samples_are_pruned(consumer):
    with begin() as connection:
        samples.record_lag(connection, consumer.name, {"old": 1}, {"old": timedelta(seconds=3)})
        connection.execute(
            text("update consumer_samples set sampled_at = now() - interval '3 days' where topic = 'old'")
        )
    project = Project(Package(name="shop", topics=Registry(*consumer.topics), consumers=(consumer,)))
    project.prune({"inbox_days": 480, "claims_days": 90, "outbox_days": 30, "alarms_days": 365}, seconds=60)
    with begin() as connection:
        assert connection.scalar(text("select count(*) from consumer_samples where topic = 'old'")) == 0
