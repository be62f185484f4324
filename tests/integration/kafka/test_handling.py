"""Each message has its effect once; an invalid message is a dead letter; a failing message delays no other."""

import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.handling import HandlingFailed
from include.streams.operations.database import begin
from tests.clients import producer_to
from tests.integration.kafka.conftest import Order, numbers, open_claims, order, read_all, whole_run

pytestmark = pytest.mark.integration


def outcomes(consumer):
    with begin() as connection:
        query = text("select outcome, count(*) from inbox where consumer = :name group by 1")
        return dict(connection.execute(query, {"name": consumer.name}).all())


BAD = {
    "tombstone": None,
    "too_large": order("x" * 70_000),
    "not_utf8": b'{"version": 1, "number": "\xff", "amount": 1}',
    "not_json": b"amount=1",
    "wrong_version": json.dumps({"version": 2, "number": "1", "amount": 1}).encode(),
    "missing_field": json.dumps({"version": 1, "number": "1"}).encode(),
    "unknown_field": order(1, note="urgent"),
    "wrong_type": json.dumps({"version": 1, "number": "1", "amount": "1"}).encode(),
    "rejected": order("never", -1),
}


def test_each_invalid_message_is_a_dead_letter_and_valid_ones_are_handled(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    headers = [("traceparent", b"00-abc"), ("empty", None), ("traceparent", b"second")]
    sent = {}
    for n, (reason, value) in enumerate(BAD.items()):
        send(topic, order(f"before {n}"))
        (sent[reason],) = send(topic, value, key=b"\xff\x00key", headers=headers)
    send(topic, order("last"))
    tasks.claim_messages(consumer, "the run")

    assert numbers(topic) == [*(f"before {n}" for n in range(len(BAD))), "last"]
    letters = read_all(topic.dead_letter_name)
    assert len(letters) == len(BAD)
    for letter in letters:
        kept = letter.headers()
        assert kept[:3] == headers
        added = {name: value.decode() for name, value in kept[3:]}
        reason = added["dlq.reason"]
        assert letter.value() == BAD[reason]
        assert letter.key() == b"\xff\x00key"
        assert added["dlq.topic"] == topic.name
        assert (added["dlq.partition"], added["dlq.offset"]) == ("0", str(sent.pop(reason)))
        assert (added["dlq.consumer"], added["dlq.run_id"]) == (consumer.name, "the run")
        assert added["dlq.detail"]
    assert sent == {}
    assert outcomes(consumer) == {"handled": len(BAD) + 1, "dead_letter": len(BAD)}
    assert open_claims(consumer) == 0


def test_a_cleared_run_writes_no_second_dead_letter(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, b"bad", order("never", -1))
    for _ in range(3):
        whole_run(consumer, "run")
    assert len(read_all(topic.dead_letter_name)) == 2


def test_an_event_sent_twice_has_one_effect_and_two_inbox_rows(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a"), order("b"), order("a"))
    tasks.claim_messages(consumer, "first")
    send(topic, order("b"), partition=1)
    tasks.claim_messages(consumer, "second")
    assert sorted(numbers(topic)) == ["a", "b"]
    assert outcomes(consumer) == {"handled": 2, "duplicate": 2}
    assert open_claims(consumer) == 0


class Purchase(Order):
    """The contract after its class was renamed."""

    contract_name = "Order"


def test_events_handled_under_a_contracts_former_name_are_duplicates(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a"))
    tasks.claim_messages(consumer, "before")
    with begin() as connection:
        query = text("select contract from inbox where consumer = :name")
        # Inboxes of earlier releases have this name, so no migration is needed.
        assert connection.scalar(query, {"name": consumer.name}) == "Order"
    send(topic, order("a"), order("b"), b"bad")
    tasks.claim_messages(replace(consumer, topics=(replace(topic, contract=Purchase),)), "after")
    assert numbers(topic) == ["a", "b"]
    assert outcomes(consumer) == {"handled": 2, "duplicate": 1, "dead_letter": 1}


def test_an_effect_that_fails_delays_no_other_message(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=3)
    send(topic, order(0), order("poison", -2), order(2), order(3), order(4))
    chunks = tasks.claim_messages(consumer, "run")
    # The failed chunk is returned, to get its own task beside the other chunks.
    assert [[(r["start"], r["end"]) for r in chunk["ranges"]] for chunk in chunks] == [[(0, 3)], [(3, 5)]]
    tasks.handle_chunk(consumer, chunks[1], "run")
    assert numbers(topic) == ["0", "2", "3", "4"]
    for _ in range(2):
        with pytest.raises(HandlingFailed, match=f"{topic.name}-0@1: RuntimeError: the effect fails"):
            tasks.handle_chunk(consumer, chunks[0], "run")
    assert numbers(topic) == ["0", "2", "3", "4"]
    assert open_claims(consumer) == 1


def test_a_text_that_the_database_cannot_store_is_a_dead_letter(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("good"), order("nul \x00 byte"), order("good too"))
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["good", "good too"]
    (letter,) = read_all(topic.dead_letter_name)
    assert letter.value() == order("nul \x00 byte")
    assert open_claims(consumer) == 0


def test_a_kill_between_effect_and_end_of_the_claim_repeats_nothing(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1), b"bad")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            tasks.claim_messages(consumer, "run")
    assert open_claims(consumer) == 1
    whole_run(consumer, "run")
    assert numbers(topic) == ["1"]
    assert len(read_all(topic.dead_letter_name)) == 1
    assert open_claims(consumer) == 0


def test_a_kill_between_dead_letter_and_inbox_row_loses_nothing(make_topic, make_consumer, send, monkeypatch):
    from include.streams.kafka.handling import BatchProcessor

    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, b"bad", order(1))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchProcessor, "_record", killed)
        with pytest.raises(KeyboardInterrupt):
            tasks.claim_messages(consumer, "run")
    whole_run(consumer, "run")
    assert {letter.value() for letter in read_all(topic.dead_letter_name)} == {b"bad"}
    assert numbers(topic) == ["1"]
    assert outcomes(consumer) == {"handled": 1, "dead_letter": 1}


def transact(topic, transactional_id, *values, commit):
    producer = producer_to({**producer_config(client_config()), "transactional.id": transactional_id}, topic.name)
    producer.init_transactions(10)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic.name, value, partition=0)
    producer.flush(10)
    if commit is None:
        return producer
    if commit:
        producer.commit_transaction(10)
    else:
        producer.abort_transaction(10)
    return None


def test_only_committed_transactions_are_handled_despite_their_markers(make_topic, make_consumer):
    topic = make_topic()
    consumer = make_consumer(topic)
    transact(topic, topic.name, order("committed"), commit=True)
    transact(topic, topic.name, order("aborted"), order("aborted too"), commit=False)
    started = time.monotonic()
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["committed"]
    assert open_claims(consumer) == 0
    # The range ends with holes: an abort and its marker. A reader that waits for the last offset would never end.
    assert time.monotonic() - started < 30


def test_an_open_transaction_is_not_claimed_before_it_ends(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("before"))
    producer = transact(topic, topic.name, order("pending"), commit=None)
    send(topic, order("behind"))
    tasks.claim_messages(consumer, "first")
    assert numbers(topic) == ["before"]
    producer.commit_transaction(10)
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["before", "pending", "behind"]


def test_a_compacted_topic_with_holes_is_read_to_its_end(make_topic, make_consumer, send, admin):
    compacting = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "100",
    }
    topic = make_topic(partitions=1, config=compacting)
    consumer = make_consumer(topic)
    for n in range(20):
        send(topic, order(n), key=b"same")
        time.sleep(0.02)
    deadline = time.monotonic() + 90
    while len(read_all(topic.name)) > 15:
        assert time.monotonic() < deadline, "the broker did not compact the topic"
        time.sleep(0.5)
        send(topic, order("roll"), key=b"other")
    tasks.claim_messages(consumer, "run")
    assert [r.offset() for r in read_all(topic.name) if r.key() == b"same"][-1] == 19
    assert "19" in numbers(topic)
    assert open_claims(consumer) == 0


class Receiver(ThreadingHTTPServer):
    """An HTTP endpoint that answers with `status` and remembers what it was sent."""

    def __init__(self):
        server = self
        self.status, self.seen, self.headers = 200, [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.headers.append(dict(self.headers))
                server.seen.append((self.headers["Idempotency-Key"], json.loads(body)))
                self.send_response(server.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def receiver(monkeypatch):
    server = Receiver()
    connection = {"conn_type": "http", "host": "127.0.0.1", "port": server.server_port, "schema": "http"}
    monkeypatch.setenv("AIRFLOW_CONN_TEST_WEBHOOK", json.dumps(connection))
    yield server
    server.shutdown()


def outbox_states(consumer):
    with begin() as connection:
        query = text("select kind, state from outbox where consumer = :name order by sequence")
        return [tuple(row) for row in connection.execute(query, {"name": consumer.name})]
