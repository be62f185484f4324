"""A message that kills its task's process delays only its own chunk."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from include.streams.contracts import Topic
from include.streams.kafka import tasks
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.messages import Message
from tests import forks
from tests.integration.kafka.conftest import Order, numbers, open_claims, order, record_effect

pytestmark = pytest.mark.integration

IN_A_FORK = """
from tests.integration.kafka import test_killed_chunks
test_killed_chunks.{call}
"""


def effect(connection: Connection, message: Message) -> None:
    if message.event.number == "kills":
        # As the kernel kills a process when no memory is left.
        os.kill(os.getpid(), signal.SIGKILL)
    record_effect(connection, message)


def consumer_of(topic: str) -> Consumer:
    declared = Topic(topic, Order, key="number", partitions=3, retention=timedelta(days=1))
    sizes = {"max_messages_per_claim": 500, "chunk_size": 2}
    return Consumer(name=topic, topics=(declared,), effect=f"{__name__}:effect", **sizes)


def claim(topic: str, result: str) -> None:
    Path(result).write_text(json.dumps(tasks.claim_messages(consumer_of(topic), "run")))


def handle(topic: str, chunk: str) -> None:
    tasks.handle_chunk(consumer_of(topic), json.loads(chunk), "run")


def fail(*_: object) -> None:
    raise ConnectionError


def test_if_the_first_chunk_kills_its_task_the_others_still_get_tasks(make_topic, operations, send, tmp_path):
    topic = make_topic(partitions=3)
    consumer = consumer_of(topic.name)
    send(topic, order("kills"), order("beside"), partition=0)
    for partition in (1, 2):
        send(topic, order(f"{partition}-0"), order(f"{partition}-1"), partition=partition)
    result = tmp_path / "chunks"
    claims = IN_A_FORK.format(call=f"claim({topic.name!r}, {str(result)!r})")
    assert forks.run(claims) == -signal.SIGKILL
    # The first retry; the task in Airflow has 20 retries, over hours.
    assert forks.run(claims) == 0
    first, *others = json.loads(result.read_text())
    assert len(others) == 2
    killed = IN_A_FORK.format(call=f"handle({topic.name!r}, {json.dumps(first)!r})")
    assert forks.run(killed) == -signal.SIGKILL
    for chunk in others:
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["1-0", "1-1", "2-0", "2-1"]
    assert open_claims(consumer) == 1
    # The effect is repaired.
    repaired = replace(consumer, effect="tests.integration.kafka.conftest:record_effect")
    tasks.handle_chunk(repaired, first, "run")
    assert numbers(topic) == ["kills", "beside", "1-0", "1-1", "2-0", "2-1"]
    assert open_claims(consumer) == 0


def test_a_retry_after_an_error_after_the_claim_handles_each_message_once(make_topic, make_consumer, send, monkeypatch):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic, chunk_size=2)
    send(topic, *(order(n) for n in range(5)))
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "split", fail)
        with pytest.raises(ConnectionError):
            tasks.claim_messages(consumer, "run")
    chunks = tasks.claim_messages(consumer, "run")
    assert numbers(topic) == []
    for chunk in chunks:
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["0", "1", "2", "3", "4"]
    assert open_claims(consumer) == 0
    # Cleared: the same ranges again, and nothing is handled twice.
    assert tasks.claim_messages(consumer, "run") == chunks
    for chunk in chunks:
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["0", "1", "2", "3", "4"]


def test_the_claiming_task_handles_the_first_chunk(make_topic, make_consumer, send):
    topic = make_topic(partitions=3)
    consumer = make_consumer(topic)
    for partition in range(3):
        send(topic, order(partition), partition=partition)
    assert tasks.claim_messages(consumer, "run") == []
    assert numbers(topic) == ["0", "1", "2"]
    assert open_claims(consumer) == 0
