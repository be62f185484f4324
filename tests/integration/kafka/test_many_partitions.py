"""A claim of a topic with many partitions needs a few statements, whatever the number of partitions."""

import time

import pytest
from sqlalchemy import event

from include.streams.kafka import tasks
from include.streams.kafka.offsets import GroupOffsets
from include.streams.operations.database import CONN_ID, begin, engine
from include.streams.operations.tables import positions
from tests.integration.kafka.conftest import committed, effects, order

pytestmark = pytest.mark.integration

PARTITIONS = 100


@pytest.fixture
def statements():
    """(beginning of the statement, number of changed rows) of this process's statements to the database."""
    seen: list[tuple[str, int]] = []

    def note(_, cursor, statement, *rest) -> None:
        seen.append((" ".join(statement.split())[:60], cursor.rowcount))

    event.listen(engine(CONN_ID), "after_cursor_execute", note)
    yield seen
    event.remove(engine(CONN_ID), "after_cursor_execute", note)


def rows_written(used: list[tuple[str, int]]) -> list[int]:
    return [rows for statement, rows in used if statement.startswith("insert into positions")]


def wait_for_leaders(topic) -> None:
    """Wait until each partition answers: a partition that does not answer is left to a later claim."""
    with GroupOffsets("independent") as group:
        for _ in range(60):
            if len(group.fetch_offsets_sync([topic.name])) == topic.partitions:
                return
            time.sleep(0.5)
    pytest.fail(f"not all partitions of {topic.name} answer")


def test_the_statements_of_a_claim_do_not_grow_with_the_partitions(make_topic, make_consumer, send, admin, statements):
    few, many = make_topic(partitions=2), make_topic(partitions=PARTITIONS)
    used = {}
    for topic in (few, many):
        consumer = make_consumer(topic)
        wait_for_leaders(topic)
        for number, run in enumerate(("first", "second")):
            send(topic, order(number), partition=1)
            statements.clear()
            tasks.claim_messages(consumer, run)
            used[topic.partitions, run] = list(statements)
    # Fewer statements while a leader is missing, because no alarm is closed then.
    assert len(used[PARTITIONS, "first"]) <= len(used[2, "first"])
    assert len(used[PARTITIONS, "second"]) <= len(used[2, "second"]) < 40
    # Each partition gets its position once; later, only positions that have moved are written and committed.
    changed = {
        run: [n for s, n in used[PARTITIONS, run] if s.startswith("insert into positions")]
        for run in ("first", "second")
    }
    assert changed == {"first": [PARTITIONS], "second": [1]}
    assert committed(admin, consumer.group, many) == {1: 2}
    assert effects(many) == [(1, 0, "0"), (1, 1, "1")]
    with begin() as connection:
        rows = connection.execute(positions.select().where(positions.c.consumer == consumer.name)).all()
    assert len(rows) == PARTITIONS
