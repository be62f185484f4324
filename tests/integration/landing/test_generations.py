"""Offsets that are used again, by a truncated log or a recreated topic without a new id."""

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import text

from include.streams.kafka.claims import positions_of
from include.streams.kafka.offsets import Partition, is_same_topic
from include.streams.kafka.reset import reset_consumer
from include.streams.lake import engine
from include.streams.lake.catalog import load_catalog
from include.streams.landing import gaps
from include.streams.landing.gaps import State
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import clean_table, create_landing_table, load_landing_table, raw_table, topic_id
from include.streams.landing.upkeep import maintain_landing_table
from include.streams.operations.database import begin
from include.streams.validators.sets import rows_of
from tests.integration.kafka.conftest import order
from tests.integration.landing.conftest import alarms_of, expected_records, finish, land, offsets_of, rows
from tests.integration.landing.test_run import run

pytestmark = pytest.mark.integration


@pytest.fixture
def orders(landed_topic, send_orders):
    """A topic with 30 messages in its only partition."""
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    return topic


def a_later_leader_knows_nothing_of_it(consumer) -> None:
    """The claimed offsets were seen under a leader that the present log never had."""
    with begin() as connection:
        later = text("update positions set leader_epoch = 1000 where consumer = :name")
        connection.execute(later, {"name": consumer.name})


def a_new_landing_table(topic) -> None:
    """Create a new table as the runbook says; the old table keeps its rows under another name."""
    load_catalog().rename_table(raw_table(topic), f"{raw_table(topic)}_until_now")
    create_landing_table(topic)


def test_a_truncated_log_stops_the_lane(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    finish(claim_landed(consumer, "first"))
    land(orders, 0, range(10, 20))
    a_later_leader_knows_nothing_of_it(consumer)
    with pytest.raises(AirflowFailException, match=r"the log of topic .* was truncated and filled again"):
        claim_landed(consumer, "second")
    assert alarms_of(consumer.name)["consumer_stopped"][1]


def test_gaps_of_an_earlier_table_do_not_count_for_a_new_table(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    finish(claim_landed(consumer, "first"))
    old = topic_id(load_landing_table(orders))
    gaps.record_outcome(orders.name, old, 0, State.no_record, [(10, 20)])
    a_new_landing_table(orders)
    new = topic_id(load_landing_table(orders))
    assert is_same_topic(old, new)
    assert old != new
    a_later_leader_knows_nothing_of_it(consumer)
    reset_consumer(consumer.name, orders.name)
    land(orders, 0, range(0, 15))
    units = claim_landed(consumer, "second")
    assert offsets_of(units) == [(0, offset) for offset in range(15)]
    assert expected_records(consumer, units) == 15
    finish(units)
    assert claim_landed(consumer, "third") == [], "the offsets from 15 on have not landed"


def test_clean_rows_of_an_earlier_log_stay(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    before = run(consumer, "first")
    a_new_landing_table(orders)
    a_later_leader_knows_nothing_of_it(consumer)
    reset_consumer(consumer.name, orders.name)
    table = load_landing_table(orders)
    for offset in range(5):
        table.append(rows(orders, 0, [offset], order(f"new-{offset}").decode()))
    after = run(consumer, "second")
    assert (after["clean"], after["duplicates"]) == (5, 0)
    with engine.connect() as connection:
        clean = load_catalog().load_table(clean_table(orders))
        of_runs = [
            rows_of(connection, clean, summary["ranges"], ["kafka_offset"]).fetchall() for summary in (before, after)
        ]
        there = set(engine.scan(connection, clean).project("event_id").fetchall())
    assert [len(found) for found in of_runs] == [10, 5]
    assert len(there) == 15


@pytest.mark.parametrize("newer", ["table", "position"])
def test_files_are_bundled_if_log_generations_of_table_and_lane_differ(orders, lane, newer):
    """The lane accepts offsets of every generation, so these files are bundled too."""
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    finish(claim_landed(consumer, "first"))
    if newer == "table":
        gaps.record_outcome(orders.name, topic_id(load_landing_table(orders)), 0, State.no_record, [(28, 30)])
        a_new_landing_table(orders)
    else:
        a_later_leader_knows_nothing_of_it(consumer)
        reset_consumer(consumer.name, orders.name)
    land(orders, 0, *([n] for n in range(10, 28)))
    assert topic_id(load_landing_table(orders)) != of_position(consumer)
    units = claim_landed(consumer, "second")
    assert {unit["ranges"][-1]["end"] for unit in units} >= {28}
    land(orders, 0, [28])
    assert maintain_landing_table(orders, [consumer])["bundled"] == 0, "the claim is open"
    finish(units)
    assert maintain_landing_table(orders, [consumer])["bundled"] >= 18
    # The last one is not claimed yet.
    (alone,) = LandingIndex(load_landing_table(orders)).files(0, 28)
    assert (alone.start, alone.end) == (28, 29)
    assert offsets_of(claim_landed(consumer, "third")) == [(0, 28)]


def of_position(consumer) -> str:
    """The log identity of the lane's position in partition 0."""
    with begin() as connection:
        return positions_of(connection, consumer.name)[Partition(consumer.topic.name, 0)][0]
