"""A year of rows in the operational database: claiming and handling reads none of them but by an index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from benchmarks import aged_database
from include.kafka.consumers import Consumer, Shape
from include.kafka.offsets import GroupOffsets
from include.kafka.tasks import claim_messages, claim_partition_keys, handle_chunk, handle_message
from include.operations.database import begin, engine
from tests.integration.kafka.conftest import effects, order

pytestmark = pytest.mark.integration

TABLES = ("inbox", "claims", "claim_ranges", "handled_ranges")
ROWS = 20_000


@pytest.fixture
def old_rows(make_topic, make_consumer, operations) -> Iterator:
    """A maker of consumers that have handled thousands of messages."""

    def make(**kwargs) -> Consumer:
        topic = make_topic(partitions=3)
        consumer = make_consumer(topic, **kwargs)
        with GroupOffsets(consumer.group) as group:
            topic_id = group.topic_ids_now([topic.name])[topic.name]
        names = {"consumer": consumer.name, "topic": topic.name, "topic_id": topic_id}
        aged_database.age(engine(), inbox=ROWS, claims=ROWS, **names)
        return consumer

    yield make
    with begin() as connection:
        connection.execute(text("delete from claims where run_id like 'old-%'"))
        connection.execute(text("delete from inbox where run_id like 'old-%'"))
        # With this transaction: a session that is closed says later what it has read, in the middle of the next test.
        connection.execute(text("select pg_stat_force_next_flush()"))


def report() -> None:
    """Have every session of the pool say what it has read so far: else it would when it ends, in another test."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(engine().connect()) for _ in range(max(1, engine().pool.checkedin()))]
        for session in sessions:
            session.execute(text("select pg_stat_force_next_flush()"))
            session.commit()


def read_whole() -> dict[str, int]:
    """{table: rows that were read without an index, since ever}."""
    report()
    with begin() as connection:
        query = "select relname, seq_tup_read from pg_stat_user_tables where relname = any(:tables)"
        return dict(connection.execute(text(query), {"tables": list(TABLES)}).all())  # type: ignore[arg-type]


def test_a_claim_reads_no_old_row(old_rows, send):
    consumer = old_rows()
    (topic,) = consumer.topics
    send(topic, *(order(n) for n in range(3)))
    before = read_whole()
    for chunk in claim_messages(consumer, "run"):
        handle_chunk(consumer, chunk, "run")
    assert len(effects(topic)) == 3
    after = read_whole()
    assert {name: after[name] - before[name] for name in TABLES if after[name] - before[name] > 100} == {}


def test_a_run_for_each_message_reads_no_old_row(old_rows, send):
    consumer = old_rows(shape=Shape.per_message)
    (topic,) = consumer.topics
    send(topic, *(order(n) for n in range(2)))
    before = read_whole()
    for key in claim_partition_keys(consumer, "run"):
        handle_message(consumer, key, f"run of {key}")
    assert len(effects(topic)) == 2
    after = read_whole()
    assert {name: after[name] - before[name] for name in TABLES if after[name] - before[name] > 100} == {}
