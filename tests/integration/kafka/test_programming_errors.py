"""An effect that always fails with a programming error fails its run at once; one odd message stops no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import Connection, text

from include.streams import Rejected
from include.streams.kafka import postponed, tasks, watch
from include.streams.kafka.consumers import Shape
from include.streams.kafka.handling import HandlingFailed
from include.streams.kafka.messages import Message
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, committed, numbers, open_claims, order, record_effect
from tests.integration.kafka.test_postponed import age_claims, execute, make_due, waiting

pytestmark = pytest.mark.integration

ERRORS = {"TypeError": TypeError, "AttributeError": AttributeError, "NameError": NameError, "ImportError": ImportError}
# Whether the effect has the programming error.
is_faulty = False


def effect(connection: Connection, message: Message) -> None:
    if is_faulty:
        raise TypeError(f"the secret of {message.event.number}")
    if error := ERRORS.get(message.event.number):
        raise error("one odd message")
    record_effect(connection, message)


def reject(connection: Connection, message: Message) -> None:
    raise Rejected("no retry can help")


@pytest.fixture
def consumer(make_topic, make_consumer):
    return replace(make_consumer(make_topic()), effect=f"{__name__}:effect")


@pytest.fixture
def break_effect(monkeypatch) -> Callable[[bool], None]:
    def put(fault: bool) -> None:
        monkeypatch.setattr(f"{__name__}.is_faulty", fault)

    return put


@pytest.mark.parametrize("name", [f"{__name__}:no_such_effect", "no.such.module:effect", f"{__name__}:make_due"])
def test_if_the_effect_cannot_be_loaded_nothing_is_claimed_or_retried(consumer, send, admin, name):
    (topic,) = consumer.topics
    send(topic, order("a"), order("b"))
    broken = replace(consumer, effect=name)
    with pytest.raises(AirflowFailException, match=rf"its effect '{name}'.*Nothing was claimed"):
        tasks.claim_messages(broken, "run")
    assert (open_claims(broken), committed(admin, broken.group, topic)) == (0, {})
    assert f"its effect '{name}'" in alarms(broken)["effect_fails"]
    # After the next deploy.
    assert tasks.claim_messages(consumer, "run 2") == []
    assert numbers(topic) == ["a", "b"]
    watch.check_consumer(consumer)
    assert "effect_fails" not in alarms(consumer)


def test_the_alarm_closes_after_the_deploy_also_if_no_message_comes(consumer):
    broken = replace(consumer, effect=f"{__name__}:no_such_effect")
    with pytest.raises(AirflowFailException):
        tasks.claim_messages(broken, "run")
    watch.check_consumer(broken)
    assert "effect_fails" in alarms(broken)
    watch.check_consumer(consumer)
    assert alarms(consumer) == {}


def test_the_alarm_closes_once_the_failing_messages_are_dead_letters(consumer, send, break_effect):
    (topic,) = consumer.topics
    break_effect(True)
    send(topic, order("a"), order("b"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")
    # The effect can be loaded, but its messages still wait for it.
    watch.check_consumer(consumer)
    assert "effect_fails" in alarms(consumer)
    repaired = replace(consumer, effect=f"{__name__}:reject")
    make_due(consumer)
    assert tasks.handle_postponed([repaired]) == 1
    assert (numbers(topic), open_claims(consumer)) == ([], 0)
    watch.check_consumer(repaired)
    assert "effect_fails" not in alarms(consumer)


def test_an_effect_that_is_gone_after_the_claim_postpones_its_messages(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("before"), order("TypeError"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    broken = replace(consumer, effect=f"{__name__}:no_such_effect")
    with pytest.raises(AirflowFailException, match=r"cannot be imported.*maintain retries these messages"):
        tasks.handle_chunk(broken, chunk, "run")
    make_due(consumer)
    assert tasks.handle_postponed([broken]) == 0
    make_due(consumer)
    ERRORS_BEFORE = ERRORS.pop("TypeError")
    try:
        assert tasks.handle_postponed([consumer]) == 1
    finally:
        ERRORS["TypeError"] = ERRORS_BEFORE
    assert (numbers(topic), open_claims(consumer)) == (["before", "TypeError"], 0)


def test_a_retried_claim_whose_effect_is_gone_is_handled_after_the_repair(consumer, send, monkeypatch):
    (topic,) = consumer.topics
    send(topic, order("a"), order("b"))
    with monkeypatch.context() as killed:
        killed.setattr(tasks, "_handle", Mock(side_effect=SystemExit))
        with pytest.raises(SystemExit):
            tasks.claim_messages(consumer, "run")
    # Airflow retries the task with the code of the next deploy.
    broken = replace(consumer, effect=f"{__name__}:no_such_effect")
    (chunk,) = tasks.claim_messages(broken, "run")
    with pytest.raises(AirflowFailException, match="maintain retries these messages"):
        tasks.handle_chunk(broken, chunk, "run")
    make_due(consumer)
    assert tasks.handle_postponed([consumer]) == 1
    assert (numbers(topic), open_claims(consumer)) == (["a", "b"], 0)


@pytest.mark.parametrize("kind", sorted(ERRORS))
def test_one_odd_message_delays_no_other_and_is_retried_in_its_run(consumer, send, kind):
    (topic,) = consumer.topics
    send(topic, order("before"), order(kind), order("behind"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["before", "behind"]
    with pytest.raises(HandlingFailed, match=f"{kind}: one odd message"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert (waiting(consumer), alarms(consumer)) == ([], {})
    age_claims(consumer, 1)
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")


def test_several_odd_messages_among_handled_ones_are_retried_in_their_run(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("before"), order("TypeError"), order("NameError"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    # The good message was handled in the earlier task: now all remaining messages fail.
    with pytest.raises(HandlingFailed):
        tasks.handle_chunk(consumer, chunk, "run")


def test_a_lone_odd_message_is_retried_if_the_consumer_worked_before(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("before"))
    tasks.claim_messages(consumer, "run 1")
    send(topic, order("TypeError"))
    (chunk,) = tasks.claim_messages(consumer, "run 2")
    with pytest.raises(HandlingFailed):
        tasks.handle_chunk(consumer, chunk, "run 2")
    assert alarms(consumer) == {}


def test_an_effect_that_fails_for_every_message_fails_its_run_at_once(consumer, send, break_effect):
    (topic,) = consumer.topics
    break_effect(True)
    send(topic, order("a"), order("b"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with pytest.raises(AirflowFailException, match=r"TypeError.*maintain retries these messages"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert waiting(consumer) == [(0, 2, 0, 2)]
    said = alarms(consumer)["effect_fails"]
    assert "fails for every message (TypeError)" in said
    assert "secret" not in said, "an alarm quotes no message"
    break_effect(False)
    make_due(consumer)
    assert tasks.handle_postponed([consumer]) == 1
    assert (numbers(topic), open_claims(consumer)) == (["a", "b"], 0)
    watch.check_consumer(consumer)
    assert alarms(consumer) == {}


def test_a_new_effect_that_fails_for_its_first_message_fails_its_run_at_once(consumer, send, break_effect):
    break_effect(True)
    send(consumer.topics[0], order("a"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with pytest.raises(AirflowFailException):
        tasks.handle_chunk(consumer, chunk, "run")


def test_runs_of_single_messages_end_at_once_if_another_fails_too(consumer, send, break_effect):
    per_message = replace(consumer, shape=Shape.per_message)
    (topic,) = consumer.topics
    send(topic, order("before"), order("a"), order("b"))
    keys = tasks.claim_partition_keys(per_message, "fan out")
    tasks.handle_message(per_message, keys[0], "run 0")
    break_effect(True)
    with pytest.raises(HandlingFailed):
        tasks.handle_message(per_message, keys[1], "run 1")
    with pytest.raises(AirflowFailException):
        tasks.handle_message(per_message, keys[2], "run 2")
    with pytest.raises(AirflowFailException):
        tasks.handle_message(per_message, keys[1], "run 1")
    break_effect(False)
    make_due(per_message)
    assert sorted(tasks.claim_keys_again(per_message, worker_is_idle=False)) == keys[1:]
    for key in keys[1:]:
        tasks.handle_message(per_message, key, f"run of {key}")
    assert (numbers(topic), open_claims(per_message)) == (["before", "a", "b"], 0)


@pytest.mark.parametrize("shape", list(Shape))
def test_an_effect_that_always_fails_stops_claims_after_some_ranges(consumer, send, break_effect, monkeypatch, shape):
    monkeypatch.setattr(postponed, "MAX_FAILING", 3)
    consumer = replace(consumer, shape=shape, max_messages_per_claim=1, chunk_size=1)
    (topic,) = consumer.topics
    send(topic, *(order(n) for n in range(6)))
    break_effect(True)

    def run(number: int) -> int:
        """Make one run; returns the number of messages that it claimed."""
        with begin() as connection:
            before = connection.scalar(text("select count(*) from claim_ranges"))
        if shape is Shape.chunked:
            for chunk in tasks.claim_messages(consumer, f"run {number}"):
                with pytest.raises(AirflowFailException):
                    tasks.handle_chunk(consumer, chunk, f"run {number}")
        else:
            keys = tasks.claim_partition_keys(consumer, f"fan out {number}", worker_has_queue=lambda: False)
            for key in keys:
                with pytest.raises(AirflowFailException):
                    tasks.handle_message(consumer, key, f"run of {key}")
        with begin() as connection:
            return (connection.scalar(text("select count(*) from claim_ranges")) or 0) - (before or 0)

    monkeypatch.setattr(tasks, "KEYS_BECOME_RUNS", tasks.timedelta(0))
    assert [run(number) for number in range(5)] == [1, 1, 1, 0, 0]
    # After half an hour, new messages are tried: perhaps only the failing messages are odd.
    age_claims(consumer, 31)
    assert run(5) == 1
    break_effect(False)
    make_due(consumer)
    if shape is Shape.chunked:
        assert tasks.handle_postponed([consumer]) == 4
        assert tasks.claim_messages(consumer, "run 6") == []
        assert tasks.claim_messages(consumer, "run 7") == []
    else:
        for key in tasks.claim_keys_again(consumer, worker_is_idle=False):
            tasks.handle_message(consumer, key, f"run of {key}")
        for number in (6, 7):
            (key,) = tasks.claim_partition_keys(consumer, f"fan out {number}")
            tasks.handle_message(consumer, key, f"run of {key}")
    assert numbers(topic) == [str(n) for n in range(6)]


def test_failing_messages_among_handled_ones_block_no_claims(consumer, send, monkeypatch):
    monkeypatch.setattr(postponed, "MAX_FAILING", 2)
    consumer = replace(consumer, max_messages_per_claim=2, chunk_size=1)
    (topic,) = consumer.topics
    send(topic, order("TypeError"), order("NameError"), order("good"), order("better"))
    for chunk in tasks.claim_messages(consumer, "run 0"):
        with pytest.raises((HandlingFailed, AirflowFailException)):
            tasks.handle_chunk(consumer, chunk, "run 0")
    # A message of the consumer was handled since the failing messages were claimed.
    execute(
        'insert into inbox (consumer, topic_id, partition, "offset", topic, contract, outcome, run_id) '
        "values (:name, 'other', 0, 0, 't', 'c', 'handled', 'r')",
        name=consumer.name,
    )
    for chunk in tasks.claim_messages(consumer, "run 1"):
        tasks.handle_chunk(consumer, chunk, "run 1")
    assert numbers(topic) == ["good", "better"]
