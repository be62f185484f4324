"""Replays of dead letters in a real Airflow, started and read through its REST API."""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition

from include.water.consumers import TRIAGE_SERVICE_REQUESTS
from include.water.topics import METER_READINGS, SERVICE_REQUESTS, ServiceRequest
from tests.clients import producer_to, reader_at
from tests.e2e.airflow import Airflow, wait_for
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = "replay_dead_letters"
DAGS = (DAG, "fan_out_service_requests", "triage_service_request")
SECRET = "Jane Doe of 5 Sea Road has no water"


@pytest.fixture
def stack(whole_stack) -> dict[str, Any]:
    return whole_stack.endpoints()


def query(stack: dict[str, Any], statement: str, *values: Any) -> list[tuple]:
    with psycopg.connect(stack["databases"]["operations_db"], connect_timeout=5) as connection:
        return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]


def send(stack: dict[str, Any], key: bytes, value: bytes) -> tuple[int, int]:
    """Produce a request; returns its partition and offset."""
    where: list[tuple[int, int]] = []
    producer = producer_to({**stack["kafka"]["client_config"], "log_level": 2}, SERVICE_REQUESTS.name)
    producer.produce(
        SERVICE_REQUESTS.name,
        key=key,
        value=value,
        headers=[("trace", b"1")],
        on_delivery=lambda error, record: where.append((record.partition(), record.offset())),
    )
    producer.flush(30)
    return where[0]


def record_at(stack: dict[str, Any], partition: int, offset: int) -> Any:
    config = {**stack["kafka"]["client_config"], "log_level": 2}
    reader = reader_at(config, TopicPartition(SERVICE_REQUESTS.name, partition, offset))
    last = reader.poll(20)
    reader.close()
    assert last is not None
    assert last.error() is None
    return last


def inbox(stack: dict[str, Any], request_id: str) -> list[tuple]:
    statement = 'select partition, "offset", outcome from inbox where consumer = %s and event_id = %s'
    return query(stack, statement, TRIAGE_SERVICE_REQUESTS.name, request_id)


def replay(airflow: Airflow, **params: Any) -> tuple[str, dict[str, Any]]:
    """(run id, report) of a run with these parameters."""
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    airflow.ask("POST", f"/dags/{DAG}/dagRuns", dag_run_id=run_id, logical_date=None, conf=params)
    airflow.wait_for_success(run_id, DAG, seconds=180)
    path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/replay"
    return run_id, airflow.ask("GET", f"{path}/xcomEntries/return_value")["value"]


def test_an_invalid_request_is_repaired_replayed_and_triaged_once(airflow: Airflow, stack: dict):
    request = example(ServiceRequest, request_id=f"SR-{uuid.uuid4().int % 10**12:012d}", text=SECRET)
    key, good = SERVICE_REQUESTS.serialize(request)
    document = json.loads(good)
    # The field names of the app before its release 4.3.
    document["message"], document["title"] = document.pop("text"), document.pop("subject")
    partition, offset = send(stack, key, json.dumps(document).encode())
    kept = 'select outcome from inbox where topic = %s and partition = %s and "offset" = %s'
    wait_for(lambda: query(stack, kept, SERVICE_REQUESTS.name, partition, offset), 60, "the request is dealt with")
    assert query(stack, kept, SERVICE_REQUESTS.name, partition, offset) == [("dead_letter",)]

    only_this = {
        "topic": SERVICE_REQUESTS.name,
        "partition": partition,
        "from_offset": offset,
        "until_offset": offset + 1,
    }
    _, would = replay(airflow, **only_this)
    (row,) = would["dead_letters"]
    assert (would["dry_run"], row["outcome"], row["message"]) == (True, "would_replay", f"{partition}@{offset}")
    assert (
        query(stack, "select * from replays where source_partition = %s and source_offset = %s", partition, offset)
        == []
    )
    assert inbox(stack, request.request_id) == []

    run_id, did = replay(airflow, **only_this, dry_run=False)
    (row,) = did["dead_letters"]
    assert (did["dry_run"], row["outcome"]) == (False, "replayed")
    assert row["repairs"] == "renamed message to text, title to subject"
    ((again_partition, again_offset, outcome),) = wait_for(
        lambda: inbox(stack, request.request_id), 90, "the replayed request is handled"
    )
    assert (again_partition, outcome) == (partition, "handled")
    record = record_at(stack, again_partition, again_offset)
    assert (record.key(), SERVICE_REQUESTS.parse(record.value())) == (key, request)
    assert record.headers() == [
        ("trace", b"1"),
        ("replay.of", f"{SERVICE_REQUESTS.name}-{partition}@{offset}".encode()),
        ("replay.count", b"1"),
        ("replay.run_id", run_id.encode()),
    ]

    # A second replay has nothing to do, and the request has one decision.
    _, again = replay(airflow, **only_this, dry_run=False)
    assert [(row["outcome"], row["count"]) for row in again["counts"]] == [("replayed_before", 1)]
    assert len(inbox(stack, request.request_id)) == 1
    assert query(stack, "select count(*) from decisions where request_id = %s", request.request_id) == [(1,)]

    path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances"
    log = json.dumps(airflow.ask("GET", f"{path}/replay/logs/1?full_content=true"))
    assert "renamed message to text, title to subject" in log
    assert "missing_field  replayed  1" in log
    assert f"{partition}@{offset}" in log
    assert f"replayed: dead_letter={SERVICE_REQUESTS.dead_letter_name}-0@" in log
    assert "Jane" not in log


def test_without_dead_letters_the_run_is_skipped(airflow: Airflow):
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    airflow.ask(
        "POST", f"/dags/{DAG}/dagRuns", dag_run_id=run_id, logical_date=None, conf={"topic": METER_READINGS.name}
    )
    airflow.wait_for_success(run_id, DAG)
    assert {t["task_id"]: t["state"] for t in airflow.tasks(run_id, DAG)} == {
        "plan": "skipped",
        "replay": "skipped",
    }


@pytest.mark.parametrize(
    "conf", [{}, {"topic": "no.such.topic"}, {"topic": SERVICE_REQUESTS.name, "limit": 0}], ids=str
)
def test_a_run_with_invalid_parameters_is_refused(conf: dict, whole_stack, airflow: Airflow):
    with pytest.raises(AssertionError, match=r"40[0-9]|422"):
        airflow.ask("POST", f"/dags/{DAG}/dagRuns", logical_date=None, conf=conf)
