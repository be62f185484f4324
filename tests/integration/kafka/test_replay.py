"""Dead letters go back to their topic once, whatever is killed, and nothing else changes.

Read as the Dag reads them: with its operator and its settings, from a connection of its own.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.apache.kafka.operators.consume import ConsumeFromTopicOperator
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions
from sqlalchemy import text

from dags.operations.replay_dead_letters import replay_dead_letters
from include.streams.contracts import Topic
from include.streams.contracts.repairs import Repairs
from include.streams.kafka import replay as replaying
from include.streams.kafka import replay_plan, tasks
from include.streams.kafka.connection import client_config, consumer_config
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.kafka.dead_letters import DeadLetter, DeadLetters
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.kafka.replay_records import Records
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

# What the plan names by "package.module:NAME".
TOPICS: dict[str, Topic] = {}
REPAIRS = Repairs()
HERE = __name__
# Of the Dag's mapped task, as it is.
OPERATOR = replay_dead_letters().get_task("replay").partial_kwargs


@pytest.fixture(autouse=True)
def dead_letters_connection(services, monkeypatch) -> Callable[..., None]:
    """Defines the connection as the stack does, in a consumer group of this test's own, with changes."""

    def define(**changes: str | None) -> None:
        settings: dict[str, Any] = {
            **client_config("kafka_default"),
            "group.id": f"replay-{uuid.uuid4().hex[:8]}",
            "enable.auto.commit": "false",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": "true",
            # A killed task is a member for as long, and its retry waits.
            "session.timeout.ms": "3000",
            "heartbeat.interval.ms": "500",
            **{name.replace("_", "."): value for name, value in changes.items()},
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEAD_LETTERS", json.dumps({"conn_type": "kafka", "extra": settings}))

    define()
    return define


@pytest.fixture
def make_topic(make_topic):
    """As everybody's, and named by plans."""

    def make(**kwargs: Any) -> Topic:
        return declare(make_topic(**kwargs))

    return make


def declare(topic: Topic) -> Topic:
    TOPICS[topic.name] = topic
    if not REPAIRS.of(topic):
        REPAIRS.renamed(topic, "the shop called it id", {"id": "number"})
    return topic


def plan(topic: Topic, run_id: str = "replay", **params: Any) -> list[dict]:
    return replay_plan.plan_replay(
        {"topic": topic.name, **params}, run_id, registry=f"{HERE}:TOPICS", repairs=f"{HERE}:REPAIRS"
    )


def read(planned: list[dict], **changes: Any) -> dict:
    """One try of the task, in this process; returns its report."""
    replaying._replay_of.cache_clear()
    (arguments,) = planned
    chosen = ("kafka_config_id", "apply_function", "return_apply_function_results", "commit_cadence")
    settings = {name: OPERATOR[name] for name in (*chosen, "max_batch_size", "poll_timeout")}
    operator = ConsumeFromTopicOperator(task_id="replay", **{**settings, **arguments, **changes})
    result = operator.execute({})
    OPERATOR["post_execute"]({}, result)
    (report,) = json.loads(json.dumps(result))
    assert replaying.show([[report]]) == report
    return report


def run(topic: Topic, run_id: str = "replay", **params: Any) -> dict:
    return read(plan(topic, run_id, **params))


def replayed(topic: Topic, run_id: str = "replay", **params: Any) -> dict[str, int]:
    """{outcome: letters} of a run that is no dry run."""
    return counts(run(topic, run_id, dry_run=False, **params))


def counts(report: dict) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in report["counts"]:
        found[row["outcome"]] = found.get(row["outcome"], 0) + row["letters"]
    return found


def renamed(number: object, **changes: Any) -> bytes:
    """An order that a repair mends."""
    document = json.loads(order(number, **changes))
    document["id"] = document.pop("number")
    return json.dumps(document).encode()


def handle(consumer: Consumer, run_id: str | None = None) -> None:
    """What is new on the consumer's topics, in a run of its own."""
    tasks.claim_messages(consumer, run_id or f"run-{uuid.uuid4().hex[:8]}")


def rows(topic: Topic) -> list[tuple]:
    """(dead letter's offset, source offset, reason, outcome, detail, run id), from a session of its own."""
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


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def headers(record: Any) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in record.headers() or ()}


def ends(topic: Topic) -> dict[tuple[str, int], int]:
    reader = KafkaConsumer(consumer_config(client_config(), "independent"))
    found = {}
    for name in (topic.name, topic.dead_letter_name):
        for partition in reader.list_topics(name, timeout=10).topics[name].partitions:
            found[name, partition] = reader.get_watermark_offsets(TopicPartition(name, partition), timeout=10)[1]
    reader.close()
    return found


def test_a_repaired_message_goes_back_with_its_key_and_headers_and_is_handled_exactly_once(
    make_topic, make_consumer, send
):
    topic = make_topic()
    consumer = make_consumer(topic)
    original = [("traceparent", b"00-abc"), ("empty", None), ("traceparent", b"second")]
    (offset,) = send(topic, renamed(7), key=b"\xff\x00key", headers=original, partition=1)
    send(topic, order(8), partition=1)
    handle(consumer)
    assert numbers(topic) == ["8"]

    assert replayed(topic, "the replay") == {"replayed": 1}
    # On the partition that it was on, and not on the one that this producer would choose for its key.
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
    # By a later run, nothing is left to do.
    assert replayed(topic, "another run") == {"replayed_before": 1}
    assert sum(ends(topic)[topic.name, n] for n in range(3)) == 3


def test_one_run_per_message_takes_a_replayed_message_for_the_new_message_that_it_is(make_topic, make_consumer, send):
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
    group = client_config("kafka_dead_letters")["group.id"]
    before = ends(topic), rows(topic), committed(admin, consumer.group, topic)
    report = run(topic, limit=2)
    assert report["dry_run"] is True
    assert counts(report) == {"would_replay": 2, "failing": 1, "over_limit": 1}
    assert [(row["dead_letter"], row["message"], row["reason"], row["outcome"]) for row in report["letters"]] == [
        ("0@0", "0@0", "missing_field", "would_replay"),
        ("0@1", "0@1", "not_json", "failing"),
        ("0@2", "0@2", "missing_field", "would_replay"),
        ("0@3", "0@3", "missing_field", "over_limit"),
    ]
    assert (ends(topic), rows(topic), committed(admin, consumer.group, topic)) == before
    assert committed(admin, group, letters_of(topic)) == {}
    # What it showed is what then happens.
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
    group = client_config("kafka_dead_letters")["group.id"]
    assert committed(admin, group, letters_of(topic)) == {}
    # Once, as first seen: looking again is no news.
    assert [row[3:] for row in rows(topic)] == [("failing", row[4], "run 0") for row in rows(topic)]
    assert sum(ends(topic).values()) == 4


def test_the_limit_is_exact_and_the_next_run_goes_on_behind_it(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    # What still fails does not count: else it would be all that a run ever sees.
    send(topic, *(b"broken" for _ in range(5)), *(renamed(n) for n in range(5)))
    handle(consumer)
    assert replayed(topic, "first", limit=2) == {"failing": 5, "replayed": 2, "over_limit": 3}
    handle(consumer)
    assert numbers(topic) == ["0", "1"]
    assert replayed(topic, "second", limit=2) == {"failing": 5, "replayed_before": 2, "replayed": 2, "over_limit": 1}
    assert replayed(topic, "third", limit=2) == {"failing": 5, "replayed_before": 4, "replayed": 1}
    handle(consumer)
    assert numbers(topic) == ["0", "1", "2", "3", "4"]


def test_windows_of_offsets_are_about_the_topic_and_exact(make_topic, make_consumer, send):
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


def test_windows_of_time_are_about_when_it_became_a_dead_letter(make_topic, make_consumer, send):
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


def test_only_the_reason_asked_for_is_replayed(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1), b"broken", order("never", -1))
    handle(consumer)
    assert counts(run(topic, reason="rejected")) == {"would_replay": 1}
    assert counts(run(topic, reason="not_json")) == {"failing": 1}
    assert counts(run(topic, reason="tombstone")) == {}


def test_what_an_effect_rejected_goes_back_as_it_is_and_is_handled_by_the_mended_effect(
    make_topic, make_consumer, send, monkeypatch
):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("never", -1))
    handle(consumer)
    assert numbers(topic) == []

    def mended(connection, message):
        connection.execute(
            text("insert into test_effects values (:topic, 0, :offset, :number)"),
            {"topic": message.topic, "offset": message.offset, "number": message.event.number},
        )

    monkeypatch.setattr(conftest, "record_effect", mended)
    assert replayed(topic) == {"replayed": 1}
    handle(consumer)
    assert effects(topic) == [(0, 1, "never")]


def test_a_message_that_fails_again_is_kept_and_does_not_go_round(make_topic, make_consumer, send):
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
    # Asked for: once more, and it still knows how often.
    assert replayed(topic, "asked", again=True) == {"replayed_before": 1, "replayed": 1}
    handle(consumer)
    assert replayed(topic, "not asked") == {"replayed_before": 2, "failed_again": 1}
    assert headers(read_all(topic.dead_letter_name)[2])["replay.count"] == "2"


def test_what_still_fails_is_kept_with_its_reason_of_now_and_replayed_once_code_has_changed(
    make_topic, make_consumer, send
):
    topic = make_topic()
    consumer = make_consumer(topic)
    (offset,) = send(topic, json.dumps({"version": 1, "id": "7", "amount": "1"}).encode())
    handle(consumer)
    assert replayed(topic, "first") == {"failing": 1}
    assert rows(topic) == [(0, offset, "missing_field", "failing", "wrong_type: amount (int_type)", "first")]

    @REPAIRS.repair(topic, "it wrote numbers as text")
    def amounts_are_numbers(value: bytes) -> bytes:
        document = json.loads(value)
        return json.dumps({**document, "amount": int(document["amount"])}).encode()

    assert replayed(topic, "second") == {"replayed": 1}
    assert rows(topic) == [(0, offset, "missing_field", "replayed", None, "second")]
    handle(consumer)
    assert numbers(topic) == ["7"]


def test_what_no_replay_can_read_is_shown_and_kept(make_topic, make_consumer, send):
    topic = make_topic()
    send(topic.dead_letter_name, order(1))
    send(topic.dead_letter_name, order(2), headers=[("dlq.reason", b"not_json"), ("dlq.topic", b"another")])
    send(topic.dead_letter_name, None, headers=[("dlq.reason", b"\xff"), ("dlq.partition", None)])
    for n in range(2):
        assert replayed(topic, f"run {n}") == {"unreadable": 3}
    assert ends(topic) == {(topic.name, 0): 0, (topic.name, 1): 0, (topic.name, 2): 0, (topic.dead_letter_name, 0): 3}
    assert outcome_rows(topic) == ["unreadable"] * 3


def test_a_letter_with_the_landed_text_only_goes_back_with_the_key_of_its_event(make_topic, make_consumer):
    """As from the standard lane, once retention has removed the record, and its key with it."""
    topic = make_topic(compacted=True)
    at = datetime(2026, 1, 2, tzinfo=UTC)
    landed = Message(topic.name, "id", 1, 5, at, key=None, value=renamed(7), headers=())
    with AcknowledgedProducer() as producer:
        letter = DeadLetter(landed, "missing_field", "number", landed_text=True)
        assert DeadLetters("lane", "run", producer).send([letter]) == []
    assert replayed(topic) == {"replayed": 1}
    (back,) = read_all(topic.name, 1)
    assert (back.key(), json.loads(back.value())) == (b"7", json.loads(order(7)))


def test_a_letter_that_the_broker_refuses_is_kept_and_those_behind_it_go_back(make_topic, make_consumer, send, admin):
    from tests.integration.kafka.test_refused_dead_letters import set_config

    topic = make_topic()
    consumer = make_consumer(topic)
    # No message of a compacted topic may be without a key, and this topic was not compacted at first.
    send(topic, renamed(1))
    send(topic, renamed(2), key=b"k")
    handle(consumer)
    set_config(admin, topic.name, "cleanup.policy", "compact")
    for n in range(2):
        report = run(topic, f"run {n}", dry_run=False)
        assert counts(report) == {"failing": 1, "replayed_before" if n else "replayed": 1}
        detail = f"rejected: topic {topic.name} refuses it (INVALID_RECORD)"
        assert (report["letters"][0]["outcome"], report["letters"][0]["detail"]) == ("failing", detail)
    assert [row[2:5] for row in rows(topic)] == [
        ("missing_field", "failing", detail), ("missing_field", "replayed", None)
    ]  # fmt: skip
    handle(consumer)
    assert numbers(topic) == ["2"]
    # With a policy that takes it, it goes back.
    set_config(admin, topic.name, "cleanup.policy", "delete")
    assert replayed(topic, "later") == {"replayed": 1, "replayed_before": 1}


def test_two_dead_letters_of_one_message_are_replayed_once(make_topic, make_consumer, send):
    """As they lie there after a task was killed between sending the dead letter and writing that down."""
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


def test_what_two_consumers_rejected_is_replayed_for_each_and_handled_once_by_each(make_topic, make_consumer, send):
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


def test_letters_of_a_log_that_was_cut_and_filled_again_are_not_taken_for_those_replayed_before(
    make_topic, make_consumer, send, cut
):
    topic = make_topic()
    consumer = make_consumer(topic)
    dead_letters = topic.dead_letter_name

    def messages() -> int:
        return sum(ends(topic)[topic.name, partition] for partition in range(3))

    # One batch for each dead letter.
    for number in range(3):
        send(topic, renamed(f"old {number}"))
        handle(consumer)
    # A message of no topic, as a feed has them, and a record that no replay can read.
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
    # A second letter of a message whose first was replayed, and is gone from the log since.
    send(dead_letters, old[1].value(), headers=old[1].headers())
    sent = messages()

    report = run(topic, "after", dry_run=False)
    assert counts(report) == {"replayed_before": 1, "replayed": 2, "failing": 1, "duplicate": 1}
    assert [(row["dead_letter"], row["outcome"]) for row in report["letters"]] == [
        ("0@1", "replayed"), ("0@2", "failing"), ("0@3", "replayed"), ("0@4", "duplicate"),
    ]  # fmt: skip
    assert messages() == sent + 2
    # What was done is on record: nothing is sent by the next run.
    assert replayed(topic, "later") == {"replayed_before": 3, "failing": 1, "duplicate": 1}
    assert messages() == sent + 2
    handle(consumer)
    assert sorted(numbers(topic)) == ["new 1", "new feed", "old 0", "old 1", "old 2", "old feed"]


def test_two_dead_letters_of_one_event_act_once(make_topic, make_consumer, send):
    """The producer sent it twice: two messages, one event."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(7), renamed(7))
    handle(consumer)
    assert replayed(topic) == {"replayed": 2}
    handle(consumer)
    assert numbers(topic) == ["7"]


def killed_at(topic_name: str, where: str, number: int, arguments: str) -> None:
    """In a process of its own: one try of the task, killed by SIGKILL at this step's Nth time."""
    declare(Topic(topic_name, conftest.Order, key="number", partitions=3, retention=timedelta(days=1)))
    owner, name, before = {
        "before it is sent": (AcknowledgedProducer, "send", True),
        "before it is acknowledged": (AcknowledgedProducer, "flush", True),
        "before it is recorded": (Records, "replayed", True),
        "after it is recorded": (Records, "replayed", False),
    }[where]
    step, calls = getattr(owner, name), 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        step(*args, **kwargs)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killing)
    read(json.loads(arguments))


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
    # The same plan again, as Airflow retries a task.
    assert counts(read(planned)) == {"replayed": 5, "over_limit": 1}
    assert outcome_rows(topic) == ["replayed"] * 5
    sent = ends(topic)[topic.name, 0] - 6
    # Sent and not recorded: only then once more, with the same event id.
    assert sent in {"before it is recorded": [6], "before it is acknowledged": [5, 6]}.get(where, [5])
    handle(consumer)
    assert numbers(topic) == ["0", "1", "2", "3", "4"]
    # Cleared once more: nothing is left.
    assert counts(read(planned)) == {"replayed": 5, "over_limit": 1}
    assert ends(topic)[topic.name, 0] == 6 + sent


def test_a_try_that_was_given_up_and_goes_on_beside_its_retry_takes_nothing_back(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(7), renamed(8))
    handle(consumer)
    (arguments,) = plan(topic, "run", dry_run=False)
    parameters = arguments["apply_function_kwargs"]
    zombie, older = (
        replaying.Replay(replay_plan.Plan.model_validate(parameters["plan"]), parameters["conn_id"]) for _ in range(2)
    )
    # Started before a deploy brought the repair.
    older._repairs = Repairs()
    assert replayed(topic, "run") == {"replayed": 2}
    for letter in read_all(topic.dead_letter_name):
        zombie.take(letter)
        older.take(letter)
    older._records.flush()
    assert [row[3:] for row in rows(topic)] == [("replayed", None, "run")] * 2
    handle(consumer)
    assert numbers(topic) == ["7", "8"]


def test_dead_letters_that_come_while_it_reads_are_left_to_the_next_run(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    planned = plan(topic, "first", dry_run=False)
    send(topic, renamed(2), renamed(3))
    handle(consumer)
    assert counts(read(planned)) == {"replayed": 1}
    assert replayed(topic, "second") == {"replayed_before": 1, "replayed": 2}


def test_a_partition_that_grows_while_another_is_still_read_gives_what_was_planned(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    (arguments,) = plan(topic, dry_run=False)
    parameters = arguments["apply_function_kwargs"]
    planned = replay_plan.Plan.model_validate({**parameters["plan"], "ends": {0: 1, 1: 1}})
    send(topic, renamed(2))
    handle(consumer)
    unfinished = replaying.Replay(planned, parameters["conn_id"])
    assert [unfinished.take(letter) for letter in read_all(topic.dead_letter_name)] == [None, None]
    assert len(rows(topic)) == 1


def test_what_is_given_again_after_a_change_of_the_groups_members_counts_once(make_topic, make_consumer, send):
    """Nothing is committed, so the reading starts again at the beginning."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1), b"broken", renamed(2))
    handle(consumer)
    (arguments,) = plan(topic, dry_run=False)
    parameters = arguments["apply_function_kwargs"]
    replay = replaying.Replay(replay_plan.Plan.model_validate(parameters["plan"]), parameters["conn_id"])
    first, second, third = read_all(topic.dead_letter_name)
    given = [first, second, first, second, third, first]
    reports = [report for letter in given if (report := replay.take(letter))]
    assert [counts(report) for report in reports] == [{"replayed": 2, "failing": 1}]


def test_without_dead_letters_there_is_nothing_to_map(make_topic, operations):
    assert plan(make_topic()) == []


def test_several_partitions_of_dead_letters_with_holes_are_all_read(make_topic, make_consumer, send, admin):
    """Somebody gave the topic more partitions; a program that uses transactions writes there too."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    (letter,) = read_all(topic.dead_letter_name)
    for future in admin.create_partitions([NewPartitions(topic.dead_letter_name, 4)]).values():
        future.result(30)
    wait_for_topics(admin, topic.dead_letter_name)
    other = [(name, b"another" if name == "dlq.consumer" else value) for name, value in letter.headers()]
    send(topic.dead_letter_name, renamed(2), partition=2, headers=other)
    transact(letters_of(topic), topic.dead_letter_name, order("aborted"), commit=False)
    # One dead letter, one aborted message and the mark that says so: two offsets that hold nothing.
    wait_until(lambda: ends(topic)[topic.dead_letter_name, 0] == 3)
    # The operator waits for what does not come, once.
    report = read(plan(topic, dry_run=False), poll_timeout=8)
    assert counts(report) == {"replayed": 2}


def test_a_member_of_the_same_group_that_holds_the_partitions_fails_the_task_and_not_its_work(
    make_topic, make_consumer, send
):
    """The operator takes silence for the end of the topic: it would succeed, and have seen nothing."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    settings = client_config("kafka_dead_letters")
    other = KafkaConsumer(settings)
    other.subscribe([topic.dead_letter_name])
    assert other.poll(30) is not None
    with pytest.raises(replaying.ReplayIncomplete, match=r"group\.id of the connection kafka_dead_letters"):
        read(plan(topic, dry_run=False), poll_timeout=3)
    other.close()
    assert rows(topic) == []
    assert replayed(topic) == {"replayed": 1}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"enable_auto_commit": None}, "enable.auto.commit is missing; set it to false"),
        ({"auto_offset_reset": None}, "auto.offset.reset is missing; set it to earliest"),
        ({"enable_partition_eof": "false"}, "enable.partition.eof is 'false'; set it to true"),
        ({"group_id": None}, "group.id is missing"),
    ],
)
def test_a_connection_with_which_letters_would_be_passed_over_is_refused(
    changes, why, make_topic, operations, dead_letters_connection
):
    topic = make_topic()
    dead_letters_connection(**changes)
    with pytest.raises(replay_plan.ReplayImpossible, match=f"connection kafka_dead_letters: {why}"):
        plan(topic)


def test_a_group_that_has_committed_offsets_is_refused(make_topic, make_consumer, send, dead_letters_connection):
    """It would start behind the letters that lie before them."""
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, renamed(1))
    handle(consumer)
    somebody = KafkaConsumer(client_config("kafka_dead_letters"))
    somebody.commit(offsets=[TopicPartition(topic.dead_letter_name, 0, 1)], asynchronous=False)
    somebody.close()
    with pytest.raises(replay_plan.ReplayImpossible, match="has committed offsets"):
        plan(topic)
    dead_letters_connection()
    assert replayed(topic) == {"replayed": 1}


def test_topics_that_do_not_exist_are_said_to_be_missing(operations):
    topic = declare(Topic("never.made", conftest.Order, key="number", partitions=1, retention=None))
    with pytest.raises(replay_plan.ReplayImpossible, match="run prepare_services"):
        plan(topic)
