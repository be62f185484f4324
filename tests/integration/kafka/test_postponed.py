"""Messages whose effects keep failing leave their run, and are tried again until they succeed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import Connection, text

from include.streams.kafka import postponed, tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.handling import HandlingFailed
from include.streams.kafka.messages import Message
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import numbers, open_claims, order, record_effect, whole_run

pytestmark = pytest.mark.integration

broken = {"refused", "refused too"}


def effect(connection: Connection, message: Message) -> None:
    if message.event.number in broken:
        raise RuntimeError("the effect fails")
    record_effect(connection, message)


@pytest.fixture
def consumer(make_topic, make_consumer):
    return replace(make_consumer(make_topic()), effect=f"{__name__}:effect")


def execute(statement: str, **values) -> list[tuple]:
    with begin() as connection:
        result = connection.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


def age_claims(consumer, minutes: int) -> None:
    """Make the consumer's claims and first tries older, but not the messages that were handled since."""
    statement = "update claims set claimed_at = claimed_at - :age * interval '1 minute' where consumer = :name"
    execute(statement, age=minutes, name=consumer.name)
    tried = "update postponed_ranges set due_at = due_at - :age * interval '1 minute' from claims"
    execute(f"{tried} where claims.id = claim_id and consumer = :name and tries < 0", age=minutes, name=consumer.name)


def make_due(consumer) -> None:
    execute(
        "update postponed_ranges set due_at = now() from claims where claims.id = claim_id and consumer = :name",
        name=consumer.name,
    )


def fail_until_left(consumer, key: str) -> None:
    """The run of a message ends, because the effect has failed for a minute."""
    with pytest.raises(HandlingFailed):
        tasks.handle_message(consumer, key, "run of a key")
    age_claims(consumer, 1)
    with pytest.raises(AirflowFailException):
        tasks.handle_message(consumer, key, "run of a key")


def postpone_the_chunk(consumer) -> None:
    """A run claims the messages, and ends because an effect keeps failing."""
    (chunk,) = tasks.claim_messages(consumer, "run")
    age_claims(consumer, 1)
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")


def waiting(consumer) -> list[tuple[int, int, int, int]]:
    """(start, end, tries, minutes until the next try) of the consumer's postponed ranges."""
    return execute(
        "select start_offset, end_offset, tries, round(extract(epoch from due_at - now()) / 60)::int "
        "from postponed_ranges join claims on claims.id = claim_id where consumer = :name and tries >= 0 order by 1",
        name=consumer.name,
    )


def test_a_failing_effect_leaves_its_run_and_is_tried_until_it_succeeds(consumer, send, monkeypatch):
    (topic,) = consumer.topics
    send(topic, order("before"), order("refused"), order("behind"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with pytest.raises(HandlingFailed, match="the effect fails"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert waiting(consumer) == [], "a first failure is retried in its run"
    age_claims(consumer, 1)
    # Airflow does not retry this failure: the run ends, and no longer counts towards max_active_runs.
    with pytest.raises(AirflowFailException, match=r"the effect fails.*maintain retries these messages"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert waiting(consumer) == [(0, 3, 0, 2)]
    assert tasks.handle_postponed([consumer]) == 0, "not before it is due"
    for tries, minutes in ((1, 4), (2, 8)):
        make_due(consumer)
        assert tasks.handle_postponed([consumer]) == 0
        assert waiting(consumer) == [(0, 3, tries, minutes)]
    assert open_claims(consumer) == 1
    monkeypatch.setattr(f"{__name__}.broken", set())
    make_due(consumer)
    assert tasks.handle_postponed([consumer]) == 1
    assert waiting(consumer) == []
    assert open_claims(consumer) == 0
    assert numbers(topic) == ["before", "refused", "behind"]


def test_while_no_effect_succeeds_the_run_is_retried(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("refused"), order("refused too"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    age_claims(consumer, 29)
    with pytest.raises(HandlingFailed):
        tasks.handle_chunk(consumer, chunk, "run")
    age_claims(consumer, 1)
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")
    assert waiting(consumer) == [(0, 2, 0, 2)]


def test_successful_effects_of_other_claims_end_the_waiting(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("refused"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    age_claims(consumer, 1)
    send(topic, order("good"))
    assert tasks.claim_messages(consumer, "another run") == []
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")


def test_a_range_whose_try_was_killed_waits_and_others_are_tried(consumer, send):
    (topic,) = consumer.topics
    consumer = replace(consumer, chunk_size=1)
    send(topic, order("refused"), order("good"), order("refused too"))
    chunks = tasks.claim_messages(consumer, "run")
    tasks.handle_chunk(consumer, chunks[1], "run")
    with pytest.raises(HandlingFailed):
        tasks.handle_chunk(consumer, chunks[2], "run")
    age_claims(consumer, 1)
    for chunk in (chunks[0], chunks[2]):
        with pytest.raises(AirflowFailException):
            tasks.handle_chunk(consumer, chunk, "run")
    make_due(consumer)
    first, second = (postponed.take_due([consumer.name]) for _ in range(2))
    assert first is not None
    assert second is not None
    assert {first.offsets.start, second.offsets.start} == {0, 2}
    assert postponed.take_due([consumer.name]) is None
    assert [tries for _, _, tries, _ in waiting(consumer)] == [1, 1]


def test_a_cleared_run_settles_its_postponed_ranges(consumer, send, monkeypatch):
    (topic,) = consumer.topics
    send(topic, order("good"), order("refused"))
    postpone_the_chunk(consumer)
    monkeypatch.setattr(f"{__name__}.broken", set())
    whole_run(consumer, "run")
    assert open_claims(consumer) == 0
    make_due(consumer)
    assert tasks.handle_postponed([consumer]) == 0
    assert waiting(consumer) == []
    assert numbers(topic) == ["good", "refused"]


def test_a_single_messages_run_ends_and_its_key_is_emitted_again(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = replace(make_consumer(topic, shape=Shape.per_message), effect=f"{__name__}:effect")
    send(topic, order("refused"), order("good"))
    bad, good = tasks.claim_partition_keys(consumer, "run")
    tasks.handle_message(consumer, good, "run of the good one")
    with pytest.raises(HandlingFailed):
        tasks.handle_message(consumer, bad, "run of the bad one")
    age_claims(consumer, 1)
    with pytest.raises(AirflowFailException):
        tasks.handle_message(consumer, bad, "run of the bad one")
    assert waiting(consumer) == [(0, 1, 0, 2)]
    execute("update claims set emitted_at = emitted_at - interval '2 min' where consumer = :n", n=consumer.name)
    assert tasks.claim_keys_again(consumer, worker_is_idle=True) == [bad]


def test_a_consumer_that_is_no_longer_declared_delays_no_other(consumer, make_topic, make_consumer, send):
    (topic,) = consumer.topics
    send(topic, order("good"), order("refused"))
    postpone_the_chunk(consumer)
    make_due(consumer)
    assert tasks.handle_postponed([make_consumer(make_topic())]) == 0
    assert [tries for _, _, tries, _ in waiting(consumer)] == [0]


def emit_key(consumer, *, worker_has_queue=True) -> list[str]:
    return tasks.claim_keys_again(consumer, worker_is_idle=False, worker_has_queue=worker_has_queue)


@pytest.fixture
def requests(make_topic, make_consumer):
    return replace(make_consumer(make_topic(), shape=Shape.per_message), effect=f"{__name__}:effect")


def test_the_first_error_of_a_message_that_waited_long_is_retried(requests, send, monkeypatch):
    (topic,) = requests.topics
    send(topic, order("good"), order("refused"), order("refused too"))
    good, late, later = tasks.claim_partition_keys(requests, "run")
    tasks.handle_message(requests, good, "run of the good one")
    # Now the other messages of the claim get their first tries.
    age_claims(requests, 10)
    with pytest.raises(HandlingFailed):
        tasks.handle_message(requests, late, "run of the late one")
    with pytest.raises(HandlingFailed):
        tasks.handle_message(requests, later, "run of the later one")
    assert tasks.handle_postponed([requests]) == 0
    monkeypatch.setattr(f"{__name__}.broken", set())
    tasks.handle_message(requests, late, "run of the late one")
    tasks.handle_message(requests, later, "run of the later one")
    assert waiting(requests) == []
    assert open_claims(requests) == 0


def test_the_first_error_of_a_chunk_that_waited_long_is_retried(consumer, send):
    (topic,) = consumer.topics
    consumer = replace(consumer, chunk_size=1)
    send(topic, order("good"), order("refused"))
    (late,) = tasks.claim_messages(consumer, "run")
    age_claims(consumer, 10)
    with pytest.raises(HandlingFailed):
        tasks.handle_chunk(consumer, late, "run")
    assert waiting(consumer) == []


def test_the_first_error_of_a_long_try_is_retried(consumer, send, monkeypatch):
    (topic,) = consumer.topics
    monkeypatch.setattr(postponed, "OTHERS_SUCCEED", timedelta(0))
    consumer = replace(consumer, chunk_size=2)
    send(topic, order("good"), order("also good"), order("refused"), order("good too"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with pytest.raises(HandlingFailed):
        tasks.handle_chunk(consumer, chunk, "run")
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")


def test_a_postponed_key_is_emitted_when_due_whatever_is_queued(requests, send, monkeypatch):
    (topic,) = requests.topics
    send(topic, order("refused"), order("good"), order("queues"))
    bad, good, queues = tasks.claim_partition_keys(requests, "run")
    tasks.handle_message(requests, good, "run of the good one")
    fail_until_left(requests, bad)
    assert waiting(requests) == [(0, 1, 0, 2)]
    assert emit_key(requests) == [], "not before it is due"
    make_due(requests)
    assert emit_key(requests) == [bad], "the third message queues, and its key is not lost"
    execute("update postponed_ranges set due_at = due_at - interval '30 minutes'")
    assert emit_key(requests) == [], "it is emitted, and its run may wait in the queue"
    with pytest.raises(AirflowFailException):
        tasks.handle_message(requests, bad, "run of the bad one, again")
    assert waiting(requests) == [(0, 1, 1, 4)], "its run has ended, so it is due again"
    make_due(requests)
    assert emit_key(requests) == [bad]
    monkeypatch.setattr(f"{__name__}.broken", set())
    for key in (bad, queues):
        tasks.handle_message(requests, key, "at last")
    assert waiting(requests) == []
    assert emit_key(requests) == []
    assert open_claims(requests) == 0
    assert sorted(numbers(topic)) == ["good", "queues", "refused"]


def test_a_key_that_is_due_for_two_reasons_is_emitted_once(requests, send):
    (topic,) = requests.topics
    send(topic, order("refused"), order("good"), order("queues"))
    bad, good, queues = tasks.claim_partition_keys(requests, "run")
    tasks.handle_message(requests, good, "run of the good one")
    fail_until_left(requests, bad)
    make_due(requests)
    execute("update claims set emitted_at = emitted_at - interval '2 hours' where consumer = :n", n=requests.name)
    assert emit_key(requests) == [bad, queues]
