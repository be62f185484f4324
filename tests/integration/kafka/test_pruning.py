"""Old rows are deleted while consumers work, and no message has a second effect because of that."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.reset import reset_consumer
from include.streams.operations.database import begin
from include.streams.operations.retention import Rule, prune, rules
from include.streams.operations.tables import claims, inbox
from tests.integration.kafka.conftest import numbers, open_claims, order

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
