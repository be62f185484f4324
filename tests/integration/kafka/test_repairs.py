"""Repairs of consumers: claims, positions, keys and dead letters, on a real broker and a real database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include.streams.contracts.repairs import Repairs
from include.streams.kafka import tasks
from include.streams.kafka.__main__ import main
from include.streams.kafka.claims import positions_of
from include.streams.kafka.consumers import Shape
from include.streams.kafka.emitting import EmitKeys, emit_keys
from include.streams.kafka.moving import MoveClaim, move
from include.streams.kafka.replay import plan_replay, replay
from include.streams.kafka.reset import ResetConsumer, reset
from include.streams.kafka.settling import SettleDeadLetters, settle_dead_letters
from include.streams.operations.audit import Actor, Refused
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import numbers, order, whole_run
from tests.repairs import records_of

pytestmark = pytest.mark.integration

ANN = Actor("ann", "move_claim", "manual__1")


def moving(consumer: str, run_id: str = "deleted", **changes: Any) -> MoveClaim:
    params: Any = {"consumer": consumer, "run_id": run_id, "reason": "deleted by mistake", "dry_run": False, **changes}
    return params


def resetting(consumer: str, topic: str, **changes: Any) -> ResetConsumer:
    params: Any = {"consumer": consumer, "topic": topic, "reason": "recreated", "dry_run": False, **changes}
    return params


def deleted(dag_id: str, run_id: str) -> None:
    return None


@pytest.fixture
def claimed(make_topic, make_consumer, send):
    """A consumer and its topic; the run `deleted` has claimed four messages and handled the first of them."""
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic, chunk_size=1, max_messages_per_claim=4)
    send(topic, *(order(n) for n in range(4)))
    assert len(tasks.claim_messages(consumer, "deleted")) == 3
    return consumer, topic


def test_a_moved_claim_is_finished_by_the_new_run(claimed):
    consumer, topic = claimed
    assert numbers(topic) == ["0"]
    report = move(moving(consumer.name), ANN, state_of=deleted)
    assert report["dag_id"] == consumer.name
    assert report["lines"][0] == "run deleted was deleted"
    whole_run(consumer, report["new_run_id"])
    assert sorted(numbers(topic)) == ["0", "1", "2", "3"]
    # The retry of a task that was killed after the move starts the same run.
    assert move(moving(consumer.name), ANN, state_of=deleted) == report
    assert [record["outcome"] for record in records_of("consumer", consumer.name)] == ["done"]


def test_a_claim_can_be_moved_again(claimed):
    consumer, _ = claimed
    first = move(moving(consumer.name), ANN, state_of=deleted)["new_run_id"]
    second = move(moving(consumer.name, first), ANN, state_of=deleted)["new_run_id"]
    assert (first.rpartition("-")[2], second.rpartition("-")[2]) == ("1", "2")


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_claim_of_an_active_run_is_not_moved(claimed, state):
    consumer, _ = claimed
    with pytest.raises(Refused, match=f"run deleted of {consumer.name} is {state}: wait until it has ended"):
        move(moving(consumer.name), ANN, state_of=lambda dag_id, run_id: state)
    with pytest.raises(Refused, match=f"run moved-1-1 of {consumer.name} has no claim; .* open claim are: deleted$"):
        move(moving(consumer.name, "moved-1-1"), ANN, state_of=deleted)


def test_what_needs_no_move_is_refused_with_the_reason(claimed):
    consumer, _ = claimed
    with pytest.raises(Refused, match="maintain emits the keys of its open claims again"):
        move(moving(consumer.name), ANN, state_of=deleted, shape=Shape.per_message)
    whole_run(consumer, "deleted")
    with pytest.raises(Refused, match="is closed: all of its messages are handled"):
        move(moving(consumer.name), ANN, state_of=lambda dag_id, run_id: "success")


def test_the_command_asks_whether_the_run_has_ended(claimed, monkeypatch, capsys):
    consumer, _ = claimed
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite://")
    arguments = ["move-claim", consumer.name, "deleted", "--by", "ann"]
    assert main(arguments) == 1
    assert "look it up in Airflow, then add --owner-ended" in capsys.readouterr().err
    assert main([*arguments, "--owner-ended"]) == 0
    assert f"now start the Dag {consumer.name} with the run id moved-" in capsys.readouterr().out


def test_a_dry_run_of_a_reset_moves_nothing(claimed, admin):
    consumer, topic = claimed
    with begin() as connection:
        before = positions_of(connection, consumer.name)
    report = reset(resetting(consumer.name, topic.name, dry_run=True), ANN)
    assert report["lines"] == [f"{topic.name}-0: starts at offset 0"]
    with begin() as connection:
        assert positions_of(connection, consumer.name) == before
    assert reset(resetting(consumer.name, topic.name), ANN)["lines"] == report["lines"]
    with begin() as connection:
        assert [offset for _, offset in positions_of(connection, consumer.name).values()] == [0]
    with pytest.raises(Refused, match="has claimed nothing of topic"):
        reset(resetting(f"{consumer.name}-other", topic.name), ANN)


def emitting(**changes: Any) -> EmitKeys:
    params: Any = {"asset": "orders", "reason": "they were lost", "dry_run": False, **changes}
    return params


def test_keys_are_emitted_again_without_a_wait(make_topic, make_consumer, send):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, order("a"), order("b"))
    keys = tasks.claim_partition_keys(consumer, "fan out")
    tasks.handle_message(consumer, keys[0], "run")

    def find() -> list[str]:
        return tasks.claim_keys_again(consumer, worker_is_idle=False, worker_has_queue=True)

    assert find() == []
    planned = emit_keys(emitting(dry_run=True), ANN, consumer=consumer, find=find)
    assert planned["lines"] == [
        f"1 claims of {consumer.name} are open",
        f"{topic.name}: 1 claimed messages are not handled",
    ]
    assert (planned["keys"], find()) == ([], [])
    # The second is the retry of a task that was killed before Airflow stored the keys.
    for _ in range(2):
        emitted = emit_keys(emitting(), ANN, consumer=consumer, find=find)
        assert (emitted["keys"], emitted["lines"]) == ([keys[1]], ["1 keys are emitted again", keys[1]])


def test_keys_of_a_paused_dag_are_not_emitted():
    def find() -> list[str]:
        raise AirflowSkipException("triage is paused: Airflow would drop its keys")

    with pytest.raises(Refused, match="no key is emitted: triage is paused"):
        emit_keys(emitting(), ANN, consumer=None, find=find)


@pytest.fixture
def rejected(make_topic, make_consumer, send):
    """A topic with three dead letters, which a repair could correct now."""
    topic = make_topic(partitions=1)
    send(topic, *(order(n, amount=-1) for n in range(3)))
    whole_run(make_consumer(topic), "run")
    return topic


def settling(topic: str, **changes: Any) -> SettleDeadLetters:
    windows = dict.fromkeys(("letter_reason", "since", "until", "partition", "from_offset", "until_offset"))
    params: Any = {"action": "settle", "topic": topic, "letters": [], "reason": "sent by mail", "dry_run": False}
    return {**windows, **params, **changes}  # type: ignore[return-value]


def replayed(topic: Any, **changes: Any) -> dict[str, int]:
    """Replay; returns {outcome: number}."""
    topics: Any = {topic.name: topic}
    params = {"topic": topic.name, "dry_run": False, **changes}
    ranges = plan_replay(params, topics)
    report = replay(ranges, params, "replay", topics=topics, repairs=Repairs(), by=Actor("ann", "replay", "replay"))
    return {row["outcome"]: row["count"] for row in report["counts"]}


def test_settled_dead_letters_are_not_replayed_until_they_are_reopened(rejected):
    topics: Any = {rejected.name: rejected}
    letters = ["0@0", "0@2"]
    planned = settle_dead_letters(settling(rejected.name, letters=letters, dry_run=True), ANN, topics=topics)
    assert planned["lines"] == [f"2 dead letters of {rejected.name}: settled, they will not be replayed", *letters]
    assert replayed(rejected, dry_run=True) == {"would_replay": 3}

    settle_dead_letters(settling(rejected.name, letters=letters), ANN, topics=topics)
    assert replayed(rejected, dry_run=True) == {"settled": 2, "would_replay": 1}
    by = replace(ANN, run_id="manual__2")
    with pytest.raises(Refused, match=r"no dead letter of .* that is neither replayed nor settled is in the selection"):
        settle_dead_letters(settling(rejected.name, letters=letters), by, topics=topics)

    reopened = settle_dead_letters(settling(rejected.name, action="reopen", letters=["0@2"]), by, topics=topics)
    assert reopened["lines"] == [f"1 dead letters of {rejected.name}: reopened", "0@2"]
    assert replayed(rejected, letters=["0@0", "0@2"]) == {"settled": 1, "replayed": 1}
    # Everything that is left: a replayed dead letter cannot be settled.
    rest = settle_dead_letters(settling(rejected.name), by, topics=topics)
    assert rest["lines"][1:] == ["0@1"]
    assert [record["outcome"] for record in records_of("topic", rejected.name) if record["action"][:6] == "replay"] == [
        "done"
    ] * 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"letters": ["0-1"]}, "'0-1' is no dead letter: write partition@offset, such as 0@42"),
        ({"from_offset": 1}, "a window of offsets needs a partition"),
        ({"reason": ""}, "the reason is empty"),
    ],
)
def test_a_selection_that_contradicts_itself_is_refused(rejected, changes, expected):
    topics: Any = {rejected.name: rejected}
    with pytest.raises(Refused, match=expected):
        settle_dead_letters(settling(rejected.name, **changes), ANN, topics=topics)
