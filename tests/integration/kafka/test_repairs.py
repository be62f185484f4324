"""Repairs of consumers: moved claims and resets, on a real broker and a real database."""

from __future__ import annotations

from typing import Any

import pytest

from include.streams.kafka import tasks
from include.streams.kafka.__main__ import main
from include.streams.kafka.claims import positions_of
from include.streams.kafka.consumers import Shape
from include.streams.kafka.moving import MoveClaim, move
from include.streams.kafka.reset import ResetConsumer, reset
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
