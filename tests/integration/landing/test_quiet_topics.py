"""A topic with a few messages per run: an alarm opens if all of the latest messages are bad."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from benchmarks import aged_database
from include.streams.landing import broken_contracts
from include.streams.landing.tables import load_landing_table, topic_id
from include.streams.operations.database import begin, engine
from tests.integration.kafka.test_old_database import WHOLE_TABLE, planned_statements
from tests.integration.landing.conftest import alarms_of
from tests.integration.landing.test_run import consumer, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

OLD = 20_000


@pytest.fixture
def batch(send):
    """Returns a function that sends, lands and processes a further batch of a topic."""
    ends: dict[tuple[str, int], int] = {}

    def process(lane, *values: bytes, partition: int = 0) -> None:
        first = ends.get((lane.topic.name, partition), 0)
        ends[lane.topic.name, partition] = first + len(values)
        send(lane.topic, *values, partition=partition)
        land(lane.topic, partition, first, *values)
        run(lane, f"run-{partition}-{first}")

    return process


def alarm(lane) -> str | None:
    """The text of the open alarm."""
    message, is_open = alarms_of(lane.name).get("many_dead_letters", ("", False))
    return message if is_open else None


def good(*numbers: int) -> list[bytes]:
    return [sale(number) for number in numbers]


def test_a_small_batch_of_bad_messages_keeps_an_alarm_until_good_ones(consumer, batch):
    lane = consumer()
    batch(lane, *[b"junk"] * 50)
    assert "50 of the latest 50 messages (100 %) are dead letters, 50 of them with not_json" in (alarm(lane) or "")
    batch(lane, *good(*range(99)))
    assert alarm(lane), "a third of the latest messages"
    batch(lane, *good(*range(100, 170)))
    assert alarm(lane), "31 of 200: more than a large claim may have"
    batch(lane, *good(*range(170, 210)))
    assert alarm(lane) is None


def test_only_bad_latest_messages_over_several_runs_open_the_alarm(consumer, batch):
    lane = consumer()
    batch(lane, *good(1, 2, 3))
    batch(lane, b"\0\0\0\0\x07junk")
    batch(lane, sale(4, amount=-1), partition=1)
    assert alarm(lane) is None
    batch(lane, b"\0\0\0\0\x08junk")
    text_now = alarm(lane) or ""
    assert "3 of the latest 6 messages (50 %)" in text_now
    assert "2 begin like messages of a schema registry" in text_now
    batch(lane, *good(5, 6, 7, 8, 9))
    assert alarm(lane), "3 of 11"
    batch(lane, *good(10), partition=1)
    assert alarm(lane) is None
    # A few bad messages among good ones open no alarm.
    batch(lane, b"junk", *good(11, 12), b"junk")
    assert alarm(lane) is None


def test_the_latest_messages_are_found_without_reading_old_claims(consumer, batch):
    lane = consumer()
    of_table = topic_id(load_landing_table(lane.topic))
    names = {"consumer": lane.name, "topic": lane.topic.name, "topic_id": of_table}
    aged_database.age(engine(), inbox=OLD, claims=OLD, **names)
    try:
        batch(lane, b"junk", *good(1))
        with begin() as connection:
            claim_id = connection.scalar(text("select max(id) from claims where consumer = :name"), {"name": lane.name})
        with planned_statements() as planned, begin() as connection:
            broken_contracts.watch_broken_contracts(connection, lane, of_table, claim_id, [], 2)
        assert len(planned) == 3
        assert [statement for statement, plan in planned if WHOLE_TABLE.search(plan)] == []
    finally:
        with begin() as connection:
            connection.execute(text("delete from claims where run_id like 'old-%'"))
            connection.execute(text("delete from inbox where run_id like 'old-%'"))
