"""The example's Dag run per message in a real Airflow: each request has a run of its own, and a decision.

`tests/e2e/test_message_lane.py` tests the lane with bad messages and after a pause.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from include.water.consumers import TRIAGE_SERVICE_REQUESTS
from include.water.topics import SERVICE_REQUESTS, ServiceRequest
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.lane import Coordinates, Lane, of
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

FAN_OUT, WORKER = "fan_out_service_requests", "triage_service_request"
DAGS = (FAN_OUT, WORKER)


@pytest.fixture
def lane(whole_stack) -> Lane:
    return Lane(whole_stack.endpoints(), TRIAGE_SERVICE_REQUESTS.name, (SERVICE_REQUESTS,))


def request(text: str) -> ServiceRequest:
    event = example(
        ServiceRequest,
        request_id=f"SR-{uuid.uuid4().int % 10**12:012d}",
        customer_id=f"C-{uuid.uuid4().int % 10**6:06d}",
        received_at=datetime.now(UTC),
        text=text,
    )
    assert isinstance(event, ServiceRequest)
    return event


def send(lane: Lane, *events: ServiceRequest) -> list[Coordinates]:
    return lane.send(*(of(SERVICE_REQUESTS, event) for event in events))


def key(where: Coordinates) -> str:
    return "-".join(map(str, where))


def runs(airflow: Airflow, sent: list[Coordinates]) -> dict[str, list[str]]:
    """{partition key: states of its runs} of the messages sent."""
    states: dict[str, list[str]] = {key(where): [] for where in sent}
    for run in airflow.ask("GET", f"/dags/{WORKER}/dagRuns?limit=200&order_by=-id")["dag_runs"]:
        if run["partition_key"] in states:
            states[run["partition_key"]].append(run["state"])
    return states


def handled(lane: Lane, sent: list[Coordinates]) -> int:
    statement = 'select topic, partition, "offset" from inbox where consumer = %s and outcome = %s'
    done = set(lane.query(statement, TRIAGE_SERVICE_REQUESTS.name, "handled"))
    return len(done & set(sent))


def decided(lane: Lane, *events: ServiceRequest) -> set[tuple]:
    """(request id, topic, partition, offset) of their decisions."""
    statement = """
        select request_id, source_topic, source_partition, source_offset from decisions where request_id = any(%s)
    """
    return set(lane.query(statement, [event.request_id for event in events]))


def test_every_message_has_one_run_that_its_partition_key_finds(airflow: Airflow, lane: Lane):
    events = [request("Please send me a copy of my last bill."), request("The display of my meter is blank.")]
    sent = send(lane, *events)
    wait_for(lambda: handled(lane, sent) == 2, 90, "both are handled")
    wait_for(
        lambda: runs(airflow, sent) == {key(where): ["success"] for where in sent},
        60,
        "each has one run that succeeded",
    )
    assert decided(lane, *events) == {(event.request_id, *where) for event, where in zip(events, sent, strict=True)}
