"""Repairs as Dag runs in a real Airflow: dry run, repair, refusal, and the record of the user who triggered them."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import psycopg
import pytest

from include.project import PROJECT
from tests.e2e.airflow import Airflow, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

KIND = "messages_lost"


class Operator:
    """A person who starts repairs, and looks at the operational database."""

    def __init__(self, database: str, airflow: Airflow) -> None:
        self._database = database
        self.airflow = airflow

    def sql(self, statement: str, *values: Any) -> list[tuple]:
        with psycopg.connect(self._database, connect_timeout=5) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def trigger(self, dag: str, **params: Any) -> str:
        """Start a run; returns its id."""
        return self.airflow.ask("POST", f"/dags/{dag}/dagRuns", logical_date=None, conf=params)["dag_run_id"]

    def end(self, dag: str, run_id: str) -> str:
        """Wait for the end of the run; returns its state."""

        def ended() -> str | None:
            state = self.airflow.run(run_id, dag)["state"]
            return state if state in ("success", "failed") else None

        return wait_for(ended, 60, f"the run {run_id} of {dag} ends")

    def result(self, dag: str, run_id: str, task: str) -> dict[str, Any]:
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/return_value?deserialize=true"
        return self.airflow.ask("GET", path)["value"]

    def record(self, run_id: str) -> tuple:
        """(user, reason, dry run, outcome) of the last try of a run."""
        columns = "user_name, reason, dry_run, outcome"
        (row,) = self.sql(f"select {columns} from operations_audit where run_id = %s order by id desc limit 1", run_id)
        return row


@pytest.fixture(scope="module")
def operator(whole_stack, airflow) -> Operator:
    databases = whole_stack.endpoints()["databases"]
    return Operator(databases["operations_db"], airflow)


@pytest.fixture
def source(operator: Operator) -> str:
    """The source of an open alarm."""
    name = f"source-{uuid.uuid4().hex[:8]}"
    operator.sql("insert into alarms (source, kind, message) values (%s, %s, 'offsets [0, 3)')", name, KIND)
    return name


def is_open(operator: Operator, source: str) -> bool:
    return bool(operator.sql("select 1 from alarms where source = %s and closed_at is null", source))


def test_an_alarm_is_closed_by_a_run_for_its_user(operator: Operator, source: str):
    run_id = operator.trigger("close_alarm", source=source, kind=KIND)
    assert operator.end("close_alarm", run_id) == "success"
    lines = [f"closed: {KIND} of {source}"]
    assert operator.result("close_alarm", run_id, "close") == {"dry_run": True, "lines": lines}
    assert is_open(operator, source)
    assert operator.record(run_id) == ("admin", "", True, "done")

    run_id = operator.trigger("close_alarm", source=source, kind=KIND, reason="sent again", dry_run=False)
    assert operator.end("close_alarm", run_id) == "success"
    assert not is_open(operator, source)
    assert operator.record(run_id) == ("admin", "sent again", False, "done")


def test_a_repair_that_is_not_possible_fails_at_once(operator: Operator, source: str):
    run_id = operator.trigger("close_alarm", source=source, kind="lag", reason="no reason", dry_run=False)
    assert operator.end("close_alarm", run_id) == "failed"
    (task,) = operator.airflow.tasks(run_id, "close_alarm")
    assert task["try_number"] == 1
    assert operator.record(run_id) == ("admin", "no reason", False, "refused")


def test_wrong_parameters_start_no_run(operator: Operator, source: str):
    for wrong in ({"kind": "no_such_kind"}, {"source": " a "}, {"dry_run": "no"}):
        body = {"logical_date": None, "conf": {"source": source, "kind": KIND, **wrong}}
        answer = operator.airflow._client.post("/dags/close_alarm/dagRuns", json=body)
        assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text


def test_the_claim_of_a_deleted_run_goes_to_a_new_run(operator: Operator):
    if not (chunked := [each.name for each in PROJECT.consumers if each.shape == "chunked"]):
        pytest.skip("no consumer with a claim for each run")
    consumer = chunked[0]
    gone = f"asset_triggered__{uuid.uuid4().hex[:8]}"
    operator.sql("insert into consumers (name) values (%s) on conflict do nothing", consumer)
    ((claim,),) = operator.sql("insert into claims (consumer, run_id) values (%s, %s) returning id", consumer, gone)
    run_id = operator.trigger("move_claim", consumer=consumer, run_id=gone, reason="db clean", dry_run=False)
    assert operator.end("move_claim", run_id) == "success"
    new = f"moved-{claim}-1"
    assert operator.sql("select run_id from claims where id = %s", claim) == [(new,)]
    # The consumer's Dag is paused in this module, so its run waits.
    assert operator.airflow.run(new, consumer)["state"] == "queued"
    # An active run keeps its claim.
    run_id = operator.trigger("move_claim", consumer=consumer, run_id=new, reason="again", dry_run=False)
    assert operator.end("move_claim", run_id) == "failed"
    ((detail,),) = operator.sql("select detail from operations_audit where run_id = %s", run_id)
    assert detail == f"run {new} of {consumer} is queued: wait until it has ended; if it has failed, clear it instead"
    operator.sql("delete from claims where id = %s", claim)


def test_the_other_repairs_answer_a_dry_run(operator: Operator):
    runs = {
        "repair_outbox": (operator.trigger("repair_outbox", action="deliver_now"), "failed"),
        "roll_back_model": (operator.trigger("roll_back_model", model="none"), "success"),
    }
    for topic in PROJECT.landed_topics[:1]:
        runs["repair_landing"] = operator.trigger("repair_landing", topic=topic), "success"
    for dag, (run_id, state) in runs.items():
        assert operator.end(dag, run_id) == state, dag
        assert operator.record(run_id)[0] == "admin"
