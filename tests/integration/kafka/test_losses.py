"""The alarm names lost messages exactly and once, also each further loss; handled messages never count as lost."""

import json

import pytest
from airflow.sdk.exceptions import AirflowFailException
from confluent_kafka import TopicPartition
from sqlalchemy import text

from include.streams.kafka import tasks, watch
from include.streams.kafka.consumers import Shape
from include.streams.kafka.reset import reset_consumer
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import MAX_MESSAGE_LENGTH, MORE, add_lasting, add_to_alarm, close_alarm
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, numbers, open_claims, order, whole_run
from tests.integration.kafka.test_claims import remake

pytestmark = pytest.mark.integration


@pytest.fixture
def remove_before(admin):
    """Remove a partition's records before an offset, as retention does."""

    def remove(topic, offset: int, partition: int = 0) -> None:
        for future in admin.delete_records([TopicPartition(topic.name, partition, offset)]).values():
            future.result(10)

    return remove


def lost_offsets(consumer) -> list[tuple[int, int, int]]:
    """(start, end, lost) of the ranges that are recorded as lost."""
    with begin() as connection:
        query = text(
            "select start_offset, end_offset, lost from handled_ranges join claims on id = claim_id "
            "where consumer = :name and lost > 0 order by 1"
        )
        return [tuple(row) for row in connection.execute(query, {"name": consumer.name})]


def test_messages_removed_before_their_runs_are_named_exactly(make_topic, make_consumer, send, remove_before):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, *(order(n) for n in range(4)), b"not JSON", order(5), order(6), order(7))
    keys = tasks.claim_partition_keys(consumer, "fan out")
    assert len(keys) == 7
    for key in (keys[1], keys[5]):
        tasks.handle_message(consumer, key, f"run of {key}")
    remove_before(topic, 7)
    assert tasks.claim_partition_keys(consumer, "fan out") == [f"{topic.name}-0-7"]
    assert lost_offsets(consumer) == [(0, 1, 1), (2, 4, 2), (5, 6, 1)]
    assert f"4 messages before they were handled: {topic.name}-0 [0, 1)" in alarms(consumer)["messages_lost"]
    # The message's run finds no record, and reports no further loss.
    tasks.handle_message(consumer, keys[0], "too late")
    tasks.handle_message(consumer, keys[6], "in time")
    assert lost_offsets(consumer) == [(0, 1, 1), (2, 4, 2), (5, 6, 1)]
    assert open_claims(consumer) == 0


def test_a_message_removed_between_its_key_and_its_run_is_named(make_topic, make_consumer, send, remove_before):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order(0), order(1))
    keys = tasks.claim_partition_keys(consumer, "fan out")
    remove_before(topic, 1)
    for key in keys:
        tasks.handle_message(consumer, key, f"run of {key}")
    assert (numbers(topic), lost_offsets(consumer)) == (["1"], [(0, 1, 1)])
    assert f"{topic.name}-0 [0, 1)" in alarms(consumer)["messages_lost"]


def test_a_cleared_old_run_whose_messages_are_removed_reports_no_loss(make_topic, make_consumer, send, remove_before):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=2)
    send(topic, *(order(n) for n in range(4)))
    chunks = tasks.claim_messages(consumer, "run")
    for chunk in chunks:
        tasks.handle_chunk(consumer, chunk, "run")
    remove_before(topic, 4)
    for chunk in tasks.claim_messages(consumer, "run"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert (alarms(consumer), lost_offsets(consumer)) == ({}, [])


def test_of_a_failed_chunk_only_unhandled_messages_count_as_lost(make_topic, make_consumer, send, remove_before):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(0), order(1, amount=-2), order(2))
    (chunk,) = tasks.claim_messages(consumer, "run")
    remove_before(topic, 3)
    tasks.handle_chunk(consumer, chunk, "run")
    assert (numbers(topic), lost_offsets(consumer)) == (["0", "2"], [(1, 2, 1)])
    assert open_claims(consumer) == 0


def test_an_alarm_about_a_loss_stays_closed_when_its_run_is_cleared(make_topic, make_consumer, send, remove_before):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(0))
    tasks.claim_messages(consumer, "first")
    send(topic, *(order(n) for n in range(1, 4)))
    remove_before(topic, 3)
    tasks.claim_messages(consumer, "second")
    with begin() as connection:
        close_alarm(connection, consumer.name, "messages_lost", "seen")
    whole_run(consumer, "second")
    assert alarms(consumer) == {}


def test_a_retried_claim_does_not_close_the_alarm_of_a_stopped_consumer(make_topic, make_consumer, send, admin):
    topic, other = make_topic(), make_topic()
    consumer = make_consumer(topic, other)
    send(other, order(0))
    tasks.claim_messages(consumer, "first")
    remake(admin, topic, make_topic)
    send(topic, order("new"))
    send(other, order(1))
    tasks.claim_messages(consumer, "second")
    assert numbers(other) == ["0", "1"], "another topic goes on"
    assert "recreated" in alarms(consumer)["consumer_stopped"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_check_same_topics", lambda *_: None)
        tasks.claim_messages(consumer, "first")
    assert "consumer_stopped" in alarms(consumer)


def notifications(consumer) -> list[dict]:
    """The payloads of the requests about the consumer's alarms, oldest first."""
    with begin() as connection:
        bodies = connection.execute(text("select body from outbox where consumer = 'alarms' order by sequence"))
        sent = [json.loads(bytes(body)) for (body,) in bodies]
    return [payload for payload in sent if payload["source"] == consumer.name]


def events(consumer) -> list[tuple[str, str]]:
    """(event, key) of these requests."""
    return [(payload["event"], payload["key"]) for payload in notifications(consumer)]


def test_a_second_stopped_topic_has_its_own_alarm_and_one_notification(make_topic, make_consumer, send, admin):
    first, second, other = make_topic(), make_topic(), make_topic()
    consumer = make_consumer(first, second, other)
    send(first, order(0), order(1))
    send(second, order(0), order(1))
    tasks.claim_messages(consumer, "before")
    remake(admin, first, make_topic)
    send(other, order(0))
    tasks.claim_messages(consumer, "first")
    assert first.name in alarms(consumer)["consumer_stopped"]
    assert second.name not in alarms(consumer)["consumer_stopped"]

    # The log seems truncated: this consumer's positions are after its end, which moves between checks.
    with begin() as connection:
        ahead = text("update positions set next_offset = 9 where consumer = :name and topic = :topic")
        connection.execute(ahead, {"name": consumer.name, "topic": second.name})
    for n in range(3):
        send(second, order(f"new {n}"))
        if n != 1:
            send(other, order(n + 1))
            tasks.claim_messages(consumer, f"second {n}")
        else:
            with pytest.raises(AirflowFailException, match=f"reset {consumer.name} {second.name}"):
                tasks.claim_messages(consumer, "with nothing else to claim")
    assert events(consumer) == [("opened", first.name), ("opened", second.name)]
    _, further = notifications(consumer)
    assert f"the log of topic {second.name} was truncated" in further["message"]
    assert f"reset {consumer.name} {second.name}" in further["message"]
    assert further["runbook"] == "docs/runbooks/topic-recreated.md"
    assert first.name not in further["message"]

    # The reset of one topic does not hide that the other is still stopped.
    reset_consumer(consumer.name, second.name)
    tasks.claim_messages(consumer, "after the reset")
    assert first.name in alarms(consumer)["consumer_stopped"]
    assert second.name not in alarms(consumer)["consumer_stopped"]
    reset_consumer(consumer.name, first.name)
    send(other, order(5))
    tasks.claim_messages(consumer, "after both")
    assert "consumer_stopped" not in alarms(consumer)


def test_if_all_topics_are_stopped_each_of_them_is_named(make_topic, make_consumer, send):
    topics = [make_topic(), make_topic()]
    consumer = make_consumer(*topics)
    for topic in topics:
        send(topic, order(0))
    tasks.claim_messages(consumer, "before")
    with begin() as connection:
        connection.execute(text("update positions set next_offset = 9 where consumer = :n"), {"n": consumer.name})
    with pytest.raises(AirflowFailException):
        tasks.claim_messages(consumer, "after")
    opened = notifications(consumer)
    assert sorted(events(consumer)) == sorted(("opened", topic.name) for topic in topics)
    for topic in topics:
        assert any(f"reset {consumer.name} {topic.name}" in payload["message"] for payload in opened)


def test_a_second_topic_that_may_not_be_read_has_its_own_alarm(make_topic, make_consumer):
    consumer = make_consumer(make_topic())
    for forbidden in (["first"], ["first", "second"], ["first", "second"]):
        with begin() as connection:
            watch._watch_rights(connection, consumer, forbidden)
    assert events(consumer) == [("opened", "first"), ("opened", "second")]
    assert "may not read second: grant it" in alarms(consumer)["topic_forbidden"]
    for forbidden in (["second"], []):
        with begin() as connection:
            watch._watch_rights(connection, consumer, forbidden)
    assert events(consumer)[2:] == [("closed", "first"), ("closed", "second")]
    assert alarms(consumer) == {}


def test_each_of_many_stopped_topics_is_notified_once(make_topic, make_consumer):
    consumer = make_consumer(make_topic())
    stopped = {f"topic {n:05}": f"it was deleted {'x' * 200}" for n in range(40)}
    for number in (2, 2, 4, 40, 40):
        with begin() as connection:
            watch.alarm_stopped_topics(connection, consumer, dict(list(stopped.items())[:number]))
    assert sorted(events(consumer)) == [("opened", topic) for topic in stopped]


def test_a_further_stopped_partition_of_a_topic_is_added_to_its_alarm(make_topic, make_consumer):
    consumer = make_consumer(make_topic())
    first, second = "partition 3 has lost its end", "partition 0 has lost its end"
    for why in (first, first, second, second):
        with begin() as connection:
            watch.alarm_stopped_topics(connection, consumer, {"orders": why})
    assert events(consumer) == [("opened", "orders"), ("continued", "orders")]
    message = alarms(consumer)["consumer_stopped"]
    assert (first in message, second in message) == (True, True)


def test_a_lasting_condition_is_notified_once_even_if_the_alarm_is_full(make_topic, make_consumer):
    consumer = make_consumer(make_topic())
    texts = [f"partition {n:05} {'x' * 200}" for n in range(40)]
    for wanted in (texts[:2], texts[:2], texts[:4], texts, texts):
        with begin() as connection:
            add_lasting(connection, consumer.name, AlarmKind.consumer_stopped, wanted, key="orders")
    message = alarms(consumer)["consumer_stopped"]
    assert message.endswith(MORE)
    number = sum(each in message for each in texts)
    assert 15 < number < 20
    # The first message that does not fit is also notified, so that people read the logs.
    assert events(consumer) == [("opened", "orders"), *[("continued", "orders")] * (number - 2 + 1)]


def test_a_further_loss_is_added_to_the_open_alarm_logged_and_delivered(
    make_topic, make_consumer, send, remove_before, caplog
):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(0))
    tasks.claim_messages(consumer, "first")
    for n in (1, 3):
        send(topic, order(n), order(n + 1))
        remove_before(topic, n + 1)
        tasks.claim_messages(consumer, f"after {n}")
    message = alarms(consumer)["messages_lost"]
    assert f"{topic.name}-0 [1, 2)" in message
    assert f"{topic.name}-0 [3, 4)" in message
    assert any("[3, 4)" in record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    sent = notifications(consumer)
    assert [payload["event"] for payload in sent] == ["opened", "continued"]
    assert "[1, 2)" not in sent[1]["message"]
    assert "[3, 4)" in sent[1]["text"]


def test_an_alarm_with_a_thousand_further_messages_stays_short(make_topic, make_consumer):
    consumer = make_consumer(make_topic())
    for n in range(300):
        with begin() as connection:
            add_to_alarm(connection, consumer.name, AlarmKind.messages_lost, f"loss number {n:05}")
    message = alarms(consumer)["messages_lost"]
    assert message.startswith("loss number 00000 (docs/runbooks/messages-lost.md); loss number 00001; ")
    assert message.endswith("which the logs and the webhook's messages name")
    assert len(message) < MAX_MESSAGE_LENGTH + 100
