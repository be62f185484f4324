"""A topic that exists on the broker: its newest messages are the sample."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from include.streams import Topic
from include.streams.kafka.sending import values_in
from tests import lanes, webhooks
from tests.scaffold.conftest import TYPED, Copy


@pytest.fixture
def broker(services) -> str:
    """The variable with the connection to the broker."""
    return os.environ["AIRFLOW_CONN_KAFKA_DEFAULT"]


@pytest.fixture
def topic(services, webhooks_file: Path) -> Topic:
    topic = lanes.copy_of(webhooks.topic())
    lanes.send(topic, [*values_in(webhooks_file.read_bytes()), *values_in(b"not JSON")])
    return topic


def test_a_topic_is_learned_from_its_newest_messages(copy: Copy, topic: Topic, broker: str):
    text = copy.make("topic", AIRFLOW_CONN_KAFKA_DEFAULT=broker, TOPIC=topic.name, PACKAGE="hooks", **TYPED)
    assert f"files for the topic {topic.name}, learned from 30 messages of the topic" in text
    assert "1 messages whose value is no JSON object were left out" in text
    assert "key: repository.full_name" in text
    assert "partitions=1," in (copy.folder / "include/hooks/topics.py").read_text()
    copy.make("lint")
    tests = "tests/dags/test_declarations.py tests/dags/test_policy.py tests/unit/hooks tests/integration/hooks"
    copy.make("test", ARGS=f"-n 0 {tests}")


def test_a_topic_that_does_not_exist_is_refused(copy: Copy, broker: str):
    done = copy.try_make("topic", AIRFLOW_CONN_KAFKA_DEFAULT=broker, TOPIC="nowhere.at-all")
    assert done.returncode
    assert "TOPIC=nowhere.at-all: the broker has no such topic" in done.stderr
