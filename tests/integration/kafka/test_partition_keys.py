"""One Dag run per message: claims become partition keys, and each key is handled once."""

from dataclasses import replace

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.reset import reset_consumer
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import effects, numbers, open_claims, order, read_all, whole_run
from tests.integration.kafka.test_claims import remake
from tests.integration.kafka.test_handling import outcomes, transact

pytestmark = pytest.mark.integration


def test_every_message_has_a_key_and_its_run_closes_the_claim(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    send(topic, order("c"), partition=1)
    keys = tasks.claim_partition_keys(consumer, "fan out")
    assert keys == [f"{topic.name}-0-0", f"{topic.name}-0-1", f"{topic.name}-1-0"]
    for key in reversed(keys):
        assert open_claims(consumer) == 1
        tasks.handle_message(consumer, key, f"run of {key}")
    assert effects(topic) == [(0, 0, "a"), (0, 1, "b"), (1, 0, "c")]
    assert open_claims(consumer) == 0


def test_handling_a_key_again_has_no_second_effect(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    for run in ("first", "second"):
        tasks.handle_message(consumer, key, run)
    assert numbers(topic) == ["a"]


def test_an_older_key_takes_no_message_of_a_recreated_topic(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("old"))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    with begin() as connection:
        ages_ago = text("update claims set claimed_at = claimed_at - interval '10 min' where consumer = :name")
        connection.execute(ages_ago, {"name": consumer.name})
    remake(admin, topic, make_topic)
    send(topic, order("new"))
    with pytest.raises(AirflowFailException, match="recreated"):
        tasks.handle_message(consumer, key, "run")
    assert numbers(topic) == []


def test_a_recreated_topics_message_handled_under_an_old_key_acts_once(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("old"))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    remake(admin, topic, make_topic)
    send(topic, order("new"))
    tasks.handle_message(consumer, key, "run of the old claim")
    reset_consumer(consumer.name, topic.name)
    (key,) = tasks.claim_partition_keys(consumer, "fan out again")
    tasks.handle_message(consumer, key, "run of the new claim")
    assert numbers(topic) == ["new"]


def test_a_cleared_claiming_run_returns_only_open_keys(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    first, second = tasks.claim_partition_keys(consumer, "fan out")
    tasks.handle_message(consumer, first, "run")
    send(topic, order("not of this claim"))
    assert tasks.claim_partition_keys(consumer, "fan out") == [second]


def test_invalid_messages_and_holes_need_no_run(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, b"bad")
    transact(topic, topic.name, order("aborted"), commit=False)
    send(topic, order("good"), b"bad too")
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    assert open_claims(consumer) == 1
    tasks.handle_message(consumer, key, "run")
    assert numbers(topic) == ["good"]
    assert {letter.value() for letter in read_all(topic.dead_letter_name)} == {b"bad", b"bad too"}
    assert outcomes(consumer) == {"handled": 1, "dead_letter": 2}
    assert open_claims(consumer) == 0


def test_a_claim_of_only_invalid_messages_and_holes_closes_at_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, b"bad")
    transact(topic, topic.name, order("aborted"), commit=False)
    assert tasks.claim_partition_keys(consumer, "fan out") == []
    assert open_claims(consumer) == 0


def test_a_key_that_was_never_claimed_is_refused(make_topic, make_consumer, send):
    topic = make_topic()
    send(topic, order("a"))
    consumer = make_consumer(topic, shape=Shape.per_message)
    with pytest.raises(ValueError, match=f"{topic.name}-0-0"):
        tasks.handle_message(consumer, f"{topic.name}-0-0", "run")


def test_the_message_of_a_key_can_be_read_without_handling_it(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), key=b"k", headers=[("from", b"app")])
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    message = tasks.read_message(consumer, key)
    assert (message.event.number, message.key, message.headers) == ("a", b"k", (("from", b"app"),))
    assert str(message) == f"{topic.name}-0@0"
    assert outcomes(consumer) == {}


def grow_older(consumer, minutes: int) -> None:
    """Make the consumer's claims and emissions older by this time."""
    with begin() as connection:
        statement = text(
            "update claims set claimed_at = claimed_at - :age * interval '1 minute', "
            "emitted_at = emitted_at - :age * interval '1 minute' where consumer = :name"
        )
        connection.execute(statement, {"age": minutes, "name": consumer.name})


def test_keys_without_runs_are_emitted_again_with_doubled_waits(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    first, second = tasks.claim_partition_keys(consumer, "fan out")
    tasks.handle_message(consumer, first, "run")
    emitted = []
    for _ in range(7):
        grow_older(consumer, 9)
        emitted.append(tasks.claim_keys_again(consumer, worker_is_idle=False))
    # Ten minutes after the first emission, then after twenty, then after forty.
    assert emitted == [[], [second], [], [], [second], [], []]


def test_keys_are_emitted_again_sooner_while_no_run_is_queued_or_running(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"))
    keys = tasks.claim_partition_keys(consumer, "fan out")
    assert tasks.claim_keys_again(consumer, worker_is_idle=True) == []
    grow_older(consumer, 3)
    assert tasks.claim_keys_again(consumer, worker_is_idle=False) == []
    assert tasks.claim_keys_again(consumer, worker_is_idle=True) == keys


def test_keys_of_a_run_that_failed_before_emitting_are_emitted(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, b"bad", order("a"))
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_open_keys", None)
        with pytest.raises(TypeError):
            tasks.claim_partition_keys(consumer, "fan out")
    grow_older(consumer, 11)
    (key,) = tasks.claim_keys_again(consumer, worker_is_idle=False)
    tasks.handle_message(consumer, key, "run")
    assert numbers(topic) == ["a"]
    assert open_claims(consumer) == 0


def test_closed_claims_are_not_emitted_again(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    tasks.handle_message(consumer, key, "run")
    grow_older(consumer, 600)
    assert tasks.claim_keys_again(consumer, worker_is_idle=True) == []


def test_a_limited_number_of_keys_is_emitted_at_once_the_oldest_first(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    claimed = []
    for number in range(3):
        send(topic, order(number))
        claimed.append(tasks.claim_partition_keys(consumer, f"fan out {number}"))
    grow_older(consumer, 11)
    assert tasks.claim_keys_again(consumer, worker_is_idle=False, max_keys=2) == claimed[0] + claimed[1]
    assert tasks.claim_keys_again(consumer, worker_is_idle=False, max_keys=2) == claimed[2]


def test_a_consumer_that_becomes_chunked_continues_at_its_positions(make_topic, make_consumer, send):
    topic = make_topic()
    before = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    first, _ = tasks.claim_partition_keys(before, "fan out")
    tasks.handle_message(before, first, "run")
    send(topic, order("c"))
    after = replace(before, shape=Shape.chunked)
    assert tasks.claim_messages(after, "chunked") == []
    assert numbers(topic) == ["a", "c"]
    # Messages that were claimed under the old shape have no run any more; this is the way of the runbook.
    whole_run(after, "fan out")
    assert numbers(topic) == ["a", "b", "c"]
    assert open_claims(after) == 0
