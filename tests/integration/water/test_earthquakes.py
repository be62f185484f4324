"""The Dag `record_earthquakes`, with its own operator, on a real broker and a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import uuid
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from sqlalchemy import select

from dags.batch.record_earthquakes import record_earthquakes
from include.project import PROJECT
from include.streams.kafka.connection import client_config, consumer_config, producer_config
from include.streams.operations.database import begin
from include.water import earthquakes
from include.water.demo import DEMO
from include.water.tables import earthquakes as table
from include.water.topics import SEISMIC_EVENTS, ReviewStatus, SeismicEvent
from tests import forks
from tests.clients import producer_to
from tests.unit.water.test_topics import NOW, example

pytestmark = pytest.mark.integration

CONNECTION = "AIRFLOW_CONN_KAFKA_EARTHQUAKES"


@pytest.fixture(autouse=True)
def group(services, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection that the example declares, with the test's own consumer group."""
    PROJECT.prepare()
    name = f"earthquakes-{uuid.uuid4().hex[:8]}"
    # A killed task stays a member of the group for this time.
    settings = {**DEMO.kafka_connections["kafka_earthquakes"], "group.id": name, "session.timeout.ms": "3000"}
    extra = {**client_config(), **settings}
    monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "kafka", "extra": extra}))
    return name


@pytest.fixture
def seismic_id() -> str:
    return f"test{uuid.uuid4().hex[:8]}"


def revision(seismic_id: str, minutes: int, **changes: Any) -> SeismicEvent:
    return example(SeismicEvent, seismic_id=seismic_id, updated_at=NOW + timedelta(minutes=minutes), **changes)


def send(*values: SeismicEvent | bytes) -> None:
    producer = producer_to(producer_config(client_config()), SEISMIC_EVENTS.name)
    for value in values:
        content = value if isinstance(value, bytes) else SEISMIC_EVENTS.serialize(value)[1]
        producer.produce(SEISMIC_EVENTS.name, content, partition=0)
    assert producer.flush(30) == 0


def run(**changes: Any) -> None:
    """The Dag's task, with a shorter wait at the end of the topic."""
    operator = record_earthquakes().get_task("record")
    for name, value in {"poll_timeout": 2, **changes}.items():
        setattr(operator, name, value)
    operator.execute({})  # type: ignore[union-attr]


def recorded(seismic_id: str) -> list[tuple]:
    with begin() as connection:
        query = select(table.c.updated_at, table.c.magnitude, table.c.status).where(table.c.seismic_id == seismic_id)
        return [tuple(row) for row in connection.execute(query)]


def left(group: str) -> int:
    """How many records the group has not committed, read by an independent client."""
    reader = Consumer(consumer_config(client_config(), group))
    partitions = reader.list_topics(SEISMIC_EVENTS.name, timeout=10).topics[SEISMIC_EVENTS.name].partitions
    places = reader.committed([TopicPartition(SEISMIC_EVENTS.name, number) for number in partitions], timeout=10)
    lag = sum(reader.get_watermark_offsets(place, timeout=10)[1] - max(0, place.offset) for place in places)
    reader.close()
    return lag


def test_the_newest_revision_is_recorded_in_any_order(group, seismic_id):
    withdrawn = revision(seismic_id, 3, magnitude=None, status=ReviewStatus.deleted)
    send(revision(seismic_id, 2), withdrawn, revision(seismic_id, 1))
    run()
    assert recorded(seismic_id) == [(withdrawn.updated_at, None, "deleted")]
    assert left(group) == 0
    # A later run reads a newer revision, and a revision older than the recorded one.
    send(revision(seismic_id, 2))
    run()
    assert recorded(seismic_id) == [(withdrawn.updated_at, None, "deleted")]
    assert left(group) == 0


def test_an_invalid_record_is_skipped_and_the_others_are_recorded(group, seismic_id, caplog):
    secret = "no JSON, must not be logged"
    send(secret.encode(), revision(seismic_id, 1))
    run()
    assert len(recorded(seismic_id)) == 1
    assert left(group) == 0
    assert f"left out: {SEISMIC_EVENTS.name}-0@" in caplog.text
    assert secret not in caplog.text


def die_after_writing(records: list) -> None:
    earthquakes.record(records)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_run_repeats_a_run_killed_before_its_commit(group, seismic_id):
    send(revision(seismic_id, 1), revision(seismic_id, 2))
    before = left(group)
    script = f"from {__name__} import *; run(apply_function_batch={__name__ + '.die_after_writing'!r})"
    assert forks.run(script) == -signal.SIGKILL
    assert left(group) == before
    once = recorded(seismic_id)
    assert len(once) == 1
    # Until the killed task's session has expired, it keeps the group's partitions.
    run(poll_timeout=8)
    assert recorded(seismic_id) == once
    assert left(group) == 0


def test_a_failed_write_commits_nothing(group, seismic_id, monkeypatch: pytest.MonkeyPatch):
    def away(records: list) -> None:
        raise ConnectionError("the database is away")

    send(revision(seismic_id, 1))
    before = left(group)
    with pytest.raises(ConnectionError):
        run(apply_function_batch=away)
    assert left(group) == before
    run()
    assert len(recorded(seismic_id)) == 1
    assert left(group) == 0


def test_a_missing_topic_fails_the_task():
    with pytest.raises(KafkaException, match="UNKNOWN_TOPIC_OR_PART"):
        run(topics=["no.such.topic"])
