"""A long outbox: a query for waiting dead letters reads no delivered rows, and no pending rows of other routes."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import text

from include.streams.contracts.topics import DEAD_LETTER_SUFFIX
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.dead_letters import DeadLetterWriter, watch_waiting_dead_letters
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.operations import outbox
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import open_alarm
from include.streams.operations.database import begin, engine
from tests.integration.kafka.test_old_database import planned_statements

pytestmark = pytest.mark.integration

DELIVERED, PENDING = 200_000, 20_000


@pytest.fixture(scope="module")
def long_outbox(operations):
    name = f"consumer-{uuid.uuid4().hex[:8]}"
    with begin() as connection:
        query = text(
            "insert into outbox (consumer, kind, destination, body, state) "
            "select :name, 'message', 'old.' || n % 50, '1', "
            "case when n <= :pending then 'pending' else 'delivered' end "
            "from generate_series(1, :number) n"
        )
        connection.execute(query, {"name": name, "pending": PENDING, "number": PENDING + DELIVERED})
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze outbox"))
    yield name
    with begin() as connection:
        connection.execute(text("delete from outbox where consumer = :name"), {"name": name})


def outbox_plans(planned) -> list[str]:
    return [plan for statement, plan in planned if "from outbox" in statement.lower()]


@pytest.mark.parametrize("state", ["pending", "failed", None])
def test_closing_alarms_about_dead_letters_reads_no_delivered_rows(long_outbox, state):
    topic = f"orders.{uuid.uuid4().hex[:8]}{DEAD_LETTER_SUFFIX}"
    with begin() as connection:
        open_alarm(connection, topic, AlarmKind.dead_letters_wait, "test")
        if state is not None:
            outbox.add_record(connection, consumer=long_outbox, topic=topic, key=None, value=b"1", headers=[])
            change = text("update outbox set state = :state where destination = :topic")
            connection.execute(change, {"state": state, "topic": topic})
    with planned_statements() as planned, begin() as connection:
        watch_waiting_dead_letters(connection)
    plans = outbox_plans(planned)
    assert plans
    for plan in plans:
        assert "Seq Scan on outbox" not in plan
        assert "ix_outbox_pending" in plan or "ix_outbox_failed" in plan
    with begin() as connection:
        query = text("select closed_at is not null from alarms where source = :topic")
        assert connection.scalar(query, {"topic": topic}) is (state is None)


def test_a_task_with_a_dead_letter_reads_only_outbox_rows_of_its_topic(long_outbox):
    topic = f"orders.{uuid.uuid4().hex[:8]}{DEAD_LETTER_SUFFIX}"
    with AcknowledgedProducer(CONN_ID) as producer:
        letters = DeadLetterWriter(long_outbox, "run", producer)
        with planned_statements() as planned:
            assert letters._why_refusing(topic) is None
            assert letters._why_refusing("old.1") is not None
    plans = outbox_plans(planned)
    assert len(plans) == 2
    for plan in plans:
        assert "destination = " in plan.partition("Index Cond:")[2].partition("\n")[0], plan
