"""Old rows are deleted while consumers work, and no message has a second effect because of that."""

import json
import threading
import time
from datetime import timedelta

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from sqlalchemy import text

from include.streams import Package, Project, Registry, Topic
from include.streams.kafka import tasks
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.reset import reset_consumer
from include.streams.kafka.retention import inbox_days
from include.streams.operations.database import begin
from include.streams.operations.retention import Rule, prune, rules
from include.streams.operations.tables import claims, inbox
from tests.integration.kafka.conftest import Order, numbers, open_claims, order

pytestmark = pytest.mark.integration

DAYS = {"inbox_days": 480, "claims_days": 1, "outbox_days": 1, "alarms_days": 1}


def test_a_message_repeated_within_the_retention_acts_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(order(n) for n in range(5)))
    tasks.claim_messages(consumer, "first")
    with begin() as connection:
        for statement in (
            "update inbox set recorded_at = now() - interval '479 days' where consumer = :name",
            "update claims set closed_at = now() - interval '479 days' where consumer = :name",
        ):
            connection.execute(text(statement), {"name": consumer.name})
    assert prune(rules([topic], **DAYS), seconds=30)["claims"] >= 1
    # The same messages at the same offsets, and the same events at other offsets.
    reset_consumer(consumer.name, topic.name)
    send(topic, *(order(n) for n in range(5)))
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == [str(n) for n in range(5)]
    assert open_claims(consumer) == 0


def test_a_message_repeated_after_its_inbox_row_is_pruned_acts_twice(make_topic, make_consumer, send):
    # This shows that the test above could fail.
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")
    prune([Rule(inbox, "recorded_at", timedelta(0))], seconds=30)
    reset_consumer(consumer.name, topic.name)
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["1", "1"]


def kept(topic: Topic, wanted: int = 480) -> int | None:
    return inbox_days(wanted, [(CONN_ID, topic)])


def milliseconds(days: int) -> str:
    return str(days * 86_400_000)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 480),
        # Shorter than declared.
        ({"retention.ms": "60000"}, 480),
        # The messages, the dead letters (365), and twice until a segment is deleted (7).
        ({"retention.ms": milliseconds(1_000)}, 1_000 + 365 + 14),
        ({"segment.ms": milliseconds(200)}, 1 + 365 + 200 + 7),
        ({"retention.ms": "-1"}, None),
        ({"retention.ms": str(2**63 - 1)}, 365 * 1_000 + 365 + 14),
        ({"cleanup.policy": "compact"}, None),
        ({"cleanup.policy": "compact,delete"}, 480),
    ],
)
def test_inbox_rows_are_kept_as_long_as_the_broker_keeps_messages(make_topic, config, expected):
    assert kept(make_topic(config=config)) == expected


def test_the_brokers_retention_of_dead_letters_counts_too(make_topic, admin):
    topic = make_topic()
    longer = ConfigEntry("retention.ms", milliseconds(500), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic.dead_letter_name, incremental_configs=[longer])
    admin.incremental_alter_configs([resource])[resource].result(10)
    until = time.monotonic() + 20
    while kept(topic) != 1 + 500 + 14:
        # The broker answers before it has applied the change.
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_topic_that_does_not_exist_yet_needs_what_it_declares(services):
    assert kept(Topic("orders.not-yet", Order, key="number", partitions=1, retention=timedelta(days=1))) == 480


def test_while_the_brokers_settings_cannot_be_read_no_inbox_row_is_deleted(make_topic, monkeypatch, caplog):
    topic = make_topic()
    nobody = json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:1"}})
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_AWAY", nobody)
    assert inbox_days(480, [(CONN_ID, topic), ("kafka_away", topic)]) is None
    assert "no inbox rows are deleted: the settings of the topics on kafka_away cannot be read" in caplog.text


def test_a_message_that_the_broker_still_has_acts_once_after_a_prune(make_topic, make_consumer, send):
    topic = make_topic(config={"retention.ms": milliseconds(1_000)})
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")
    with begin() as connection:
        statement = "update inbox set recorded_at = now() - interval '900 days' where consumer = :name"
        connection.execute(text(statement), {"name": consumer.name})
    project = Project(Package(name="shop", topics=Registry(topic), consumers=(consumer,)))
    project.prune(DAYS, seconds=30)
    reset_consumer(consumer.name, topic.name)
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["1"]


def test_claims_and_pruning_of_closed_claims_can_run_at_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=6, chunk_size=2)
    send(topic, *(order(n) for n in range(120)))
    stopped = threading.Event()
    removed: list[int] = []
    errors: list[Exception] = []

    def prune_all_the_time() -> None:
        at_once = [Rule(claims, "closed_at", timedelta(0), "closed_at is not null")]
        while not stopped.is_set():
            removed.append(prune(at_once, seconds=5, batch_rows=3)["claims"])

    def work(worker: int) -> None:
        try:
            for n in range(10):
                run_id = f"{worker}-{n}"
                for chunk in tasks.claim_messages(consumer, run_id):
                    tasks.handle_chunk(consumer, chunk, run_id)
        except Exception as error:
            errors.append(error)

    pruner = threading.Thread(target=prune_all_the_time)
    workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in [pruner, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stopped.set()
    pruner.join()
    assert errors == []
    assert sum(removed) > 0
    assert sorted(map(int, numbers(topic))) == list(range(120))
    assert open_claims(consumer) == 0


def test_an_open_claim_keeps_its_ranges_however_old_it_is(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=1, max_messages_per_claim=3)
    send(topic, *(order(n) for n in range(3)))
    chunks = tasks.claim_messages(consumer, "run")
    with begin() as connection:
        age = text("update claims set claimed_at = now() - interval '900 days' where consumer = :name")
        connection.execute(age, {"name": consumer.name})
    prune(rules([topic], **DAYS), seconds=30)
    first, *others = tasks.claim_messages(consumer, "run")
    assert [(r["start"], r["end"]) for r in first["ranges"]] == [(0, 1)]
    assert others == chunks, "a cleared run has the ranges it had"
