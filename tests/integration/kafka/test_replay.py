"""Dead letters are sent to their topic once, whatever process is killed, and nothing else changes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions, NewTopic
from sqlalchemy import text

from include.streams.contracts import ContractViolation, Reason, Topic
from include.streams.contracts.foreign import Headers
from include.streams.contracts.repairs import Repairs
from include.streams.kafka import replay as replaying
from include.streams.kafka import tasks
from include.streams.kafka.connection import client_config, consumer_config
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.kafka.dead_letters import DeadLetter, DeadLetterWriter
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.operations.database import begin
from tests import forks
from tests.clients import reader_at
from tests.integration.kafka import conftest
from tests.integration.kafka.conftest import (
    committed,
    effects,
    numbers,
    open_claims,
    order,
    read_all,
    wait_for_topics,
)
from tests.integration.kafka.test_handling import outcomes, transact

pytestmark = pytest.mark.integration

TOPICS: dict[str, Topic] = {}
REPAIRS = Repairs()
HERE = __name__


@pytest.fixture
def make_topic(make_topic):
    """The database of all tests, with the project's repairs."""

    def make(**kwargs: Any) -> Topic:
        return declare(make_topic(**kwargs))

    return make


def declare(topic: Topic) -> Topic:
    TOPICS[topic.name] = topic
    if not REPAIRS.of(topic):
        REPAIRS.renamed(topic, {"id": "number"})
    return topic


class Planned(NamedTuple):
    ranges: list[dict[str, Any]]
    params: dict[str, Any]
    run_id: str


def plan(topic: Topic, run_id: str = "replay", **params: Any) -> Planned:
    params = {"topic": topic.name, **params}
    return Planned(replaying.plan_replay(params, TOPICS), params, run_id)


def read(planned: Planned, repairs: Repairs = REPAIRS) -> dict:
    """One try of the task; returns its report, as it comes out of XCom."""
    ranges, params, run_id = json.loads(json.dumps(planned))
    return json.loads(json.dumps(replaying.replay(ranges, params, run_id, topics=TOPICS, repairs=repairs)))


def run(topic: Topic, run_id: str = "replay", **params: Any) -> dict:
    return read(plan(topic, run_id, **params))


def replayed(topic: Topic, run_id: str = "replay", **params: Any) -> dict[str, int]:
    """Make a run that is no dry run; returns {outcome: number of dead letters}."""
    return counts(run(topic, run_id, dry_run=False, **params))


def counts(report: dict) -> dict[str, int]:
    totals: dict[str, int] = {}
    for row in report["counts"]:
        totals[row["outcome"]] = totals.get(row["outcome"], 0) + row["count"]
    return totals


def renamed(number: object, **changes: Any) -> bytes:
    """An invalid order that a repair fixes."""
    document = json.loads(order(number, **changes))
    document["id"] = document.pop("number")
    return json.dumps(document).encode()


def handle(consumer: Consumer, run_id: str | None = None) -> None:
    """Handle the new messages of the consumer's topics in a separate run."""
    tasks.claim_messages(consumer, run_id or f"run-{uuid.uuid4().hex[:8]}")


def rows(topic: Topic) -> list[tuple]:
    """(dead letter's offset, source offset, reason, outcome, detail, run id), from a separate session."""
    query = text(
        'select "offset", source_offset, reason, outcome, detail, run_id from replays '
        "where topic = :topic order by 1, 2"
    )
    with begin() as connection:
        return [tuple(row) for row in connection.execute(query, {"topic": topic.name})]


def outcome_rows(topic: Topic) -> list[str]:
    return [row[3] for row in rows(topic)]


def letters_of(topic: Topic) -> Any:
    """What has a topic's name and partitions, for the dead-letter topic."""
    return SimpleNamespace(name=topic.dead_letter_name, partitions=1)


def add_partitions(admin, topic: Topic, number: int) -> None:
    """Add partitions to the dead-letter topic."""
    for future in admin.create_partitions([NewPartitions(topic.dead_letter_name, number)]).values():
        future.result(30)
    wait_for_topics(admin, topic.dead_letter_name)


def recreate_dead_letters(admin, topic: Topic) -> None:
    admin.delete_topics([topic.dead_letter_name])[topic.dead_letter_name].result(30)
    admin.create_topics([NewTopic(topic.dead_letter_name, 1, 1)])[topic.dead_letter_name].result(30)
    wait_for_topics(admin, topic.dead_letter_name)


def copy_letter(topic: Topic, send: Callable[..., list[int]], *, consumer: bytes, partition: int = 0) -> None:
    """Copy the first dead letter of partition 0, as the dead letter of another consumer."""
    letter = read_all(topic.dead_letter_name)[0]
    headers = [(name, consumer if name == "dlq.consumer" else value) for name, value in letter.headers()]
    send(topic.dead_letter_name, letter.value(), key=letter.key(), partition=partition, headers=headers)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def headers(record: Any) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in record.headers() or ()}


def ends(topic: Topic) -> dict[tuple[str, int], int]:
    reader = KafkaConsumer(consumer_config(client_config(), "independent"))
    offsets = {}
    for name in (topic.name, topic.dead_letter_name):
        for partition in reader.list_topics(name, timeout=10).topics[name].partitions:
            offsets[name, partition] = reader.get_watermark_offsets(TopicPartition(name, partition), timeout=10)[1]
    reader.close()
    return offsets


def test_a_repaired_message_is_sent_with_key_and_headers_and_handled_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    original = [("traceparent", b"00-abc"), ("empty", None), ("traceparent", b"second")]
    (offset,) = send(topic, renamed(7), key=b"\xff\x00key", headers=original, partition=1)
    send(topic, order(8), partition=1)
    handle(consumer)
    assert numbers(topic) == ["8"]

    assert replayed(topic, "the replay") == {"replayed": 1}
    # On the message's original partition, not on the partition that this producer would choose for the key.
    reader = reader_at(consumer_config(client_config(), "independent"), TopicPartition(topic.name, 1, 2))
    message = reader.poll(10)
    reader.close()
    assert message.error() is None
    assert (message.key(), json.loads(message.value())) == (b"\xff\x00key", json.loads(order(7)))
    assert message.headers() == [
        *original,
        ("replay.of", f"{topic.name}-1@{offset}".encode()),
        ("replay.count", b"1"),
        ("replay.run_id", b"the replay"),
    ]
    handle(consumer)
    handle(consumer)
    assert numbers(topic) == ["8", "7"]
    assert outcomes(consumer) == {"handled": 2, "dead_letter": 1}
    assert rows(topic) == [(0, offset, "missing_field", "replayed", None, "the replay")]
    # Nothing is left for a later run.
    assert replayed(topic, "another run") == {"replayed_before": 1}
    assert sum(ends(topic)[topic.name, n] for n in range(3)) == 3


def test_with_one_run_per_message_a_replayed_message_gets_its_own_run(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, renamed(7))
    assert tasks.claim_partition_keys(consumer, "fan out") == []
    replayed(topic)
    (key,) = tasks.claim_partition_keys(consumer, "fan out again")
    tasks.handle_message(consumer, key, "worker")
    assert numbers(topic) == ["7"]
    assert open_claims(consumer) == 0


def test_a_dry_run_shows_what_would_be_done_and_changes_nothing(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1), b"broken", renamed(2), renamed(3))
    handle(consumer)
    before = ends(topic), rows(topic), committed(admin, consumer.group, topic)
    report = run(topic, limit=2)
    assert report["dry_run"] is True
    assert counts(report) == {"would_replay": 2, "failing": 1, "over_limit": 1}
    assert [(row["dead_letter"], row["message"], row["reason"], row["outcome"]) for row in report["dead_letters"]] == [
        ("0@0", "0@0", "missing_field", "would_replay"),
        ("0@1", "0@1", "not_json", "failing"),
        ("0@2", "0@2", "missing_field", "would_replay"),
        ("0@3", "0@3", "missing_field", "over_limit"),
    ]
    assert (ends(topic), rows(topic), committed(admin, consumer.group, topic)) == before
    assert committed(admin, replaying.GROUP, letters_of(topic)) == {}
    # A real run does what the dry run has shown.
    assert replayed(topic, limit=2) == {"replayed": 2, "failing": 1, "over_limit": 1}


def test_no_payload_is_in_the_report_or_in_the_log(make_topic, make_consumer, send, caplog):
    topic = make_topic()
    consumer = make_consumer(topic)
    secret = "Jane Doe, 5 Sea Road"
    send(topic, renamed(secret), order(1, 1, note=secret), secret.encode(), key=secret.encode())
    handle(consumer)
    caplog.set_level("INFO")
    report = run(topic, dry_run=False)
    assert counts(report) == {"replayed": 1, "failing": 2}
    assert "Doe" not in json.dumps(report)
    assert topic.dead_letter_name in caplog.text
    assert "Doe" not in caplog.text
    assert "Doe" not in str(rows(topic))


def test_nothing_is_committed_so_every_run_starts_at_the_beginning(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, b"broken", b"broken too")
    handle(consumer)
    for n in range(3):
        assert replayed(topic, f"run {n}") == {"failing": 2}
    assert committed(admin, replaying.GROUP, letters_of(topic)) == {}
    # The outcome is recorded once: another run does not write it again.
    assert [row[3:] for row in rows(topic)] == [("failing", row[4], "run 0") for row in rows(topic)]
    assert sum(ends(topic).values()) == 4


def test_the_limit_is_exact_and_the_next_run_continues_after_it(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    # Messages that still fail do not count: otherwise they could use up the limit of every run.
    send(topic, *(b"broken" for _ in range(5)), *(renamed(n) for n in range(5)))
    handle(consumer)
    assert replayed(topic, "first", limit=2) == {"failing": 5, "replayed": 2, "over_limit": 3}
    handle(consumer)
    assert numbers(topic) == ["0", "1"]
    assert replayed(topic, "second", limit=2) == {"failing": 5, "replayed_before": 2, "replayed": 2, "over_limit": 1}
    assert replayed(topic, "third", limit=2) == {"failing": 5, "replayed_before": 4, "replayed": 1}
    handle(consumer)
    assert numbers(topic) == ["0", "1", "2", "3", "4"]


def test_a_window_of_offsets_selects_exact_offsets_of_the_topic(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(renamed(f"a{n}") for n in range(5)))
    send(topic, *(renamed(f"b{n}") for n in range(5)), partition=1)
    handle(consumer)
    assert replayed(topic, "first", partition=1, from_offset=1, until_offset=3) == {"replayed": 2}
    handle(consumer)
    assert numbers(topic) == ["b1", "b2"]
    assert replayed(topic, "second", partition=0, until_offset=1) == {"replayed": 1}
    assert replayed(topic, "third", partition=0, from_offset=4) == {"replayed": 1}
    handle(consumer)
    assert sorted(numbers(topic)) == ["a0", "a4", "b1", "b2"]
    assert replayed(topic, "fourth", partition=2) == {}


def test_a_window_of_times_selects_by_the_time_of_the_dead_letter(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    for number in "abc":
        send(topic, renamed(number))
        handle(consumer)
    times = [datetime.fromtimestamp(r.timestamp()[1] / 1000, UTC) for r in read_all(topic.dead_letter_name)]
    assert times[0] < times[1] < times[2]
    window = {"since": times[1].isoformat(), "until": times[2].isoformat()}
    assert replayed(topic, **window) == {"replayed": 1}
    handle(consumer)
    assert numbers(topic) == ["b"]
    later = (times[2] + timedelta(milliseconds=1)).isoformat()
    assert replayed(topic, "later", since=later) == {}


def test_only_dead_letters_with_the_selected_reason_are_replayed(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1), b"broken", order("never", -1))
    handle(consumer)
    assert counts(run(topic, reason="rejected")) == {"would_replay": 1}
    assert counts(run(topic, reason="not_json")) == {"failing": 1}
    assert counts(run(topic, reason="tombstone")) == {}


def test_a_message_that_an_effect_rejected_is_replayed_unchanged(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("never", -1))
    handle(consumer)
    assert numbers(topic) == []

    def corrected(connection, message):
        connection.execute(
            text("insert into test_effects values (:topic, 0, :offset, :number)"),
            {"topic": message.topic, "offset": message.offset, "number": message.event.number},
        )

    monkeypatch.setattr(conftest, "record_effect", corrected)
    assert replayed(topic) == {"replayed": 1}
    handle(consumer)
    assert effects(topic) == [(0, 1, "never")]


def test_a_message_that_fails_again_is_not_replayed_again(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("never", -1))
    handle(consumer)
    assert replayed(topic, "first") == {"replayed": 1}
    handle(consumer)
    letters = read_all(topic.dead_letter_name)
    assert len(letters) == 2
    assert headers(letters[1])["replay.count"] == "1"
    assert headers(letters[1])["replay.of"] == f"{topic.name}-0@0"
    assert headers(letters[1])["dlq.offset"] == "1"
    for n in range(2):
        assert replayed(topic, f"again {n}") == {"replayed_before": 1, "failed_again": 1}
    assert ends(topic)[topic.name, 0] == 2
    # With `again`, it is replayed once more, and its count continues.
    assert replayed(topic, "asked", again=True) == {"replayed_before": 1, "replayed": 1}
    handle(consumer)
    assert replayed(topic, "not asked") == {"replayed_before": 2, "failed_again": 1}
    assert headers(read_all(topic.dead_letter_name)[2])["replay.count"] == "2"


def test_a_failing_message_is_recorded_and_replayed_after_the_code_changed(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    (offset,) = send(topic, json.dumps({"version": 1, "id": "7", "amount": "1"}).encode())
    handle(consumer)
    assert replayed(topic, "first") == {"failing": 1}
    assert rows(topic) == [(0, offset, "missing_field", "failing", "wrong_type: amount (int_type)", "first")]

    @REPAIRS.repair(topic)
    def amounts_are_numbers(value: bytes) -> bytes:
        document = json.loads(value)
        return json.dumps({**document, "amount": int(document["amount"])}).encode()

    assert replayed(topic, "second") == {"replayed": 1}
    assert rows(topic) == [(0, offset, "missing_field", "replayed", None, "second")]
    handle(consumer)
    assert numbers(topic) == ["7"]


def test_unreadable_dead_letters_are_shown_and_kept(make_topic, make_consumer, send):
    topic = make_topic()
    send(topic.dead_letter_name, order(1))
    send(topic.dead_letter_name, order(2), headers=[("dlq.reason", b"not_json"), ("dlq.topic", b"another")])
    send(topic.dead_letter_name, None, headers=[("dlq.reason", b"\xff"), ("dlq.partition", None)])
    for n in range(2):
        assert replayed(topic, f"run {n}") == {"unreadable": 3}
    assert ends(topic) == {(topic.name, 0): 0, (topic.name, 1): 0, (topic.name, 2): 0, (topic.dead_letter_name, 0): 3}
    assert outcome_rows(topic) == ["unreadable"] * 3


def test_a_dead_letter_with_only_landed_text_gets_the_key_of_its_event(make_topic, make_consumer):
    """A dead letter of the standard lane after retention has removed the record with its key."""
    topic = make_topic(compacted=True)
    at = datetime(2026, 1, 2, tzinfo=UTC)
    landed = Message(topic.name, "id", 1, 5, at, key=None, value=renamed(7), headers=())
    with AcknowledgedProducer() as producer:
        letter = DeadLetter(landed, "missing_field", "number", landed_text=True)
        assert DeadLetterWriter("lane", "run", producer).publish([letter]) == []
    assert replayed(topic) == {"replayed": 1}
    (back,) = read_all(topic.name, 1)
    assert (back.key(), json.loads(back.value())) == (b"7", json.loads(order(7)))


def test_a_dead_letter_that_the_broker_refuses_delays_no_later_one(make_topic, make_consumer, send, admin):
    from tests.integration.kafka.test_refused_dead_letters import set_config

    topic = make_topic()
    consumer = make_consumer(topic)
    # A compacted topic accepts no message without a key; this topic was not compacted before.
    send(topic, renamed(1))
    send(topic, renamed(2), key=b"k")
    handle(consumer)
    set_config(admin, topic.name, "cleanup.policy", "compact")
    for n in range(2):
        report = run(topic, f"run {n}", dry_run=False)
        assert counts(report) == {"failing": 1, "replayed_before" if n else "replayed": 1}
        detail = f"rejected: topic {topic.name} refuses it (INVALID_RECORD)"
        assert (report["dead_letters"][0]["outcome"], report["dead_letters"][0]["detail"]) == ("failing", detail)
    assert [row[2:5] for row in rows(topic)] == [
        ("missing_field", "failing", detail), ("missing_field", "replayed", None)
    ]  # fmt: skip
    handle(consumer)
    assert numbers(topic) == ["2"]
    # With a policy that accepts the message, it is replayed.
    set_config(admin, topic.name, "cleanup.policy", "delete")
    assert replayed(topic, "later") == {"replayed": 1, "replayed_before": 1}


def test_two_dead_letters_of_one_message_are_replayed_once(make_topic, make_consumer, send):
    """This happens if a task is killed between the dead letter and its inbox row."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(7))
    handle(consumer)
    (letter,) = read_all(topic.dead_letter_name)
    for _ in range(2):
        send(topic.dead_letter_name, letter.value(), key=letter.key(), headers=letter.headers())
    assert counts(run(topic)) == {"would_replay": 1, "duplicate": 2}
    assert replayed(topic, "first") == {"replayed": 1, "duplicate": 2}
    assert replayed(topic, "second") == {"replayed_before": 1, "duplicate": 2}
    assert ends(topic)[topic.name, 0] == 2
    handle(consumer)
    assert numbers(topic) == ["7"]


def test_a_message_that_two_consumers_rejected_is_replayed_for_each(make_topic, make_consumer, send):
    topic = make_topic()
    first, second = make_consumer(topic), make_consumer(topic)
    send(topic, renamed(7))
    handle(first)
    handle(second)
    assert replayed(topic) == {"replayed": 2}
    handle(first)
    handle(second)
    assert numbers(topic) == ["7", "7"]
    for consumer in (first, second):
        assert outcomes(consumer) == {"handled": 1, "duplicate": 1, "dead_letter": 1}


def test_dead_letters_of_a_refilled_log_do_not_count_as_replayed(make_topic, make_consumer, send, cut):
    topic = make_topic()
    consumer = make_consumer(topic)
    dead_letters = topic.dead_letter_name

    def messages() -> int:
        return sum(ends(topic)[topic.name, partition] for partition in range(3))

    # One batch for each dead letter.
    for number in range(3):
        send(topic, renamed(f"old {number}"))
        handle(consumer)
    # A message that was never on a topic, as from a feed, and a record that no replay can read.
    old = read_all(dead_letters)
    nowhere = {"dlq.partition": b"-1", "dlq.offset": b"-1"}
    send(dead_letters, renamed("old feed"), headers=[(n, nowhere.get(n, v)) for n, v in old[0].headers()])
    send(dead_letters, b"unreadable")
    assert replayed(topic, "before") == {"replayed": 4, "unreadable": 1}
    handle(consumer)
    assert sorted(numbers(topic)) == ["old 0", "old 1", "old 2", "old feed"]

    cut((letters_of(topic), 0, 1))
    send(topic, renamed("new 1"), b"new and broken")
    handle(consumer)
    nowhere["dlq.timestamp"] = b"2030-01-01T00:00:00+00:00"
    send(dead_letters, renamed("new feed"), headers=[(n, nowhere.get(n, v)) for n, v in old[0].headers()])
    # A second dead letter of a message whose first dead letter was replayed, and was truncated since.
    send(dead_letters, old[1].value(), headers=old[1].headers())
    sent = messages()

    report = run(topic, "after", dry_run=False)
    assert counts(report) == {"replayed_before": 1, "replayed": 2, "failing": 1, "duplicate": 1}
    assert [(row["dead_letter"], row["outcome"]) for row in report["dead_letters"]] == [
        ("0@1", "replayed"), ("0@2", "failing"), ("0@3", "replayed"), ("0@4", "duplicate"),
    ]  # fmt: skip
    assert messages() == sent + 2
    # The outcomes are recorded, so the next run sends nothing.
    assert replayed(topic, "later") == {"replayed_before": 3, "failing": 1, "duplicate": 1}
    assert messages() == sent + 2
    handle(consumer)
    assert sorted(numbers(topic)) == ["new 1", "new feed", "old 0", "old 1", "old 2", "old feed"]


def test_two_dead_letters_of_one_event_act_once(make_topic, make_consumer, send):
    """The producer sent the event twice, so there are two messages of one event."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(7), renamed(7))
    handle(consumer)
    assert replayed(topic) == {"replayed": 2}
    handle(consumer)
    assert numbers(topic) == ["7"]


def killed_at(topic_name: str, where: str, number: int, arguments: str) -> None:
    """Run one try of the task in a separate process, killed by SIGKILL at this step of its Nth message."""
    declare(Topic(topic_name, conftest.Order, key="number", partitions=3, retention=timedelta(days=1)))
    calls = 0

    def die() -> None:
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(owner: Any, name: str, *, before: bool) -> None:
        step = getattr(owner, name)

        def stepping(*args: Any, **kwargs: Any) -> None:
            nonlocal calls
            calls += 1
            if before:
                die()
            step(*args, **kwargs)
            die()

        setattr(owner, name, stepping)

    @contextmanager
    def beginning() -> Iterator[Any]:
        nonlocal calls
        with begin() as connection:
            yield connection
        calls += 1
        die()

    if where == "after it is recorded":
        replaying.begin = beginning
    else:
        name = "send" if where == "before it is sent" else "flush"
        killing(AcknowledgedProducer, name, before=where != "before it is recorded")
    read(Planned(*json.loads(arguments)))


@pytest.mark.parametrize(
    "where",
    ["before it is sent", "before it is acknowledged", "before it is recorded", "after it is recorded"],
)
def test_a_killed_and_retried_run_loses_nothing_and_acts_once(where: str, make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(renamed(n) for n in range(6)))
    handle(consumer)
    planned = plan(topic, "killed", dry_run=False, limit=5)
    script = f"from {HERE} import killed_at; killed_at({topic.name!r}, {where!r}, 3, {json.dumps(planned)!r})"
    assert forks.run(script) == -signal.SIGKILL
    # With the same plan, as when Airflow retries a task.
    assert counts(read(planned)) == {"replayed": 5, "over_limit": 1}
    assert outcome_rows(topic) == ["replayed"] * 5
    sent = ends(topic)[topic.name, 0] - 6
    # Only a message that was sent and not recorded is sent again, with the same event id.
    assert sent in {"before it is recorded": [6], "before it is acknowledged": [5, 6]}.get(where, [5])
    handle(consumer)
    assert numbers(topic) == ["0", "1", "2", "3", "4"]
    # After another clear, nothing is left to send.
    assert counts(read(planned)) == {"replayed": 5, "over_limit": 1}
    assert ends(topic)[topic.name, 0] == 6 + sent


def test_two_tries_at_once_send_each_message_once(make_topic, make_consumer, send, monkeypatch):
    """This happens if Airflow has declared a task dead that still runs."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(renamed(n) for n in range(5)))
    handle(consumer)
    planned = plan(topic, dry_run=False)
    is_sending, may_go_on, flush = threading.Event(), threading.Event(), AcknowledgedProducer.flush

    def slow_flush(producer: AcknowledgedProducer) -> None:
        is_sending.set()
        assert may_go_on.wait(30)
        flush(producer)

    monkeypatch.setattr(AcknowledgedProducer, "flush", slow_flush)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, planned)
        assert is_sending.wait(30)
        second = pool.submit(read, planned)
        # By then, the second try has read its dead letters, and waits for the row of the first try.
        time.sleep(2)
        assert not second.done()
        may_go_on.set()
        reports = [counts(each.result(60)) for each in (first, second)]
    assert ends(topic)[topic.name, 0] == 5 + 5
    assert [row[3] for row in rows(topic)] == ["replayed"] * 5
    assert sum(report.get("replayed", 0) for report in reports) >= 5
    handle(consumer)
    assert numbers(topic) == ["0", "1", "2", "3", "4"]


def test_a_try_that_still_runs_beside_its_retry_overwrites_nothing(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(7), renamed(8))
    handle(consumer)
    planned = plan(topic, "run", dry_run=False)
    retried: list[dict] = []

    class Older(Repairs):
        """The first try has no repair. At its first message, a retry with the repair replays all messages."""

        def apply(self, topic: Topic, value: bytes | None, headers: Headers = ()) -> Any:
            if not retried:
                retried.append(read(planned))
            raise ContractViolation(Reason.missing_field, "number (missing)")

    assert counts(read(planned, Older())) == {"failing": 2}
    assert counts(retried[0]) == {"replayed": 2}
    assert [row[3:] for row in rows(topic)] == [("replayed", None, "run")] * 2
    handle(consumer)
    assert numbers(topic) == ["7", "8"]


def test_dead_letters_that_arrive_during_a_run_are_left_to_the_next_run(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    add_partitions(admin, topic, 2)
    copy_letter(topic, send, partition=1, consumer=b"another")
    planned = plan(topic, "first", dry_run=False)
    send(topic, renamed(2), renamed(3))
    handle(consumer)
    copy_letter(topic, send, partition=1, consumer=b"a third")
    assert counts(read(planned)) == {"replayed": 2}
    # A retry reads the same ranges.
    assert counts(read(planned)) == {"replayed": 2}
    later = sum(end for (name, _), end in ends(topic).items() if name == topic.dead_letter_name) - 2
    assert replayed(topic, "second") == {"replayed_before": 2, "replayed": later}


def test_if_the_dead_letter_topic_is_recreated_the_run_fails_without_retry(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    planned = plan(topic, dry_run=False)
    recreate_dead_letters(admin, topic)
    with pytest.raises(AirflowFailException, match="was recreated after this replay was planned"):
        read(planned)
    assert rows(topic) == []


def test_a_replayed_message_is_not_sent_again_after_its_topic_is_recreated(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    assert replayed(topic, "before") == {"replayed": 1}
    (letter,) = read_all(topic.dead_letter_name)
    recreate_dead_letters(admin, topic)
    send(topic.dead_letter_name, letter.value(), key=letter.key(), headers=letter.headers())
    assert replayed(topic, "after") == {"duplicate": 1}
    assert ends(topic)[topic.name, 0] == 2


def test_dead_letters_that_retention_removes_after_the_plan_are_skipped(make_topic, make_consumer, send, admin):
    from tests.integration.landing.conftest import delete_records

    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(renamed(n) for n in range(3)))
    handle(consumer)
    planned = plan(topic, dry_run=False)
    delete_records(admin, letters_of(topic), 0, 2)
    assert counts(read(planned)) == {"replayed": 1}
    handle(consumer)
    assert numbers(topic) == ["2"]


def test_with_several_batches_the_limit_holds_and_each_is_sent_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(7))
    handle(consumer)
    (letter,) = read_all(topic.dead_letter_name)
    send(topic.dead_letter_name, *[b"no dead letter"] * 600)
    send(topic.dead_letter_name, letter.value(), key=letter.key(), headers=letter.headers())
    copy_letter(topic, send, consumer=b"another")
    expected = {"duplicate": 1, "unreadable": 600, "over_limit": 1}
    assert counts(run(topic, limit=1)) == {"would_replay": 1, **expected}
    assert counts(run(topic, "first", limit=1, dry_run=False)) == {"replayed": 1, **expected}
    report = run(topic, "second", dry_run=False)
    assert counts(report) == {"replayed_before": 1, "duplicate": 1, "unreadable": 600, "replayed": 1}
    assert len(report["dead_letters"]) == replaying.MAX_ROWS
    assert ends(topic)[topic.name, 0] == 3


def test_without_dead_letters_the_run_is_skipped(make_topic, operations):
    topic = make_topic()
    with pytest.raises(AirflowSkipException, match=f"{topic.dead_letter_name} is empty"):
        plan(topic)


def test_several_partitions_of_dead_letters_with_holes_are_all_read(make_topic, make_consumer, send, admin):
    """A person has added partitions to the topic; a program that uses transactions writes to them too."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    add_partitions(admin, topic, 4)
    copy_letter(topic, send, partition=2, consumer=b"another")
    transact(letters_of(topic), topic.dead_letter_name, order("aborted"), commit=False)
    # One dead letter, one aborted message and its marker: the last two offsets hold no record.
    wait_until(lambda: ends(topic)[topic.dead_letter_name, 0] == 3)
    assert replayed(topic) == {"replayed": 2}


def test_members_and_committed_offsets_of_the_group_change_nothing(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    other = KafkaConsumer({**client_config(), "group.id": replaying.GROUP, "auto.offset.reset": "earliest"})
    other.subscribe([topic.dead_letter_name])
    assert other.poll(30) is not None
    other.commit(offsets=[TopicPartition(topic.dead_letter_name, 0, 1)], asynchronous=False)
    assert counts(run(topic)) == {"would_replay": 1}
    assert replayed(topic) == {"replayed": 1}
    other.close()


def test_a_message_too_large_with_its_new_headers_delays_no_later_one(make_topic, make_consumer, send, admin):
    from tests.integration.kafka.test_refused_dead_letters import set_config

    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1), headers=[("noise", os.urandom(3_000))])
    send(topic, renamed(2))
    handle(consumer)
    set_config(admin, topic.name, "max.message.bytes", "2000")
    report = run(topic, dry_run=False)
    assert counts(report) == {"failing": 1, "replayed": 1}
    detail = f"too_large: topic {topic.name} refuses it (MSG_SIZE_TOO_LARGE)"
    assert report["dead_letters"][0]["detail"] == detail
    handle(consumer)
    assert numbers(topic) == ["2"]


def test_topics_that_do_not_exist_are_named_as_missing(operations):
    topic = declare(Topic("never.made", conftest.Order, key="number", partitions=1, retention=None))
    with pytest.raises(replaying.ReplayImpossible, match="run prepare_services"):
        plan(topic)
