"""Approvals in a real Airflow: answered through the REST API in time, late, twice and not at all.

The tests see everything from outside: Airflow through its REST API, decisions and work orders in database and Kafka.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest

from include.water.consumers import TRIAGE_SERVICE_REQUESTS
from include.water.sites import DISTRICTS
from include.water.topics import SERVICE_REQUESTS, WORK_ORDERS, ServiceRequest, WorkOrder
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.lane import Lane
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

TRIAGE, EXECUTE = "triage_service_request", "execute_decisions"
DAGS = ("fan_out_service_requests", TRIAGE, EXECUTE, "deliver_outbox")
OPEN_APPROVALS = 3
SECONDS_TO_READ = 4
# A request for which the offline engine proposes an advice not to drink, and a request that it handles at once.
RISKY = "Our tap water smells strongly of petrol and two of us are vomiting since drinking it."
HARMLESS = "Please send me a copy of my last bill."


class OrdersLane(Lane):
    """The work orders, and another database session."""

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self._databases["operations_db"], connect_timeout=5)


class Requests:
    """Customers' requests and their outcomes."""

    def __init__(self, lane: OrdersLane, airflow: Airflow) -> None:
        self.lane = lane
        self.airflow = airflow
        # {run with an open approval: since when}.
        self._seen: dict[str, float] = {}

    def send(self, *texts: str) -> list[str]:
        """Send a request for each text; returns the request ids."""
        districts = list(DISTRICTS)
        events = [
            example(
                ServiceRequest,
                request_id=f"SR-{uuid.uuid4().int % 10**12:012d}",
                received_at=datetime.now(UTC),
                district_id=districts[n % len(districts)],
                subject="Help",
                text=text,
            )
            for n, text in enumerate(texts)
        ]
        self.lane.send(*((SERVICE_REQUESTS, *SERVICE_REQUESTS.serialize(event)) for event in events))
        return [event.request_id for event in events]

    def decisions(self, *request_ids: str, state: str | None = None) -> dict[str, dict[str, Any]]:
        """{decision id: row}, in the order of the decisions."""
        columns = "decision_id", "state", "risk", "verdict", "approver", "approval_run_id", "refusal", "proposal_hash"
        statement = f"select {', '.join(columns)} from decisions where request_id = any(%s) order by decided_at"
        rows = [dict(zip(columns, row, strict=True)) for row in self.lane.query(statement, list(request_ids))]
        return {row["decision_id"]: row for row in rows if state in (None, row["state"])}

    def asked(self, *request_ids: str) -> dict[str, str]:
        """{decision id: run id} of the decisions with an open approval."""
        open_runs = {detail["task_instance"]["dag_run_id"] for detail in self.open_approvals()}
        rows = self.decisions(*request_ids, state="awaiting_approval")
        return {name: row["approval_run_id"] for name, row in rows.items() if row["approval_run_id"] in open_runs}

    def open_approvals(self) -> list[dict[str, Any]]:
        """The newest hundred."""
        query = "response_received=false&state=awaiting_input&order_by=-created_at&limit=100"
        return self.airflow.ask("GET", f"/dags/{EXECUTE}/dagRuns/~/hitlDetails?{query}")["hitl_details"]

    def one_that_is_asked(self) -> tuple[str, str]:
        """(decision id, run id) of a new request that waits for a person."""
        (request_id,) = self.send(RISKY)
        ((decision_id, run_id),) = wait_for(lambda: self.asked(request_id), 90, "a person is asked").items()
        return decision_id, run_id

    def patch(self, run_id: str, option: str) -> httpx.Response:
        path = f"/dags/{EXECUTE}/dagRuns/{quote(run_id, safe='')}/taskInstances/approve/-1/hitlDetails"
        return self.airflow._client.patch(path, json={"chosen_options": [option], "params_input": {}})

    def answer(self, option: str, *request_ids: str) -> bool:
        """Answer the open approvals of these requests; returns False, for use in a condition of `wait_for`.

        It waits some seconds before an answer. If the task's first end (it asks) and its second (it was answered) come
        before the scheduler has processed the first, Airflow takes one for the other, retries the task and asks again.
        """
        for run_id in self.asked(*request_ids).values():
            if time.monotonic() - self._seen.setdefault(run_id, time.monotonic()) >= SECONDS_TO_READ:
                assert self.patch(run_id, option).status_code in (httpx.codes.OK, httpx.codes.CONFLICT)
                del self._seen[run_id]
        return False

    def settle(self, decision_id: str, option: str, state: str) -> dict[str, Any]:
        """Answer, wait until the decision has the state, and return its row."""
        request_id = decision_id.rsplit("-", 1)[0]
        settled = lambda: self.state_of(decision_id) == state or self.answer(option, request_id)  # noqa: E731
        wait_for(settled, 90, f"{decision_id} is {state}")
        return self.decisions(request_id)[decision_id]

    def state_of(self, decision_id: str) -> str:
        return self.lane.query("select state from decisions where decision_id = %s", decision_id)[0][0]

    def wait_for_state(self, decision_id: str, state: str, seconds: float = 60) -> dict[str, Any]:
        wait_for(lambda: self.state_of(decision_id) == state, seconds, f"{decision_id} is {state}")
        return self.decisions(decision_id.rsplit("-", 1)[0])[decision_id]

    def orders(self, decision_id: str) -> list[tuple]:
        statement = "select action, basis from work_orders where decision_id = %s"
        return self.lane.query(statement, decision_id)

    def ordered(self, *decision_ids: str) -> list[WorkOrder]:
        """The messages on work.orders about these decisions, since the test began."""
        events = [WORK_ORDERS.parse(record.value()) for record in self.lane.records(WORK_ORDERS.name)]
        return [event for event in events if isinstance(event, WorkOrder) and event.decision_id in decision_ids]

    def wait_for_order(self, decision_id: str, action: str, basis: str) -> None:
        """Assert that there is exactly one work order and one message, also some time later."""
        wait_for(lambda: self.ordered(decision_id), 60, f"{decision_id} is announced on {WORK_ORDERS.name}")
        assert self.orders(decision_id) == [(action, basis)]
        assert [(one.action, one.basis) for one in self.ordered(decision_id)] == [(action, basis)]

    def emit(self, decision_id: str) -> None:
        """The partition key of the decision, as triage and maintain emit it."""
        assets = self.airflow.ask("GET", "/assets?name_pattern=proposal")["assets"]
        (asset_id,) = [asset["id"] for asset in assets if asset["name"] == "proposal"]
        self.airflow.ask("POST", "/assets/events", asset_id=asset_id, partition_key=decision_id)

    def runs(self, decision_id: str) -> dict[str, str]:
        """{run id: state} of the runs for this decision."""
        statement = "select run_id, state from dag_run where dag_id = %s and partition_key = %s"
        return {
            str(run_id): str(state)
            for run_id, state in self.lane.query(statement, EXECUTE, decision_id, database="airflow_metadata")
        }

    def states(self, run_id: str) -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in self.airflow.tasks(run_id, EXECUTE)}

    def clear(self, run_id: str) -> None:
        self.airflow.ask(
            "POST",
            f"/dags/{EXECUTE}/clearTaskInstances",
            dry_run=False,
            dag_run_id=run_id,
            only_failed=False,
            only_running=False,
            reset_dag_runs=True,
        )


@pytest.fixture
def requests(whole_stack, airflow) -> Requests:
    return Requests(OrdersLane(whole_stack.endpoints(), TRIAGE_SERVICE_REQUESTS.name, (WORK_ORDERS,)), airflow)


def test_open_approvals_do_not_delay_new_requests(requests: Requests, airflow: Airflow):
    sent = requests.send(*[RISKY] * OPEN_APPROVALS)
    wait_for(lambda: len(requests.asked(*sent)) == OPEN_APPROVALS, 180, f"{OPEN_APPROVALS} approvals are open")
    # An open approval occupies no run of triage, whose active runs are limited.
    for request_id in sent:
        wait_for(partial(triage_has_ended, requests, request_id), 60, f"the triage of {request_id} has ended")
    assert len(requests.asked(*sent)) == OPEN_APPROVALS
    assert all(requests.orders(decision_id) == [] for decision_id in requests.asked(*sent))
    (harmless,) = requests.send(HARMLESS)
    (decision_id,) = wait_for(lambda: requests.decisions(harmless, state="executed"), 60, "a new request is decided")
    requests.wait_for_order(decision_id, "open_ticket", "low_risk")
    new, _ = requests.one_that_is_asked()
    assert new not in requests.asked(*sent)
    requests.settle(new, "Reject", "rejected")
    assert len(requests.asked(*sent)) == OPEN_APPROVALS

    def all_settled() -> bool:
        done = len(requests.decisions(*sent, state="rejected")) == OPEN_APPROVALS
        return done or requests.answer("Reject", *sent)

    wait_for(all_settled, 180, "all are settled")


def test_an_approval_is_executed_once_although_repeated_and_cleared(requests: Requests, airflow: Airflow):
    decision_id, run_id = requests.one_that_is_asked()
    (detail,) = [one for one in requests.open_approvals() if one["task_instance"]["dag_run_id"] == run_id]
    assert decision_id in detail["subject"]
    assert detail["defaults"] == ["Reject"]
    assert "not to drink the water" in detail["body"]
    assert "vomiting" not in str(detail)
    row = requests.settle(decision_id, "Approve", "executed")
    for option in ("Approve", "Reject"):
        assert requests.patch(run_id, option).status_code == httpx.codes.CONFLICT
    assert (row["verdict"], row["approver"], row["approval_run_id"]) == ("approved", "admin", run_id)
    requests.wait_for_order(decision_id, "advise_not_to_drink", "approved")
    airflow.wait_for_success(run_id, EXECUTE)
    assert set(requests.states(run_id).values()) == {"success"}
    requests.clear(run_id)
    wait_for(lambda: requests.states(run_id)["ask"] == "skipped", 60, "the cleared run finds the decision settled")
    airflow.wait_for_success(run_id, EXECUTE)
    assert set(requests.states(run_id).values()) == {"skipped"}
    requests.wait_for_order(decision_id, "advise_not_to_drink", "approved")


def test_only_named_approvers_may_answer_and_are_checked_again(requests: Requests, airflow: Airflow):
    try:
        # Airflow refuses the answer of a user who is not named.
        set_approvers(airflow, "somebody else")
        decision_id, run_id = requests.one_that_is_asked()
        answer = requests.patch(run_id, "Approve")
        assert answer.status_code == httpx.codes.FORBIDDEN, answer.text
        assert requests.state_of(decision_id) == "awaiting_approval"
        # The executor refuses the answer of a user who was removed from the list after the question.
        set_approvers(airflow, "admin")
        other, _ = requests.one_that_is_asked()
        set_approvers(airflow, "somebody else")
        row = requests.settle(other, "Approve", "refused")
        assert (row["verdict"], row["approver"], row["refusal"]) == ("approved", "admin", "admin may not approve")
        requests.wait_for_order(other, "hand_to_person", "refused")
    finally:
        set_approvers(airflow, "admin")
    # Airflow keeps the users of a question, so nobody can answer it now: a person gets the request.
    path = f"/dags/{EXECUTE}/dagRuns/{quote(run_id, safe='')}/taskInstances/approve"
    airflow.ask("PATCH", path, new_state="success")
    requests.wait_for_state(decision_id, "expired")


def set_approvers(airflow: Airflow, *users: str) -> None:
    airflow.ask("PATCH", "/variables/water_approvers", key="water_approvers", value=json.dumps(users))


def test_a_rejection_gives_the_request_to_a_person(requests: Requests, airflow: Airflow):
    decision_id, run_id = requests.one_that_is_asked()
    row = requests.settle(decision_id, "Reject", "rejected")
    assert (row["verdict"], row["approver"]) == ("rejected", "admin")
    requests.wait_for_order(decision_id, "hand_to_person", "rejected")
    airflow.wait_for_success(run_id, EXECUTE)
    assert set(requests.states(run_id).values()) == {"success"}


def test_a_task_marked_as_successful_by_hand_approves_nothing(requests: Requests, airflow: Airflow):
    decision_id, run_id = requests.one_that_is_asked()
    path = f"/dags/{EXECUTE}/dagRuns/{quote(run_id, safe='')}/taskInstances/approve"
    airflow.ask("PATCH", path, new_state="success")
    requests.wait_for_state(decision_id, "expired")
    requests.wait_for_order(decision_id, "hand_to_person", "expired")
    airflow.wait_for_success(run_id, EXECUTE)


def test_a_second_run_for_an_open_approval_asks_nobody(requests: Requests, airflow: Airflow):
    decision_id, run_id = requests.one_that_is_asked()
    requests.emit(decision_id)
    second = wait_for(lambda: set(requests.runs(decision_id)) - {run_id}, 60, "the key has started a second run").pop()
    airflow.wait_for_success(second, EXECUTE)
    assert set(requests.states(second).values()) == {"skipped"}
    assert requests.asked(decision_id.rsplit("-", 1)[0]) == {decision_id: run_id}
    requests.settle(decision_id, "Approve", "executed")
    requests.wait_for_order(decision_id, "advise_not_to_drink", "approved")


def test_a_dropped_key_is_emitted_again_and_its_proposal_expires(requests: Requests, airflow: Airflow):
    airflow.pause(EXECUTE, True)
    try:
        (request_id,) = requests.send(RISKY)
        (decision_id,) = wait_for(lambda: requests.decisions(request_id), 90, "it is decided")
        # Triage has emitted its key when its run has ended.
        wait_for(lambda: triage_has_ended(requests, request_id), 60, "its run has ended")
    finally:
        airflow.pause(EXECUTE, False)
    # An hour is too long to wait. The deadline is only a column of the decision, so it can be changed.
    set_deadline(requests, decision_id, timedelta(seconds=12))
    requests.emit(decision_id)
    run_id = wait_for(lambda: requests.asked(request_id), 10, "a person is asked before the deadline")[decision_id]
    row = requests.wait_for_state(decision_id, "expired", seconds=90)
    assert (row["verdict"], row["approver"]) == ("expired", None)
    requests.wait_for_order(decision_id, "hand_to_person", "expired")
    assert requests.patch(run_id, "Approve").status_code == httpx.codes.CONFLICT
    airflow.wait_for_success(run_id, EXECUTE)
    assert requests.state_of(decision_id) == "expired"


def triage_has_ended(requests: Requests, request_id: str) -> bool:
    statement = "select source_topic, source_partition, source_offset from decisions where request_id = %s"
    (where,) = requests.lane.query(statement, request_id)
    ended = "select 1 from dag_run where dag_id = %s and partition_key = %s and state = 'success'"
    key = "-".join(map(str, where))
    return bool(requests.lane.query(ended, TRIAGE, key, database="airflow_metadata"))


def set_deadline(requests: Requests, decision_id: str, left: timedelta) -> None:
    with requests.lane.connect() as connection:
        connection.execute(
            "update decisions set deadline_at = %s where decision_id = %s", (datetime.now(UTC) + left, decision_id)
        )


def test_an_unexecuted_approval_of_a_cleared_run_does_not_count(requests: Requests, airflow: Airflow):
    decision_id, run_id = requests.one_that_is_asked()
    request_id = decision_id.rsplit("-", 1)[0]

    def state(task: str) -> Callable[[], str]:
        return lambda: requests.states(run_id)[task]

    with requests.lane.connect() as connection:
        # The executor waits for this lock: it has the approval, but has executed nothing yet.
        connection.execute("select 1 from decisions where decision_id = %s for update", (decision_id,))

        def executor_waits() -> bool:
            waits = state("settle")() == "running" and waits_for_lock(requests)
            return waits or requests.answer("Approve", request_id)

        wait_for(executor_waits, 90, "the executor waits")
        requests.clear(run_id)
        wait_for(lambda: state("settle")() not in ("running", "restarting"), 90, "the executor was ended")
    wait_for(lambda: requests.asked(request_id), 90, "a person is asked again")
    assert requests.state_of(decision_id) == "awaiting_approval"
    assert requests.orders(decision_id) == []
    requests.settle(decision_id, "Reject", "rejected")
    requests.wait_for_order(decision_id, "hand_to_person", "rejected")
    airflow.wait_for_success(run_id, EXECUTE)


def waits_for_lock(requests: Requests) -> bool:
    return bool(requests.lane.query("select 1 from pg_locks where not granted"))
