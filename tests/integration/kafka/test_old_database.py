"""A year of rows in the operational database: claiming and handling read them only by an index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event, text

from benchmarks import aged_database
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.kafka.offsets import GroupOffsets
from include.streams.kafka.tasks import claim_messages, claim_partition_keys, handle_chunk, handle_message
from include.streams.operations.database import begin, engine
from tests.integration.kafka.conftest import effects, order

pytestmark = pytest.mark.integration

WHOLE_TABLE = re.compile(r"Seq Scan on (inbox|claims|claim_ranges|handled_ranges)\b")
PLANNED = re.compile(r"\s*(select|insert|update|delete|with)\b", re.IGNORECASE)
ROWS = 20_000
UNKNOWN_ROWS = 50_000
HANDLED_LATELY = """
insert into inbox (consumer, topic_id, partition, "offset", topic, contract, event_id, outcome, run_id)
select :consumer, :topic_id, 0, n - 100000000, :topic, 'Order', 'lately-' || n, 'handled', 'old-' || n
from generate_series(0, cast(:count as bigint) - 1) n
"""


@pytest.fixture
def old_rows(make_topic, make_consumer, operations) -> Iterator:
    """A function that makes a consumer with thousands of handled messages."""

    def make(**kwargs) -> Consumer:
        topic = make_topic(partitions=3)
        consumer = make_consumer(topic, **kwargs)
        with GroupOffsets(consumer.group) as group:
            topic_id = group.fetch_topic_ids([topic.name])[topic.name]
        names = {"consumer": consumer.name, "topic": topic.name, "topic_id": topic_id}
        aged_database.age(engine(), inbox=ROWS, claims=ROWS, **names)
        return consumer

    yield make
    with begin() as connection:
        connection.execute(text("delete from claims where run_id like 'old-%'"))
        connection.execute(text("delete from inbox where run_id like 'old-%'"))


@contextmanager
def planned_statements() -> Iterator[list[tuple[str, str]]]:
    """(statement, PostgreSQL's plan in the same transaction) of the statements that the block executes."""
    planned: list[tuple[str, str]] = []

    def plan(connection, cursor, statement, parameters, context, executemany) -> None:
        if PLANNED.match(statement):
            with connection.connection.driver_connection.cursor() as beside:
                beside.execute(f"explain {statement}", parameters[0] if executemany else parameters)
                planned.append((statement, "\n".join(line for (line,) in beside.fetchall())))

    event.listen(engine(), "before_cursor_execute", plan)
    try:
        yield planned
    finally:
        event.remove(engine(), "before_cursor_execute", plan)


def test_a_claim_reads_no_old_rows(old_rows, send):
    consumer = old_rows()
    (topic,) = consumer.topics
    send(topic, *(order(n) for n in range(3)))
    with planned_statements() as planned:
        for chunk in claim_messages(consumer, "run"):
            handle_chunk(consumer, chunk, "run")
    assert len(effects(topic)) == 3
    assert len(planned) > 5
    assert [statement for statement, plan in planned if WHOLE_TABLE.search(plan)] == []


def test_runs_of_single_messages_read_no_old_rows(old_rows, send):
    consumer = old_rows(shape=Shape.per_message)
    (topic,) = consumer.topics
    send(topic, *(order(n) for n in range(2)))
    with planned_statements() as planned:
        for key in claim_partition_keys(consumer, "run"):
            handle_message(consumer, key, f"run of {key}")
    assert len(effects(topic)) == 2
    assert len(planned) > 5
    assert [statement for statement, plan in planned if WHOLE_TABLE.search(plan)] == []


@pytest.fixture
def unknown_rows(old_rows, make_topic, make_consumer) -> Iterator[Consumer]:
    """A consumer that has handled thousands of messages since the database's statistics were collected."""
    old_rows()
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic)
    with GroupOffsets(consumer.group) as group:
        topic_id = group.fetch_topic_ids([topic.name])[topic.name]
    with begin() as connection:
        # Otherwise the database may collect statistics while the test runs.
        connection.execute(text("alter table inbox set (autovacuum_enabled = false)"))
        names = {"consumer": consumer.name, "topic": topic.name, "topic_id": topic_id}
        connection.execute(text("insert into consumers (name) values (:consumer)"), names)
        connection.execute(text(HANDLED_LATELY), {**names, "count": UNKNOWN_ROWS})
    yield consumer
    with begin() as connection:
        connection.execute(text("alter table inbox reset (autovacuum_enabled)"))


@contextmanager
def read_in_vain() -> Iterator[list[int]]:
    """The number of inbox rows that each query of the block reads without returning them."""
    removed: list[int] = []

    def explain(connection, cursor, statement, parameters, context, executemany) -> None:
        if statement.lower().startswith("select") and "inbox" in statement:
            with connection.connection.driver_connection.cursor() as beside:
                beside.execute(f"explain (analyze, format json) {statement}", parameters)
                ((plans,),) = beside.fetchall()
                removed.append(sum(rows_removed(plans[0]["Plan"])))

    event.listen(engine(), "before_cursor_execute", explain)
    try:
        yield removed
    finally:
        event.remove(engine(), "before_cursor_execute", explain)


def rows_removed(plan: dict) -> Iterator[int]:
    for name in ("Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck"):
        yield int(plan.get(name, 0) * plan["Actual Loops"])
    for part in plan.get("Plans", ()):
        yield from rows_removed(part)


def test_a_batch_of_a_consumer_without_statistics_reads_no_other_rows(unknown_rows, send):
    consumer = unknown_rows
    (topic,) = consumer.topics
    # Half of the messages repeat events of existing rows.
    send(topic, *(order(n if n % 2 else f"lately-{n}") for n in range(500)))
    with read_in_vain() as removed:
        assert claim_messages(consumer, "run") == []
    assert len(effects(topic)) == 250
    # A query for the messages, and one for the events that were handled before.
    assert len(removed) >= 2
    assert max(removed) == 0


def test_a_statement_that_reads_a_whole_table_is_found(old_rows):
    old_rows()
    with planned_statements() as planned, begin() as connection:
        connection.execute(text("select count(*) from inbox where run_id like '%1'"))
    assert [bool(WHOLE_TABLE.search(plan)) for _, plan in planned] == [True]
