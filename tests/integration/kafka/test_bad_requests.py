"""A request that is never answered backs off alone and becomes failed; an outage uses up no attempt.

These tests do not shorten waits by hand: rows and routes wait by the rules of production, at a fifth of the times.
"""

from __future__ import annotations

import json
import threading
import time

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.delivery import deliver_due
from include.streams.operations import outbox_delivery
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, order
from tests.integration.kafka.test_outbox_delivery import add_requests, announcing, make_receiver, states

pytestmark = pytest.mark.integration
__all__ = ["announcing", "make_receiver"]

BAD = "bad"


def answers_500_to(server, monkeypatch, *bad: object) -> None:
    """Let the receiver answer 500 for these numbers, and its `status` for all others."""
    answer = server.RequestHandlerClass.do_POST

    def do_post(handler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        payload = json.loads(body)
        server.seen.append((handler.headers["Idempotency-Key"], payload))
        handler.send_response(500 if payload.get("number", payload.get("n")) in bad else server.status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    assert answer is not do_post
    monkeypatch.setattr(server.RequestHandlerClass, "do_POST", do_post)


@pytest.fixture(autouse=True)
def alone(operations) -> None:
    """Make rows of other tests not due."""
    with begin() as connection:
        connection.execute(text("update outbox set state = 'skipped' where state = 'pending'"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    for name in ("AWAY_FIRST_SECONDS", "REFUSED_FIRST_SECONDS"):
        monkeypatch.setattr(outbox_delivery, name, getattr(outbox_delivery, name) / 5)


def deliver_for(consumer, seconds: float, until=lambda: False) -> None:
    """Deliver due rows again and again, as the trigger and the Dag do."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        deliver_due([consumer])
        time.sleep(0.05)


def row(consumer, number: object):
    with begin() as connection:
        query = "select * from outbox where consumer = :name and convert_from(body, 'UTF8')::jsonb ->> :key = :number"
        for key in ("number", "n"):
            row = connection.execute(
                text(query), {"name": consumer.name, "key": key, "number": str(number)}
            ).one_or_none()
            if row is not None:
                return row
    raise AssertionError(number)


def failures(consumer) -> int:
    with begin() as connection:
        query = text("select coalesce(max(failures), 0) from outbox_routes where consumer = :name")
        return connection.scalar(query, {"name": consumer.name})


def is_delivered(consumer, number: object) -> bool:
    return row(consumer, number).state == "delivered"


def test_a_bad_request_among_others_backs_off_alone(make_topic, make_consumer, make_receiver, monkeypatch):
    server, conn_id = make_receiver()
    answers_500_to(server, monkeypatch, 0)
    consumer = make_consumer(make_topic())
    add_requests(consumer, conn_id, *range(4))
    assert deliver_due([consumer]) == 3
    assert states(consumer) == ["pending", "delivered", "delivered", "delivered"]
    assert row(consumer, 0).attempts == 1
    assert failures(consumer) == 0


def test_a_request_that_is_never_answered_delays_no_later_request(announcing, make_receiver, send, monkeypatch):
    server, conn_id = make_receiver()
    answers_500_to(server, monkeypatch, BAD)
    topic, consumer = announcing(conn_ids=[conn_id])
    send(topic, order(BAD))
    tasks.claim_messages(consumer, "bad")
    # No other row is due, so this looks like an outage, and the request is tried several times.
    deliver_for(consumer, 2)
    assert len(server.seen) >= 4
    send(topic, order("first"))
    tasks.claim_messages(consumer, "first")
    deliver_for(consumer, 5, lambda: is_delivered(consumer, "first"))
    assert is_delivered(consumer, "first"), "the route stays away for a row that came later"
    # Now the receiver has answered another row, so the next attempt shows that the row is bad.
    deliver_for(consumer, 20, lambda: row(consumer, BAD).attempts == 1)
    assert row(consumer, BAD).attempts == 1
    for number in ("second", "third"):
        deliver_for(consumer, 1.5)
        send(topic, order(number))
        tasks.claim_messages(consumer, number)
        assert is_delivered(consumer, number), "the task itself delivers what it wrote"
    assert failures(consumer) == 0


def test_a_request_that_is_never_answered_becomes_failed(announcing, make_receiver, send, monkeypatch):
    monkeypatch.setattr(outbox_delivery, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(outbox_delivery, "REFUSED_FIRST_SECONDS", 0.2)
    server, conn_id = make_receiver()
    answers_500_to(server, monkeypatch, BAD)
    topic, consumer = announcing(conn_ids=[conn_id])
    send(topic, order(BAD))
    tasks.claim_messages(consumer, "bad")
    end = time.monotonic() + 90
    number = 0
    while row(consumer, BAD).state == "pending" and time.monotonic() < end:
        number += 1
        send(topic, order(number))
        tasks.claim_messages(consumer, f"run {number}")
        deliver_for(consumer, 0.6)
    assert row(consumer, BAD).state == "failed"
    assert "1 rows were not answered 3 times" in alarms(consumer)["outbox_failed"]
    deliver_for(consumer, 5, lambda: "pending" not in states(consumer))
    assert states(consumer) == ["failed"] + ["delivered"] * number


def test_an_outage_uses_up_no_attempt(announcing, make_receiver, send, monkeypatch):
    monkeypatch.setattr(outbox_delivery, "REFUSED_FIRST_SECONDS", 0.2)
    server, conn_id = make_receiver()
    answers_500_to(server, monkeypatch, BAD)
    topic, consumer = announcing(conn_ids=[conn_id])
    send(topic, order(BAD), order("good"))
    tasks.claim_messages(consumer, "run")
    assert row(consumer, BAD).attempts == 1
    # The unanswered row of another message shows that the receiver is away; the bad row alone would not show it.
    server.status = 503
    tried = len(server.seen)
    deliver_for(consumer, 1)
    before = row(consumer, BAD).attempts
    assert before <= 2, "at most one for what was answered before"
    for number in range(3):
        send(topic, order(number))
        tasks.claim_messages(consumer, f"run {number}")
    assert failures(consumer) > 0
    deliver_for(consumer, 4)
    assert len(server.seen) > tried + 6
    assert row(consumer, BAD).attempts == before
    assert [row(consumer, number).attempts for number in range(3)] == [0, 0, 0]
    assert failures(consumer) > 0, "an attempt of the bad row does not show that the receiver is back"
    server.status = 200
    deliver_for(consumer, 60, lambda: states(consumer).count("delivered") == 4)
    assert states(consumer) == ["pending", *["delivered"] * 4]
    assert failures(consumer) == 0


def test_concurrent_deliveries_deliver_each_good_request_once(announcing, make_receiver, send, monkeypatch):
    server, conn_id = make_receiver()
    answers_500_to(server, monkeypatch, BAD)
    topic, consumer = announcing(conn_ids=[conn_id])
    send(topic, order(BAD))
    tasks.claim_messages(consumer, "bad")
    done = threading.Event()
    dags = [threading.Thread(target=deliver_for, args=[consumer, 60, done.is_set]) for _ in range(2)]
    for dag in dags:
        dag.start()
    try:
        for number in range(12):
            send(topic, order(number))
            tasks.claim_messages(consumer, f"run {number}")
        end = time.monotonic() + 30
        while states(consumer).count("delivered") < 12 and time.monotonic() < end:
            time.sleep(0.2)
    finally:
        done.set()
        for dag in dags:
            dag.join(30)
    good = [payload["number"] for _, payload in server.seen if payload["number"] != BAD]
    assert sorted(good, key=int) == [str(number) for number in range(12)]
    assert row(consumer, BAD).state == "pending"
