"""One Dag run per message in a real Airflow: each request has a run of its own, also one that came during a pause.

Looked at from outside, as in `test_event_lane.py`.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from include.water.consumers import TRIAGE_SERVICE_REQUESTS
from include.water.topics import SERVICE_REQUESTS, ServiceRequest
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.water.test_event_lane import Coordinates, Lane
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

FAN_OUT, WORKER = "fan_out_service_requests", "triage_service_request"
DAGS = (FAN_OUT, WORKER, "maintain")


@pytest.fixture
def lane(whole_stack) -> Lane:
    return Lane(whole_stack.endpoints())


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
    return lane.send(*((SERVICE_REQUESTS, *SERVICE_REQUESTS.serialize(event)) for event in events))


def key(where: Coordinates) -> str:
    return "-".join(map(str, where))


def runs(airflow: Airflow, sent: list[Coordinates]) -> dict[str, list[str]]:
    """{partition key: states of its runs} of the messages sent."""
    found: dict[str, list[str]] = {key(where): [] for where in sent}
    for run in airflow.ask("GET", f"/dags/{WORKER}/dagRuns?limit=200&order_by=-id")["dag_runs"]:
        if run["partition_key"] in found:
            found[run["partition_key"]].append(run["state"])
    return found


def handled(lane: Lane, sent: list[Coordinates]) -> int:
    statement = 'select topic, partition, "offset" from inbox where consumer = %s and outcome = %s'
    done = set(lane.query(statement, TRIAGE_SERVICE_REQUESTS.name, "handled"))
    return len(done & set(sent))


def emitted(lane: Lane, sent: list[Coordinates]) -> int:
    """How many of the messages sent are in claims whose keys were emitted; each message may have one of its own."""
    statement = """
        select count(*) from claims join claim_ranges on claim_id = id
        where consumer = %s and emitted_at is not null
        and topic = %s and partition = %s and start_offset <= %s and end_offset > %s
    """
    name = TRIAGE_SERVICE_REQUESTS.name
    return sum(lane.query(statement, name, topic, partition, offset, offset)[0][0] for topic, partition, offset in sent)


def decided(lane: Lane, *events: ServiceRequest) -> set[tuple]:
    """(request id, topic, partition, offset) of their decisions."""
    statement = """
        select request_id, source_topic, source_partition, source_offset from decisions where request_id = any(%s)
    """
    return set(lane.query(statement, [event.request_id for event in events]))


def test_every_message_has_a_run_of_its_own_that_is_found_by_its_key(airflow: Airflow, lane: Lane):
    events = [request("Please send me a copy of my last bill."), request("The display of my meter is blank.")]
    sent = send(lane, *events)
    wait_for(lambda: handled(lane, sent) == 2, 90, "both are handled")
    wait_for(
        lambda: runs(airflow, sent) == {key(where): ["success"] for where in sent},
        60,
        "each has one run that succeeded",
    )
    assert decided(lane, *events) == {(event.request_id, *where) for event, where in zip(events, sent, strict=True)}


def test_a_message_that_breaks_its_contract_gets_no_run(airflow: Airflow, lane: Lane):
    sent = lane.send((SERVICE_REQUESTS, b"C-000001", b"not a request"))
    good = send(lane, request("A question about my tariff."))
    wait_for(lambda: handled(lane, good) == 1, 90, "the good one is handled")
    assert runs(airflow, sent) == {key(sent[0]): []}
    statement = 'select outcome from inbox where consumer = %s and topic = %s and partition = %s and "offset" = %s'
    assert lane.query(statement, TRIAGE_SERVICE_REQUESTS.name, *sent[0]) == [("dead_letter",)]


def test_a_dag_that_was_paused_gets_every_message_it_missed(airflow: Airflow, lane: Lane):
    airflow.pause(WORKER, True)
    try:
        events = [request(f"Bill {n} seems too high, please check it.") for n in range(3)]
        sent = send(lane, *events)
        wait_for(lambda: emitted(lane, sent) == 3, 60, "their keys are emitted")
        fan_outs = f"/dags/{FAN_OUT}/dagRuns?state=running&state=queued"
        wait_for(lambda: not airflow.ask("GET", fan_outs)["dag_runs"], 60, "the fan-out has ended")
    finally:
        airflow.pause(WORKER, False)
    assert handled(lane, sent) == 0
    # What `maintain` finds after an hour. The pause may have caught the run of an earlier message before its end, and a
    # worker that is not idle is given more time than one that is.
    lane.execute("update claims set emitted_at = emitted_at - interval '1 hour' where closed_at is null")
    airflow.ask("POST", "/dags/maintain/dagRuns", logical_date=None)
    wait_for(lambda: handled(lane, sent) == 3, 120, "all three are handled")
    assert decided(lane, *events) == {(event.request_id, *where) for event, where in zip(events, sent, strict=True)}
