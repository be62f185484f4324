"""A run whose dead-letter topic refuses: good rows are committed, the claim closes, and dead letters are sent later."""

from __future__ import annotations

import os

import pytest

from include.streams.kafka.watch import check_consumers
from tests.integration.kafka.conftest import deliver_now, open_claims, order, read_all
from tests.integration.kafka.test_refused_dead_letters import LARGE, alarm_of, create, delete, set_config
from tests.integration.landing.conftest import alarms_of
from tests.integration.landing.test_run import clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]


def letters(topic) -> list[tuple[bytes | None, str]]:
    """(value, reason) of each record in the dead-letter topic."""
    return [(r.value(), dict(r.headers())["dlq.reason"].decode()) for r in read_all(topic.dead_letter_name)]


@pytest.mark.parametrize("is_missing", [True, False])
def test_good_rows_are_committed_while_dead_letters_wait_in_the_outbox(consumer, send, admin, is_missing):
    lane = consumer()
    topic = lane.topic
    # A violation that `validate_unit` finds, and a conflict that `commit_clean` finds.
    values = [sale(1), b"junk", sale(1, amount=7), sale(2)]
    if is_missing:
        delete(admin, topic.dead_letter_name)
    else:
        set_config(admin, topic.dead_letter_name, "max.message.bytes", "1")
    send(topic, *values, key=b"k")
    land(topic, 0, 0, *values)
    found = counts(run(lane))
    assert found == {"landed": 4, "clean": 2, "dead_lettered": 2, "duplicates": 0, "without_record": 0}
    assert clean_rows(topic) == [(0, 0, "1"), (0, 3, "2")]
    assert open_claims(lane) == 0
    assert f"dead letters of consumer {lane.name} cannot be written" in (alarm_of(topic) or "")
    assert ("prepare_services" if is_missing else "max.message.bytes") in (alarm_of(topic) or "")
    assert "conflicting_events" in alarms_of(lane.name)

    # The next run does not wait for the topic either, and its dead letter is queued after the others.
    send(topic, b"more junk", sale(3))
    land(topic, 0, 4, b"more junk", sale(3))
    assert counts(run(lane, "run-2"))["clean"] == 1
    if is_missing:
        create(admin, topic.dead_letter_name)
    else:
        set_config(admin, topic.dead_letter_name, "max.message.bytes", "1000000")
    deliver_now(lane)
    check_consumers([])
    assert letters(topic) == [(b"junk", "not_json"), (values[2], "conflict"), (b"more junk", "not_json")]
    assert [letter.key() for letter in read_all(topic.dead_letter_name)] == [b"k", b"k", None]
    assert alarm_of(topic) is None


def test_a_dead_letter_too_large_for_its_topic_becomes_a_stub(landed_topic, lane, send):
    topic = landed_topic(partitions=1, config=LARGE)
    consumer = lane(topic)
    noise = os.urandom(2_000_000)
    values = [order(1), noise, b"junk", order(2)]
    send(topic, *values, key=b"k")
    land(topic, 0, 0, *values)
    assert counts(run(consumer))["clean"] == 2
    assert open_claims(consumer) == 0
    small, stub = sorted(read_all(topic.dead_letter_name), key=lambda letter: len(letter.value()))
    assert small.value() == b"junk"
    headers = dict(stub.headers())
    assert (headers["dlq.stub"], headers["dlq.value_size"], headers["dlq.offset"]) == (b"true", b"2000000", b"1")
    assert stub.value() == noise[: len(stub.value())]
    assert alarm_of(topic) is None
