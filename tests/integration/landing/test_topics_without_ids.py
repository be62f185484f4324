"""A broker that gives topics no id: the standard lane uses the name, from landing table to dead letters."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import text

from include.streams.kafka.reset import reset_consumer
from include.streams.landing.gaps import history
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table, topic_id
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import open_claims, order, read_all
from tests.integration.kafka.test_claims import remake
from tests.integration.kafka.test_topics_without_ids import without_ids
from tests.integration.landing.conftest import alarms_of, sink_commits
from tests.integration.landing.test_generations import a_new_landing_table, of_position
from tests.integration.landing.test_run import clean_rows, counts, land, run

pytestmark = pytest.mark.integration
__all__ = ["without_ids"]


def inbox_ids(consumer) -> list[tuple[str, int]]:
    with begin() as connection:
        rows = text('select topic_id, "offset" from inbox where consumer = :name order by 1, 2')
        return [tuple(row) for row in connection.execute(rows, {"name": consumer.name})]


def test_a_run_uses_the_topics_name_and_a_recreated_topic_is_another_log(
    without_ids, landed_topic, lane, send, admin, make_topic, landed_long_ago
):
    topic, other = landed_topic(partitions=1), landed_topic(partitions=1)
    consumer, beside = lane(topic), lane(other)
    for each, name in ((topic, "one"), (other, "another")):
        values = [order(f"{name} {n}") for n in range(6)]
        values[1] = b"junk"
        send(each, *values)
        # Offsets 2 and 3 are a gap, which is read from Kafka.
        land(each, 0, 0, *values[:2])
        land(each, 0, 4, *values[4:])
    for each in (consumer, beside):
        assert counts(run(each, "first"))["clean"] == 5
        assert open_claims(each) == 0
        assert inbox_ids(each) == [(each.topic.name, 1)]
        assert topic_id(load_landing_table(each.topic)) == of_position(each) == each.topic.name
        found = history(each.topic.name)
        assert [(row.state, row.start_offset, row.end_offset) for row in found] == [("repaired", 2, 4)]
        assert [letter.value() for letter in read_all(each.topic.dead_letter_name)] == [b"junk"]
    assert [event for *_, event in clean_rows(other)] == [f"another {n}" for n in (0, 2, 3, 4, 5)]

    # The topic is recreated and is shorter, so its offsets are used again.
    remake(admin, topic, lambda name: make_topic(name, partitions=1))
    new = [order("new 0"), b"new junk"]
    send(topic, *new)
    sink_commits(topic, _0=2)
    with pytest.raises(AirflowFailException, match=r"the log of topic .* was truncated \(offsets"):
        claim_landed(consumer, "second")
    assert alarms_of(consumer.name)["consumer_stopped"][1]
    a_new_landing_table(topic)
    reset_consumer(consumer.name, topic.name)
    assert counts(run(consumer, "third"))["clean"] == 1
    generation = f"{topic.name}#2"
    assert topic_id(load_landing_table(topic)) == of_position(consumer) == generation
    assert inbox_ids(consumer) == [(topic.name, 1), (generation, 1)]
    assert [letter.value() for letter in read_all(topic.dead_letter_name)] == [b"new junk"]
    assert {event for *_, event in clean_rows(topic)} == {"new 0", *(f"one {n}" for n in (0, 2, 3, 4, 5))}
