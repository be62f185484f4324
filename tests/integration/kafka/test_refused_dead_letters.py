"""Dead letters that their topic refuses wait, with an alarm; no valid message, other topic or run waits for them."""

import hashlib
import os

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.dead_letters import DeadLetter
from include.streams.kafka.delivery import deliver_due
from include.streams.kafka.watch import check_consumers
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm
from include.streams.operations.database import begin
from tests.clients import producer_to
from tests.integration.kafka.conftest import numbers, open_claims, order, read_all, wait_for_topics
from tests.integration.kafka.test_handling import outcomes
from tests.integration.kafka.test_replay import counts, declare, plan, read, replayed

pytestmark = pytest.mark.integration

LARGE = {"max.message.bytes": str(8 * 1024 * 1024)}


def delete(admin, name: str) -> None:
    admin.delete_topics([name])[name].result(30)


def create(admin, name: str) -> None:
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    wait_for_topics(admin, name)


def set_config(admin, name: str, setting: str, value: str) -> None:
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(30)


def alarm_of(topic) -> str | None:
    with begin() as connection:
        query = text("select message from alarms where source = :name and closed_at is null")
        return connection.scalar(query, {"name": topic.dead_letter_name})


def deliver(consumer) -> None:
    deliver_due([consumer])
    check_consumers([consumer])


@pytest.fixture
def send_compressed(services):
    """Produce values that are small only when compressed."""

    def send(topic, *values: bytes, key: bytes | None = None, headers=None) -> None:
        producer = producer_to({**producer_config(client_config()), "compression.type": "zstd"}, topic.name)
        for value in values:
            producer.produce(topic.name, value, key=key, partition=0, headers=headers or [])
        assert producer.flush(30) == 0

    return send


def test_dead_letters_are_not_compared_with_each_other(make_topic, make_consumer, send, admin, monkeypatch):
    topic, other = make_topic(), make_topic()
    consumer = make_consumer(topic, other)
    delete(admin, topic.dead_letter_name)
    compared = []
    monkeypatch.setattr(DeadLetter, "__eq__", lambda letter, other: compared.append(letter) or letter is other)
    send(topic, b"bad")
    tasks.claim_messages(consumer, "refused")
    for each in (topic, other):
        send(each, *[b"bad"] * 20)
    tasks.claim_messages(consumer, "refused by one of two")
    assert outcomes(consumer) == {"dead_letter": 41}
    assert len(read_all(other.dead_letter_name)) == 20
    # If each dead letter were compared with each other, a claim would make a million comparisons.
    assert compared == []


def test_a_missing_dead_letter_topic_delays_nothing_and_is_filled_later(make_topic, make_consumer, send, admin):
    topic, other = make_topic(), make_topic()
    consumer = make_consumer(topic, other)
    delete(admin, topic.dead_letter_name)
    headers = [("trace", b"1"), ("none", None)]
    send(topic, order(1), b"bad", order(2), headers=headers, key=b"k")
    send(other, order(3), b"bad too")
    assert tasks.claim_messages(consumer, "run") == []
    assert (numbers(topic), numbers(other)) == (["1", "2"], ["3"])
    assert open_claims(consumer) == 0
    assert outcomes(consumer) == {"handled": 3, "dead_letter": 2}
    assert len(read_all(other.dead_letter_name)) == 1
    alarm = alarm_of(topic) or ""
    assert topic.dead_letter_name in alarm
    assert "prepare_services" in alarm

    create(admin, topic.dead_letter_name)
    deliver(consumer)
    (letter,) = read_all(topic.dead_letter_name)
    assert (letter.key(), letter.value()) == (b"k", b"bad")
    assert letter.headers()[:2] == headers
    assert alarm_of(topic) is None


@pytest.mark.parametrize("state", ["pending", "failed"])
def test_the_alarm_opens_again_while_dead_letters_wait(make_topic, make_consumer, send, admin, state):
    topic = make_topic()
    consumer = make_consumer(topic)
    delete(admin, topic.dead_letter_name)
    send(topic, b"bad")
    tasks.claim_messages(consumer, "run")
    deliver(consumer)
    with begin() as connection:
        change = text("update outbox set state = :state where destination = :name")
        connection.execute(change, {"state": state, "name": topic.dead_letter_name})
        assert close_alarm(connection, topic.dead_letter_name, AlarmKind.dead_letters_wait, "not looked at")
    for _ in range(2):
        check_consumers([consumer])
        alarm = alarm_of(topic) or ""
        assert f"dead letters of consumer {consumer.name} cannot be written to {topic.dead_letter_name}" in alarm
        assert "UNKNOWN_TOPIC" in alarm
        assert "prepare_services" in alarm
        assert ("outbox-failed.md" in alarm) is (state == "failed")


def test_dead_letters_that_waited_can_be_replayed(make_topic, make_consumer, send, admin):
    topic = declare(make_topic())
    consumer = make_consumer(topic)
    delete(admin, topic.dead_letter_name)
    send(topic, order("1", 1).replace(b"number", b"id"))
    tasks.claim_messages(consumer, "run")
    create(admin, topic.dead_letter_name)
    deliver(consumer)
    assert replayed(topic) == {"replayed": 1}
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["1"]


def test_a_refusing_topic_is_not_tried_before_its_waiting_rows_are_sent(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    set_config(admin, topic.dead_letter_name, "max.message.bytes", "1")
    send(topic, b"bad", order(1))
    assert tasks.claim_messages(consumer, "run") == []
    assert "max.message.bytes" in (alarm_of(topic) or "")
    set_config(admin, topic.dead_letter_name, "max.message.bytes", "1000000")
    send(topic, b"bad too", order(2))
    assert tasks.claim_messages(consumer, "second") == []
    assert outcomes(consumer) == {"handled": 2, "dead_letter": 2}
    deliver(consumer)
    letters = read_all(topic.dead_letter_name)
    assert [letter.value() for letter in letters] == [b"bad", b"bad too"]
    assert alarm_of(topic) is None


def test_a_message_that_fits_compressed_fits_as_a_dead_letter(make_topic, make_consumer, send_compressed, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send_compressed(topic, b"x" * 3_000_000)
    send(topic, order(1))
    tasks.claim_messages(consumer, "run")
    (letter,) = read_all(topic.dead_letter_name)
    assert letter.value() == b"x" * 3_000_000
    assert numbers(topic) == ["1"]


def test_a_dead_letter_that_is_too_large_becomes_a_stub(make_topic, make_consumer, send):
    topic = make_topic(config=LARGE)
    consumer = make_consumer(topic)
    noise = os.urandom(2_000_000)
    send(topic, order(1), noise, b"bad", order(2), key=b"k", headers=[("trace", b"1")])
    assert tasks.claim_messages(consumer, "run") == []
    assert numbers(topic) == ["1", "2"]
    small, stub = sorted(read_all(topic.dead_letter_name), key=lambda letter: len(letter.value()))
    assert small.value() == b"bad"
    headers = {name: (value or b"").decode() for name, value in stub.headers()}
    assert stub.value() == noise[: len(stub.value())]
    assert 0 < len(stub.value()) <= 64 * 1024
    assert (stub.key(), headers["trace"]) == (b"k", "1")
    assert headers["dlq.reason"] == "too_large"
    assert (headers["dlq.partition"], headers["dlq.offset"]) == ("0", "1")
    assert headers["dlq.value_size"] == "2000000"
    assert headers["dlq.value_sha256"] == hashlib.sha256(noise).hexdigest()
    assert alarm_of(topic) is None


def test_a_stub_names_key_and_headers_that_were_too_large(make_topic, make_consumer, send):
    topic = make_topic(config=LARGE)
    consumer = make_consumer(topic)
    send(topic, None, key=os.urandom(1_000_000), headers=[("h", os.urandom(1_000_000))])
    send(topic, order(1))
    assert tasks.claim_messages(consumer, "run") == []
    (stub,) = read_all(topic.dead_letter_name)
    assert (stub.key(), stub.value()) == (None, None)
    assert dict(stub.headers())["dlq.left_out"] == b"key, headers"
    assert numbers(topic) == ["1"]


def test_a_replay_of_a_stub_reads_the_message_from_the_topic(make_topic, make_consumer, send, admin):
    topic = declare(make_topic(config=LARGE, max_bytes=4_000_000))
    consumer = make_consumer(topic)
    set_config(admin, topic.dead_letter_name, "max.message.bytes", "100000")
    noise = os.urandom(500_000).hex()
    send(topic, order(1).replace(b'"number"', b'"id"'), order("x" + noise, -1), key=b"k", headers=[("trace", b"1")])
    tasks.claim_messages(consumer, "run")
    stub = read_all(topic.dead_letter_name)[-1]
    assert len(stub.value()) < 100_000
    assert replayed(topic) == {"replayed": 2}
    back = read_all(topic.name)[-1]
    assert back.value() == order("x" + noise, -1)
    assert (back.key(), back.headers()[0]) == (b"k", ("trace", b"1"))


def test_a_replay_names_the_offset_of_a_stub_whose_message_is_gone(make_topic, make_consumer, send, admin):
    from tests.integration.landing.conftest import delete_records

    topic = declare(make_topic(config=LARGE))
    consumer = make_consumer(topic)
    send(topic, os.urandom(2_000_000))
    tasks.claim_messages(consumer, "run")
    delete_records(admin, topic, 0, 1)
    report = read(plan(topic, dry_run=False))
    assert counts(report) == {"failing": 1}
    assert f"no longer at partition 0 offset 0 of {topic.name}" in report["dead_letters"][0]["detail"]
