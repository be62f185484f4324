"""Effects with slow work, such as a model, that is prepared before their transaction."""

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.handling import HandlingFailed
from include.streams.kafka.messages import Message, Rejected
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import numbers, open_claims, order, read_all, record_effect, whole_run
from tests.integration.kafka.test_handling import outcomes

pytestmark = pytest.mark.integration

HERE = "tests.integration.kafka.test_prepared_effects"
prepared: list[str] = []
# The number of open transactions in the operational database while each effect is prepared.
transactions: list[int] = []


def prepare(message: Message) -> str:
    prepared.append(message.event.number)
    with begin() as connection:
        query = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in tr%'"
        transactions.append(connection.scalar(text(query)))
    if message.event.amount == -3:
        raise Rejected("nothing can be made of it")
    if message.event.amount == -4:
        raise TimeoutError("the model is away")
    return f"prepared {message.event.number}"


def effect(connection, message: Message, made: str) -> None:
    assert made == f"prepared {message.event.number}"
    record_effect(connection, message)


@pytest.fixture
def make_prepared(make_topic, make_consumer):
    """A topic and its consumer, whose effects are prepared."""
    prepared.clear()
    transactions.clear()

    def make(shape=Shape.chunked):
        from dataclasses import replace

        topic = make_topic()
        consumer = make_consumer(topic, shape=shape)
        return topic, replace(consumer, prepare=f"{HERE}:prepare", effect=f"{HERE}:effect")

    return make


def test_an_effect_gets_the_value_prepared_for_its_message(make_prepared, send):
    topic, consumer = make_prepared()
    send(topic, order("a"), order("b"))
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["a", "b"]
    assert prepared == ["a", "b"]


def test_no_transaction_is_open_while_an_effect_is_prepared(make_prepared, send):
    topic, consumer = make_prepared()
    send(topic, order("a"), order("b"))
    tasks.claim_messages(consumer, "run")
    assert transactions == [0, 0]


def test_handled_and_repeated_events_are_not_prepared(make_prepared, send):
    topic, consumer = make_prepared()
    send(topic, order("a"), order("a"))
    tasks.claim_messages(consumer, "run")
    whole_run(consumer, "run")
    assert numbers(topic) == prepared == ["a"]
    assert outcomes(consumer) == {"handled": 1, "duplicate": 1}


def test_a_failed_preparation_delays_no_other_and_is_tried_again(make_prepared, send):
    topic, consumer = make_prepared()
    send(topic, order("away", -4), order("b"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["b"]
    assert open_claims(consumer) == 1
    with pytest.raises(HandlingFailed, match="the model is away"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert prepared == ["away", "b", "away"]


def test_a_message_that_can_never_be_prepared_is_a_dead_letter(make_prepared, send):
    topic, consumer = make_prepared()
    send(topic, order("never", -3), order("b"))
    assert tasks.claim_messages(consumer, "run") == []
    assert [letter.value() for letter in read_all(topic.dead_letter_name)] == [order("never", -3)]
    assert open_claims(consumer) == 0


def test_a_run_of_a_single_message_prepares_it_once(make_prepared, send):
    topic, consumer = make_prepared(Shape.per_message)
    send(topic, order("a"))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    assert prepared == []
    for _ in range(2):
        tasks.handle_message(consumer, key, "run")
    assert numbers(topic) == prepared == ["a"]
