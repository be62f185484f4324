"""A consumer that falls behind causes one notification, with or without a run, and another when it has caught up."""

import json
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.watch import CheckFailed, check_consumer, check_consumers
from include.streams.operations import outbox, outbox_delivery
from include.streams.operations.alarms import SENDER, WEBHOOK_CONN_ID, close_alarm
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, deliver_now, open_claims, order
from tests.integration.kafka.test_claims import remake
from tests.integration.kafka.test_handling import Receiver, outbox_states

pytestmark = pytest.mark.integration

LONG_AGO = timedelta(microseconds=1)


def execute(statement: str, **parameters: object) -> None:
    with begin() as connection:
        connection.execute(text(statement), parameters)


def episodes(consumer) -> list[tuple[str, bool]]:
    """(kind, whether it is open) of the alarms, the oldest first."""
    with begin() as connection:
        query = text("select kind, closed_at is null from alarms where source = :name order by id")
        return [tuple(row) for row in connection.execute(query, {"name": consumer.name})]


@pytest.fixture
def people(monkeypatch):
    """The receiver of the connection alarm_webhook."""
    server = Receiver()
    connection = {"conn_type": "http", "host": "127.0.0.1", "port": server.server_port, "schema": "http"}
    # Otherwise alarms of other tests would be notified too.
    execute("update outbox set state = 'skipped' where consumer = :sender and state = 'pending'", sender=SENDER)
    monkeypatch.setenv(f"AIRFLOW_CONN_{WEBHOOK_CONN_ID.upper()}", json.dumps(connection))
    yield server
    server.shutdown()


def notified(people, consumer) -> list[tuple[str, str]]:
    return [(payload["event"], payload["kind"]) for _, payload in people.seen if payload["source"] == consumer.name]


def test_lag_without_runs_opens_one_alarm_with_topics_and_remedies(make_topic, make_consumer, send):
    small, large = make_topic(), make_topic()
    consumer = make_consumer(small, large, max_lag=10)
    send(small, *(order(f"s{n}") for n in range(3)))
    send(large, *(order(f"l{n}") for n in range(9)), partition=2)
    for _ in range(3):
        standing = check_consumer(consumer)
    assert standing.behind == {small.name: 3, large.name: 9}
    message = alarms(consumer)["lag"]
    assert message.startswith(f"12 messages behind, limit 10 ({large.name}: 9, {small.name}: 3): ")
    assert "capacity" in message
    assert "standard lane" in message
    assert episodes(consumer) == [("lag", True)]
    tasks.claim_messages(consumer, "run")
    assert check_consumer(consumer).behind == {small.name: 0, large.name: 0}
    assert episodes(consumer) == [("lag", False)]


def test_lag_that_hovers_around_the_limit_opens_one_alarm(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_lag=10, max_messages_per_claim=2, chunk_size=2)
    send(topic, *(order(n) for n in range(11)))
    check_consumer(consumer)
    for n in range(3):
        # Nine messages are left, then eleven again.
        tasks.claim_messages(consumer, f"run {n}")
        check_consumer(consumer)
        send(topic, order(f"{n} a"), order(f"{n} b"))
        check_consumer(consumer)
    assert episodes(consumer) == [("lag", True)]
    for n in range(3):
        tasks.claim_messages(consumer, f"last {n}")
        assert episodes(consumer) == [("lag", True)], "above half of the limit, it goes on"
    check_consumer(consumer)
    assert episodes(consumer) == [("lag", False)]


def test_old_messages_that_nobody_claims_open_the_alarm_about_age(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_age=LONG_AGO)
    send(topic, order(1), order(2), partition=1)
    for _ in range(2):
        waiting = check_consumer(consumer).waiting
    assert set(waiting) == {topic.name}
    message = alarms(consumer)["age"]
    assert f"wait too long to be claimed ({topic.name}: 0:00:" in message
    assert "standard lane" in message
    tasks.claim_messages(consumer, "run")
    assert check_consumer(consumer).waiting == {}
    assert episodes(consumer) == [("age", False)]


def test_late_messages_open_an_alarm_that_a_prompt_chunk_does_not_close(make_topic, make_consumer, send):
    topic = make_topic()
    late = make_consumer(topic, max_age=LONG_AGO)
    send(topic, order(1))
    tasks.claim_messages(late, "first")
    assert f"long to be handled ({topic.name}: 0:00:" in alarms(late)["age"]
    prompt = make_consumer(topic, name=late.name)
    send(topic, order(2))
    tasks.claim_messages(prompt, "second")
    assert episodes(late) == [("age", True)]
    check_consumer(prompt)
    assert episodes(late) == [("age", False)]


def test_messages_of_an_old_open_claim_count_as_waiting(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_age=LONG_AGO, chunk_size=1, max_messages_per_claim=9)
    send(topic, order(1), order(2))
    (rest,) = tasks.claim_messages(consumer, "run")
    check_consumer(consumer)
    assert episodes(consumer) == [("age", True)]
    patient = make_consumer(topic, name=consumer.name)
    tasks.handle_chunk(patient, rest, "run")
    check_consumer(patient)
    assert episodes(consumer) == [("age", False)]


def test_an_old_open_claim_has_an_alarm_that_closes_with_the_claim(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=1, max_messages_per_claim=9)
    send(topic, order(1), order(2))
    (rest,) = tasks.claim_messages(consumer, "the failed run")
    check_consumer(consumer)
    assert alarms(consumer) == {}
    execute("update claims set claimed_at = now() - interval '31 minutes' where consumer = :name", name=consumer.name)
    for _ in range(2):
        check_consumer(consumer)
    assert "the failed run" in alarms(consumer)["claim_open"]
    tasks.handle_chunk(consumer, rest, "the failed run")
    assert open_claims(consumer) == 0
    check_consumer(consumer)
    assert ("claim_open", False) in episodes(consumer)
    assert episodes(consumer).count(("claim_open", True)) == 0


def test_the_lag_of_a_recreated_topic_counts_from_its_beginning(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(order(n) for n in range(5)))
    tasks.claim_messages(consumer, "run")
    remake(admin, topic, make_topic)
    send(topic, order("new"))
    assert check_consumer(consumer).behind == {topic.name: 1}


def test_a_missing_topic_closes_no_alarm(make_topic, make_consumer, send, admin):
    existing, gone = make_topic(), make_topic()
    consumer = make_consumer(existing, gone, max_lag=1)
    send(gone, order(1), order(2))
    check_consumer(consumer)
    for future in admin.delete_topics([gone.name, gone.dead_letter_name]).values():
        future.result(30)
    while check_consumer(consumer).is_whole:
        time.sleep(0.1)
    assert episodes(consumer) == [("lag", True)]
    make_topic(name=gone.name)
    assert check_consumer(consumer).is_whole
    assert episodes(consumer) == [("lag", False)]


def test_a_broker_that_is_away_hides_no_alarm_of_other_consumers(make_topic, make_consumer, send, monkeypatch):
    away = {"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:1"}}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_AWAY", json.dumps(away))
    monkeypatch.setattr("include.streams.kafka.offsets.REQUEST_TIMEOUT_SECONDS", 1.0)
    topic = make_topic()
    unreachable, slow = make_consumer(topic, conn_id="kafka_away"), make_consumer(topic, max_lag=1)
    send(topic, order(1), order(2))
    with pytest.raises(CheckFailed, match=unreachable.name):
        check_consumers([unreachable, slow])
    assert "lag" in alarms(slow)


def test_waiting_dead_letters_are_looked_up_once_for_all_consumers(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic()
    consumers = [make_consumer(topic, max_lag=1) for _ in range(3)]
    send(topic, order(1), order(2))
    calls = []

    def fails(_) -> None:
        calls.append("call")
        raise ValueError("not now")

    monkeypatch.setattr("include.streams.kafka.watch.watch_waiting_dead_letters", fails)
    with pytest.raises(CheckFailed, match=r"^dead letters that wait: not now$"):
        check_consumers(consumers)
    assert calls == ["call"]
    assert all("lag" in alarms(consumer) for consumer in consumers)


def test_an_alarm_is_notified_once_when_it_opens_and_once_when_it_closes(make_topic, make_consumer, send, people):
    topic = make_topic()
    consumer = make_consumer(topic, max_lag=1)
    send(topic, order(1), order(2))
    for _ in range(3):
        check_consumer(consumer)
        deliver_now(consumer)
    assert notified(people, consumer) == [("opened", "lag")]
    # The consumer's own run closes the alarm.
    for run in ("first", "second"):
        tasks.claim_messages(consumer, run)
        deliver_now(consumer)
    assert notified(people, consumer) == [("opened", "lag"), ("closed", "lag")]
    ((_, payload), _) = people.seen
    assert topic.name in payload["text"]
    assert len({key for key, _ in people.seen}) == 2


def test_a_failed_notification_delays_no_run_and_is_delivered_later(make_topic, make_consumer, send, people):
    topic = make_topic()
    consumer = make_consumer(topic, max_lag=1, max_messages_per_claim=1, chunk_size=1)
    send(topic, *(order(n) for n in range(5)))
    people.status = 503
    for run in ("first", "second", "third"):
        tasks.claim_messages(consumer, run)
    assert len(people.seen) == 0
    deliver_now(consumer)
    assert len(people.seen) == 1
    people.status = 200
    deliver_now(consumer)
    deliver_now(consumer)
    assert len(people.seen) == 2
    assert len({key for key, _ in people.seen}) == 1


def add_request(consumer, **payload: object) -> None:
    with begin() as connection:
        outbox.add_request(connection, consumer=consumer.name, conn_id="test_webhook", payload=payload)


@pytest.fixture
def receiver(monkeypatch):
    server = Receiver()
    connection = {"conn_type": "http", "host": f"http://127.0.0.1:{server.server_port}/the-password"}
    monkeypatch.setenv("AIRFLOW_CONN_TEST_WEBHOOK", json.dumps(connection))
    yield server
    server.shutdown()


@pytest.fixture
def with_failed_row(make_topic, make_consumer, receiver, monkeypatch):
    """A consumer with a request that its receiver has refused for the last time."""
    monkeypatch.setattr(outbox_delivery, "MAX_ATTEMPTS", 1)
    consumer = make_consumer(make_topic())
    add_request(consumer, n=1)
    receiver.status = 422
    deliver_now(consumer)
    return consumer


def test_the_alarm_about_failed_rows_stays_open_until_none_is_left(with_failed_row, receiver):
    consumer = with_failed_row
    assert "were refused 1 times" in alarms(consumer)["outbox_failed"]
    receiver.status = 200
    add_request(consumer, n=2)
    deliver_now(consumer)
    outbox_delivery.watch()
    assert [state for _, state in outbox_states(consumer)] == ["failed", "delivered"]
    assert "outbox_failed" in alarms(consumer), "a row is still failed"
    # As docs/runbooks/outbox-failed.md says.
    execute(
        "update outbox set state = 'pending', attempts = 0 where consumer = :name and state = 'failed'",
        name=consumer.name,
    )
    deliver_now(consumer)
    outbox_delivery.watch()
    assert [state for _, state in outbox_states(consumer)] == ["delivered", "delivered"]
    assert alarms(consumer) == {}


def test_a_closed_alarm_about_failed_rows_opens_again_while_one_is_left(with_failed_row):
    consumer = with_failed_row
    with begin() as connection:
        close_alarm(connection, consumer.name, "outbox_failed", "not looked at")
    for _ in range(2):
        outbox_delivery.watch()
        assert "1 rows are failed" in alarms(consumer)["outbox_failed"]
    assert episodes(consumer) == [("outbox_failed", False), ("outbox_failed", True)]


def test_a_row_that_fails_while_the_alarm_is_closed_has_an_alarm(make_topic, make_consumer, monkeypatch):
    monkeypatch.setattr(outbox_delivery, "MAX_ATTEMPTS", 1)
    # Each row is a separate portion: the failure of the second row is recorded, and the transaction continues.
    monkeypatch.setattr(outbox_delivery, "MAX_BYTES", 1)
    consumer = make_consumer(make_topic())
    seen: list[int] = []

    class Refusing:
        rows_at_once = 10
        is_one_receiver = True

        def why_skipped(self, destination: str) -> None:
            return None

        def deliver(self, destination, rows, until) -> outbox_delivery.Attempt:
            (row,) = rows
            seen.append(row.sequence)
            if len(seen) == 3:
                given_up = "update outbox set state = 'skipped' where consumer = :name and state = 'failed'"
                execute(given_up, name=consumer.name)
                outbox_delivery.watch()
                assert alarms(consumer) == {}
            answer = outbox_delivery.Answer.delivered if len(seen) == 3 else outbox_delivery.Answer.refused
            return outbox_delivery.Attempt({row.sequence: (answer, "no")})

    route = outbox.Route(consumer.name, "request", "test_webhook")
    add_request(consumer, n=1)
    outbox_delivery.deliver_route(route, Refusing())
    assert "outbox_failed" in alarms(consumer)
    add_request(consumer, n=2)
    add_request(consumer, n=3)
    outbox_delivery.deliver_route(route, Refusing())
    assert [state for _, state in outbox_states(consumer)] == ["skipped", "failed", "delivered"]
    outbox_delivery.watch()
    assert "1 rows are failed" in alarms(consumer)["outbox_failed"]


def test_unanswered_attempts_do_not_count_as_refusals(make_topic, make_consumer, receiver, monkeypatch):
    monkeypatch.setattr(outbox_delivery, "MAX_ATTEMPTS", 2)
    consumer = make_consumer(make_topic())
    add_request(consumer, n=1)
    for status in (503, 503, 429, 422):
        receiver.status = status
        deliver_now(consumer)
        assert outbox_states(consumer) == [("request", "pending")]
    deliver_now(consumer)
    assert outbox_states(consumer) == [("request", "failed")]


@pytest.mark.parametrize("status", [422, 503, None])
def test_the_stored_error_of_a_delivery_does_not_show_the_address(make_topic, make_consumer, receiver, caplog, status):
    consumer = make_consumer(make_topic())
    add_request(consumer, n=1)
    if status is None:
        receiver.shutdown()
        receiver.server_close()
    receiver.status = status
    caplog.clear()
    deliver_now(consumer)
    with begin() as connection:
        kept = connection.scalar(text("select last_error from outbox where consumer = :n"), {"n": consumer.name})
    assert "test_webhook" in kept
    assert "the-password" not in kept
    assert "the-password" not in caplog.text


def test_rows_that_wait_too_long_have_an_alarm_until_they_are_delivered(make_topic, make_consumer, receiver):
    consumer = make_consumer(make_topic())
    add_request(consumer, n=1)
    receiver.status = 503
    deliver_now(consumer)
    outbox_delivery.watch()
    assert alarms(consumer) == {}
    execute("update outbox set created_at = now() - interval '61 minutes' where consumer = :name", name=consumer.name)
    for _ in range(2):
        deliver_now(consumer)
        outbox_delivery.watch()
    assert "1 rows wait" in alarms(consumer)["outbox_pending"]
    assert "test_webhook answered 503" in alarms(consumer)["outbox_pending"]
    receiver.status = 200
    deliver_now(consumer)
    outbox_delivery.watch()
    assert episodes(consumer) == [("outbox_pending", False)]
