"""An effect that the database refuses delays no other message; a database that goes away fails the task."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from include.streams.kafka import tasks
from include.streams.kafka.handling import HandlingFailed
from include.streams.kafka.messages import Message
from tests.integration.kafka.conftest import numbers, open_claims, order, read_all, record_effect

pytestmark = pytest.mark.integration

STATEMENTS = {
    "foreign key": "insert into claims (consumer, run_id) values ('nobody', 'run')",
    "missing value": "insert into alarms (source, kind, message, opened_at) values ('s', 'k', 'm', null)",
    "no such table": "select * from no_such_table",
    "too slow": "select set_config('statement_timeout', '100ms', true); select pg_sleep(60)",
    "deadlock": "do $$ begin raise sqlstate '40P01'; end $$",
    "not serializable": "do $$ begin raise sqlstate '40001'; end $$",
    "connection ended": "select pg_terminate_backend(pg_backend_pid())",
}


def effect(connection: Connection, message: Message) -> None:
    if statements := STATEMENTS.get(message.event.number):
        connection.exec_driver_sql(statements)
    record_effect(connection, message)


@pytest.fixture
def consumer(make_topic, make_consumer):
    return replace(make_consumer(make_topic()), effect=f"{__name__}:effect")


@pytest.mark.parametrize("refused", sorted(STATEMENTS.keys() - {"connection ended"}))
def test_an_effect_that_the_database_refuses_delays_no_other_message(consumer, send, refused, monkeypatch):
    (topic,) = consumer.topics
    send(topic, order("before"), order(refused), order("behind"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["before", "behind"]
    with pytest.raises(HandlingFailed, match=rf"{topic.name}-0@1: \w+Error"):
        tasks.handle_chunk(consumer, chunk, "run")
    # It is no dead letter, because a retry may succeed: the row to which it refers may be written later.
    assert read_all(topic.dead_letter_name) == []
    assert open_claims(consumer) == 1
    assert numbers(topic) == ["before", "behind"]
    monkeypatch.delitem(STATEMENTS, refused)
    tasks.handle_chunk(consumer, chunk, "run")
    assert sorted(numbers(topic)) == sorted(["before", refused, "behind"])
    assert open_claims(consumer) == 0


def test_a_lost_database_connection_fails_the_task_and_the_retry_continues(consumer, send, monkeypatch):
    (topic,) = consumer.topics
    send(topic, order("before"), order("connection ended"), order("behind"))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with pytest.raises(OperationalError):
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == []
    assert open_claims(consumer) == 1
    monkeypatch.delitem(STATEMENTS, "connection ended")
    tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["before", "connection ended", "behind"]
    assert open_claims(consumer) == 0
