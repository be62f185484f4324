"""Decisions on a real PostgreSQL: low-risk actions happen once, high-risk actions once and only after approval."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import Row, delete, func, select, text, update
from sqlalchemy.exc import IntegrityError

from include.project import PROJECT
from include.streams.kafka.connection import admin_config, client_config, consumer_config
from include.streams.kafka.delivery import deliver_due
from include.streams.kafka.messages import Message
from include.streams.kafka.topics import create_topics
from include.streams.operations import tables
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.water.consumers import TRIAGE_SERVICE_REQUESTS
from include.water.retention import RECORDS_KEPT
from include.water.sites import DISTRICTS
from include.water.tables import decisions, work_orders
from include.water.topics import SERVICE_REQUESTS, WORK_ORDERS, ServiceRequest, Severity, WorkOrder
from include.water.triage import execute as executor
from include.water.triage import policy
from include.water.triage.effect import (
    awaiting_approval,
    content_hash,
    decision_id_of,
    open_proposals,
    record_decision,
)
from include.water.triage.execute import CONSUMER, Answer, ask, execute, read_answer
from include.water.triage.proposals import Action, Category, Proposal, Target, TargetKind, TriageDecision
from tests import forks
from tests.clients import reader_at
from tests.integration.kafka.conftest import wait_for_topics
from tests.unit.water.test_topics import NOW, example

VARIABLE = "AIRFLOW_VAR_WATER_APPROVERS"

pytestmark = pytest.mark.integration

numbers = count(1)
customer, district, site = TargetKind.customer, TargetKind.district, TargetKind.site


@pytest.fixture(autouse=True)
def database(services) -> Iterator[None]:
    upgrade()
    with begin() as connection:
        for table in (work_orders, decisions, tables.outbox):
            connection.execute(delete(table))
    yield
    with begin() as connection:  # other deliveries must not find these rows
        connection.execute(delete(tables.outbox))


def a_request(**changes: Any) -> Message:
    number = next(numbers)
    event = example(ServiceRequest, **{"request_id": f"SR-{number:08d}", **changes})
    key, value = SERVICE_REQUESTS.serialize(event)
    return Message(SERVICE_REQUESTS.name, "id", 1, number, NOW, key, value, (), event)


def proposal(action: Action, kind: TargetKind = customer, target_id: str = "C-000001", **changes: Any) -> Proposal:
    fields = {"category": Category.burst_pipe, "severity": Severity.critical, "summary": "Water in the street"}
    target = Target(kind=kind, id=target_id)
    decision = TriageDecision(action=action, target=target, **{**fields, "evidence": ("leak:harbour/1",), **changes})
    return Proposal(
        decision,
        "llm",
        model_asked="asked",
        model_answered="answered",
        prompt_version="3",
        tool_calls=({"name": "open_alerts", "arguments": {"near": "harbour"}, "ids": ["leak:harbour/1"]},),
        usage={"requests": 2, "input_tokens": 10, "output_tokens": 5},
        explanation={"similarity": 0.5},
    )


CLOSE = (Action.close_valve, district, "harbour")


def record(message: Message, proposed: Proposal) -> Row:
    with begin() as connection:
        record_decision(connection, message, proposed)
    return decision_on(message)


def awaiting() -> Row:
    """A decision to close a valve, which waits for approval."""
    row = record(a_request(), proposal(*CLOSE))
    assert row.state == "awaiting_approval"
    return row


@pytest.fixture(autouse=True)
def named_approvers(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, '["ada", "a", "c"]')


def decision_on(message: Message) -> Row:
    with begin() as connection:
        query = select(decisions).where(decisions.c.request_id == message.event.request_id)
        return connection.execute(query).one()


def look(decision_id: str) -> Row:
    with begin() as connection:
        return connection.execute(select(decisions).where(decisions.c.decision_id == decision_id)).one()


def orders() -> list[Row]:
    with begin() as connection:
        return list(connection.execute(select(work_orders).order_by("created_at")))


def messages(consumer: str) -> list[WorkOrder]:
    """The pending outbox rows of a consumer."""
    with begin() as connection:
        query = select(tables.outbox).where(tables.outbox.c.consumer == consumer).order_by("sequence")
        rows = list(connection.execute(query))
    assert {row.destination for row in rows} <= {WORK_ORDERS.name}
    return [event for row in rows if isinstance(event := WORK_ORDERS.parse(row.body), WorkOrder)]


def approved(by: str = "ada", at: datetime | None = None) -> Answer:
    return Answer("approved", by, at or datetime.now(UTC), by)


def rejected(by: str = "ada") -> Answer:
    return Answer("rejected", by, datetime.now(UTC), by)


def nobody() -> Answer:
    return read_answer(None)


def set_row(decision_id: str, **values: Any) -> None:
    with begin() as connection:
        connection.execute(update(decisions).where(decisions.c.decision_id == decision_id).values(values))


# The outcome of triage.


def test_a_low_risk_action_is_ordered_in_the_messages_transaction():
    message = a_request()
    row = record(message, proposal(Action.open_ticket, site, "pump-harbour"))
    assert (row.state, row.risk, row.verdict, row.approver) == ("executed", "low", None, None)
    assert row.executed_at is not None
    assert row.decision_id == f"{message.event.request_id}-{row.proposal_hash[:12]}"
    (order,), (event,) = orders(), messages(TRIAGE_SERVICE_REQUESTS.name)
    assert (order.decision_id, order.action, order.target_id) == (row.decision_id, "open_ticket", "pump-harbour")
    assert (event.decision_id, event.action, event.target_id) == (row.decision_id, "open_ticket", "pump-harbour")
    assert (event.basis, event.proposed_action, event.severity) == ("low_risk", "open_ticket", "critical")
    assert event.event_id == order.work_order_id == f"WO-{row.decision_id}"


def test_the_row_records_how_the_decision_was_made():
    message = a_request()
    row = record(message, proposal(*CLOSE))
    proposed = proposal(*CLOSE)
    assert (row.engine, row.model_asked, row.model_answered, row.prompt_version) == ("llm", "asked", "answered", "3")
    assert (row.tool_calls, row.usage) == (list(proposed.tool_calls), proposed.usage)
    assert (row.explanation, row.fallback_reason, row.evidence) == ({"similarity": 0.5}, None, ["leak:harbour/1"])
    assert (row.category, row.severity, row.severity_rank) == ("burst_pipe", "critical", 2)
    assert (row.summary, row.customer_id, row.district_id) == ("Water in the street", "C-000001", "harbour")
    assert (row.source_topic, row.source_partition, row.source_offset) == ("service.requests", 1, message.offset)
    assert row.source_timestamp == NOW


@pytest.mark.parametrize(
    "proposed",
    [CLOSE, (Action.advise_not_to_drink, district, "harbour"), (Action.advise_not_to_drink, customer, "C-000001")],
)
def test_a_high_risk_action_waits_and_orders_nothing(proposed: tuple):
    row = record(a_request(), proposal(*proposed))
    assert (row.state, row.risk, row.executed_at) == ("awaiting_approval", "high", None)
    assert row.deadline_at == row.decided_at + policy.APPROVAL_DEADLINE
    assert orders() == []
    assert messages(TRIAGE_SERVICE_REQUESTS.name) == messages(CONSUMER) == []


@pytest.mark.parametrize(("night", "state"), [(False, "executed"), (True, "awaiting_approval")])
def test_a_crew_needs_approval_only_at_night(monkeypatch, night: bool, state: str):
    monkeypatch.setattr(policy, "is_night", lambda at: night)
    assert record(a_request(), proposal(Action.dispatch_crew, district, "harbour")).state == state
    assert len(orders()) == (0 if night else 1)


@pytest.mark.parametrize(
    "proposed",
    [
        (Action.close_valve, district, "valley"),
        (Action.close_valve, site, "dam-valley"),
        (Action.close_valve, customer, "C-000001"),
        (Action.open_ticket, customer, "C-999999"),
        (Action.send_information, district, "harbour"),
    ],
)
def test_a_proposal_that_policy_forbids_goes_to_a_person(proposed: tuple):
    row = record(a_request(), proposal(*proposed))
    assert (row.state, row.executed_at, row.deadline_at) == ("refused", None, None)
    assert row.refusal
    (order,), (event,) = orders(), messages(TRIAGE_SERVICE_REQUESTS.name)
    for item in (order, event):
        assert (item.action, item.target_kind, item.target_id) == ("hand_to_person", "customer", "C-000001")
        assert item.basis == "refused"
    assert event.proposed_action == proposed[0]


def test_a_request_keeps_its_first_decision():
    message = a_request()
    first = record(message, proposal(Action.open_ticket))
    again = record(replace(message, offset=next(numbers)), proposal(Action.send_information))
    assert again == first
    assert len(orders()) == len(messages(TRIAGE_SERVICE_REQUESTS.name)) == 1


def test_a_failed_transaction_leaves_nothing():
    def crash() -> None:
        with begin() as connection:
            record_decision(connection, a_request(), proposal(Action.open_ticket))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        crash()
    with begin() as connection:
        assert connection.scalar(select(func.count()).select_from(decisions)) == 0
    assert orders() == messages(TRIAGE_SERVICE_REQUESTS.name) == []


def test_values_that_a_database_cannot_store_are_replaced():
    odd = {"te\0xt": "a\0b", "half": "\ud800", "number": float("nan"), "many": [float("inf"), {"deep": "\0"}]}
    proposed = replace(
        proposal(*CLOSE), explanation=odd, tool_calls=(odd,), model_answered="m\0\ud800", fallback_reason="\0"
    )
    row = record(a_request(), proposed)
    assert row.explanation == {"text": "ab", "half": "?", "number": "nan", "many": ["inf", {"deep": ""}]}
    assert (row.model_answered, row.fallback_reason) == ("m?", "")


def test_a_work_order_has_no_text_of_a_customer_or_a_model():
    words = "PLEASE-HURRY"
    message = a_request(subject=words, text=words, address=words)
    row = record(message, proposal(*CLOSE, summary=words, evidence=(words,)))
    execute(row.decision_id, row.proposal_hash, approved())
    (event,) = messages(CONSUMER)
    assert words not in event.model_dump_json()


# The question.


def key(row: Row) -> str:
    return f"{row.source_topic}-{row.source_partition}-{row.source_offset}"


def live(*runs: str):
    return lambda run_id: run_id in runs


def test_a_decision_is_returned_until_a_run_asks():
    row, other = awaiting(), record(a_request(), proposal(Action.open_ticket))
    assert awaiting_approval(key(row)) == awaiting_approval(key(row)) == [row.decision_id]
    assert awaiting_approval(key(other)) == []
    assert ask(row.decision_id, "run", live())
    assert awaiting_approval(key(row)) == []


def test_of_two_runs_for_one_decision_only_one_asks():
    row = awaiting()
    first = ask(row.decision_id, "first", live())
    assert first
    assert ask(row.decision_id, "second", live("first")) is None
    # The first run is cleared: it asks the same question again.
    assert ask(row.decision_id, "first", live()) == first
    # The first run was deleted or has failed: the next run asks, and the first does not ask again.
    assert ask(row.decision_id, "second", live()) == first
    assert ask(row.decision_id, "first", live("second")) is None


def test_of_two_concurrent_runs_the_faster_one_asks():
    row = awaiting()

    def faster(run_id: str) -> bool:
        assert ask(row.decision_id, "faster", live())
        return False

    set_row(row.decision_id, approval_run_id="gone")
    assert ask(row.decision_id, "slower", faster) is None
    assert look(row.decision_id).approval_run_id == "faster"


def test_a_settled_decision_asks_nobody_and_an_unknown_one_fails():
    row = awaiting()
    execute(row.decision_id, row.proposal_hash, rejected())
    assert ask(row.decision_id, "run", live()) is None
    for call in (lambda: ask("SR-1-0", "run", live()), lambda: execute("SR-1-0", "", approved())):
        with pytest.raises(LookupError, match="SR-1-0"):
            call()


def test_open_proposals_are_unasked_or_past_their_deadline():
    ago = {name: datetime.now(UTC) - timedelta(minutes=m) for name, m in (("just", 1), ("long", 30))}
    names = ("never asked", "asked in time", "asked, too late", "new", "settled")
    rows = {name: awaiting() for name in names}
    old = {"decided_at": ago["long"], "deadline_at": ago["long"] + timedelta(hours=1)}
    set_row(rows["never asked"].decision_id, **old)
    set_row(rows["asked in time"].decision_id, **old, approval_run_id="run")
    set_row(rows["asked, too late"].decision_id, decided_at=ago["just"], deadline_at=ago["long"], approval_run_id="run")
    set_row(rows["settled"].decision_id, **old)
    execute(rows["settled"].decision_id, rows["settled"].proposal_hash, rejected())
    expected = [rows[name].decision_id for name in ("never asked", "asked, too late")]
    assert open_proposals(timedelta(minutes=10)) == expected
    assert open_proposals(timedelta(minutes=10)) == expected


def test_the_question_has_fixed_words_only():
    hostile = "[click](https://evil) <img src=x onerror=alert(1)> `x` {{ var }}"
    message = a_request(subject=hostile, text=hostile, address=hostile)
    row = record(message, proposal(*CLOSE, summary=hostile, evidence=(hostile, "leak:harbour/1")))
    question = ask(row.decision_id, "run", live())
    assert question
    harbour = DISTRICTS["harbour"]
    for shown in (question["subject"], question["body"]):
        assert f"Close the supply valves in the district {harbour.name}" in shown
        assert not [mark for mark in ("<", ">", "[", "](", "{{", "!") if mark in shown]
    body = question["body"]
    assert f"{harbour.meters} meters" in body
    assert row.proposal_hash in body
    assert "`leak:harbour/1`" in body
    assert f"{row.deadline_at:%d %b %Y %H:%M} UTC" in body
    assert body.count("`") % 2 == 0
    assert message.event.request_id in body
    assert len(body.splitlines()) == 7


@pytest.mark.parametrize("action", Action)
def test_every_action_and_target_has_words(action: Action):
    for kind in policy.TARGETS[action]:
        target_id = {customer: "C-000001", district: "harbour", site: "pump-harbour"}[kind]
        shown = executor.plain_words(record(a_request(), proposal(action, kind, target_id)))
        assert {customer: "C-000001", district: "Harbour", site: "Harbour Pumping Station"}[kind] in shown


def test_the_question_ends_with_the_deadline_of_the_decision():
    row = awaiting()
    question = ask(row.decision_id, "run", live())
    assert question
    assert datetime.fromisoformat(question["deadline_at"]) == row.deadline_at


# The answer.


def test_an_approval_executes_once_and_records_who_gave_it():
    row = awaiting()
    answer = approved("ada")
    for _ in range(3):
        assert execute(row.decision_id, row.proposal_hash, answer) == "executed"
    after = look(row.decision_id)
    assert (after.state, after.verdict, after.approver, after.verdict_at) == ("executed", "approved", "ada", answer.at)
    assert after.executed_at > row.decided_at
    (order,), (event,) = orders(), messages(CONSUMER)
    for item in (order, event):
        assert (item.action, item.target_kind, item.target_id) == ("close_valve", "district", "harbour")
        assert (item.decision_id, item.basis) == (row.decision_id, "approved")


@pytest.mark.parametrize(("answer", "state", "approver"), [(rejected, "rejected", "ada"), (nobody, "expired", None)])
def test_without_an_approval_a_person_gets_the_request(answer, state: str, approver: str | None):
    row = awaiting()
    for _ in range(2):
        assert execute(row.decision_id, row.proposal_hash, answer()) == state
    after = look(row.decision_id)
    assert (after.state, after.verdict, after.approver, after.executed_at) == (state, state, approver, None)
    (order,), (event,) = orders(), messages(CONSUMER)
    for item in (order, event):
        assert (item.action, item.target_kind, item.target_id, item.basis) == (
            "hand_to_person",
            "customer",
            "C-000001",
            state,
        )
    assert event.proposed_action == "close_valve"


def test_an_answer_after_the_first_changes_nothing():
    row = awaiting()
    assert execute(row.decision_id, row.proposal_hash, rejected("ada")) == "rejected"
    assert execute(row.decision_id, row.proposal_hash, approved("bob")) == "rejected"
    other = awaiting()
    assert execute(other.decision_id, other.proposal_hash, approved("ada")) == "executed"
    assert execute(other.decision_id, other.proposal_hash, rejected("bob")) == "executed"
    assert [order.action for order in orders()] == ["hand_to_person", "close_valve"]
    assert {look(decision.decision_id).approver for decision in (row, other)} == {"ada"}


def test_an_approval_after_the_deadline_executes_nothing():
    row = awaiting()
    late = approved(at=row.deadline_at + timedelta(microseconds=1))
    assert execute(row.decision_id, row.proposal_hash, late) == "expired"
    after = look(row.decision_id)
    assert (after.verdict, after.approver, after.executed_at) == ("expired", "ada", None)
    assert [order.action for order in orders()] == ["hand_to_person"]


def test_a_last_moment_approval_counts_unless_executed_hours_later():
    in_time, stale = awaiting(), awaiting()
    past = datetime.now(UTC) - timedelta(minutes=5)
    set_row(in_time.decision_id, deadline_at=past)
    assert execute(in_time.decision_id, in_time.proposal_hash, approved(at=past)) == "executed"
    past = datetime.now(UTC) - policy.EXECUTION_GRACE - timedelta(minutes=5)
    set_row(stale.decision_id, deadline_at=past)
    assert execute(stale.decision_id, stale.proposal_hash, approved(at=past)) == "expired"


CHANGES = {
    "action": {"action": "advise_not_to_drink"},
    "target": {"target_kind": "site", "target_id": "pump-harbour"},
    "severity": {"severity": "minor"},
    "summary": {"summary": "Another"},
    "evidence": {"evidence": ["leak:harbour/2"]},
    "customer": {"customer_id": "C-000002"},
    "district": {"district_id": "valley", "target_id": "valley"},
    "category": {"category": "billing"},
    "risk": {"risk": "low"},
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("hashed", [False, True], ids=["hash as it was", "hash renewed"])
def test_an_old_approval_never_executes_a_new_proposal(changed: str, hashed: bool):
    row = awaiting()
    question = ask(row.decision_id, "run", live())
    assert question
    set_row(row.decision_id, **CHANGES[changed])
    new_hash = content_hash(look(row.decision_id)._mapping)
    assert new_hash != row.proposal_hash
    if hashed:
        # The row is consistent; but the approval belongs to another proposal.
        set_row(row.decision_id, proposal_hash=new_hash)
    assert execute(row.decision_id, question["proposal_hash"], approved()) == "refused"
    after = look(row.decision_id)
    assert after.refusal == "what was approved is not what is proposed now"
    assert (after.verdict, after.executed_at) == ("approved", None)
    assert [order.action for order in orders()] == ["hand_to_person"]


def test_an_approval_of_the_old_text_executes_no_new_proposal():
    row = awaiting()
    set_row(row.decision_id, action="advise_not_to_drink")
    set_row(row.decision_id, proposal_hash=content_hash(look(row.decision_id)._mapping))
    question = ask(row.decision_id, "run", live())
    assert question
    assert question["proposal_hash"] != row.proposal_hash
    assert execute(row.decision_id, question["proposal_hash"], approved()) == "refused"


def test_a_hash_of_another_decision_executes_nothing():
    row, other = awaiting(), awaiting()
    assert execute(row.decision_id, other.proposal_hash, approved()) == "refused"
    assert execute(other.decision_id, "", approved()) == "refused"
    assert [order.action for order in orders()] == ["hand_to_person"] * 2


def test_an_approval_under_another_policy_executes_nothing(monkeypatch):
    row = awaiting()
    monkeypatch.setattr(executor, "POLICY_VERSION", "next")
    assert execute(row.decision_id, row.proposal_hash, approved()) == "refused"


def test_an_action_that_policy_now_forbids_is_not_executed(monkeypatch):
    row = awaiting()
    monkeypatch.setattr(policy, "TARGETS", {**policy.TARGETS, Action.close_valve: frozenset({site})})
    assert execute(row.decision_id, row.proposal_hash, approved()) == "refused"
    assert look(row.decision_id).refusal == "close_valve cannot be done to a district"
    assert [order.action for order in orders()] == ["hand_to_person"]


def test_the_database_refuses_execution_without_approval():
    row = awaiting()
    good = {"state": "executed", "verdict": "approved", "approver": "ada", "verdict_at": row.deadline_at}
    bad = (
        {"verdict": None},
        {"verdict": "rejected"},
        {"approver": None},
        {"approver": ""},
        {"verdict_at": None},
        {"verdict_at": row.deadline_at + timedelta(seconds=1)},
        {"deadline_at": None},
    )
    for change in bad:
        with pytest.raises(IntegrityError, match="ck_decisions_approved"):
            set_row(row.decision_id, **{**good, **change})
    set_row(row.decision_id, **good)


@pytest.mark.parametrize(
    ("approvers", "refusal"),
    [
        ('["bob"]', "ada may not approve"),
        ("[]", "ada may not approve"),
    ],
)
def test_an_approval_by_a_person_who_may_not_approve_executes_nothing(approvers: str, refusal: str, monkeypatch):
    row = awaiting()
    assert ask(row.decision_id, "run", live())
    monkeypatch.setenv(VARIABLE, approvers)
    assert execute(row.decision_id, row.proposal_hash, approved()) == "refused"
    after = look(row.decision_id)
    assert (after.verdict, after.approver, after.refusal, after.executed_at) == ("approved", "ada", refusal, None)
    assert [(order.action, order.basis) for order in orders()] == [("hand_to_person", "refused")]


def test_anybody_who_could_answer_may_reject(monkeypatch):
    row = awaiting()
    monkeypatch.setenv(VARIABLE, '["bob"]')
    assert execute(row.decision_id, row.proposal_hash, rejected()) == "rejected"
    assert look(row.decision_id).approver == "ada"


@pytest.mark.parametrize("approvers", [None, "", "ada", '{"id": "ada"}', "[]", "[7]", '[" "]'])
def test_without_approvers_a_person_gets_the_request_at_once(approvers: str | None, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    if approvers is not None:
        monkeypatch.setenv(VARIABLE, approvers)
    row = awaiting()
    assert ask(row.decision_id, "run", live()) is None
    after = look(row.decision_id)
    assert (after.state, after.verdict, after.approver) == ("refused", "expired", None)
    assert after.refusal.startswith("nobody may approve")
    assert "set the Airflow Variable water_approvers to a JSON array of user ids" in after.refusal
    assert [(order.action, order.basis) for order in orders()] == [("hand_to_person", "refused")]


USER = {"id": "7", "name": "ada"}


@pytest.mark.parametrize(
    ("result", "verdict", "approver"),
    [
        ({"chosen_options": ["Approve"], "responded_by_user": USER}, "approved", "ada (7)"),
        ({"chosen_options": ["Approve"], "responded_by_user": {"id": "ada", "name": "ada"}}, "approved", "ada"),
        ({"chosen_options": ["Reject"], "responded_by_user": USER}, "rejected", "ada (7)"),
        ({"chosen_options": [], "responded_by_user": USER}, "rejected", "ada (7)"),
        ({"chosen_options": ["Approve", "Reject"], "responded_by_user": USER}, "rejected", "ada (7)"),
        # The default after the deadline, and an approval without a person.
        ({"chosen_options": ["Reject"], "responded_by_user": None}, "expired", None),
        ({"chosen_options": ["Approve"], "responded_by_user": None}, "expired", None),
        # The task was marked as successful by hand.
        (None, "expired", None),
    ],
)
def test_only_a_named_person_approves(result: dict[str, Any] | None, verdict: str, approver: str | None):
    at = datetime.now(UTC)
    answer = read_answer(result and {**result, "responded_at": at})
    assert (answer.verdict, answer.approver) == (verdict, approver)
    if approver:
        assert answer.at == at


# Kills and concurrency.


def test_two_concurrent_executors_execute_once():
    row = awaiting()
    states: list[str] = []

    def run(answer: Answer) -> None:
        states.append(execute(row.decision_id, row.proposal_hash, answer))

    threads = [threading.Thread(target=run, args=(answer,)) for answer in (approved("a"), rejected("b"), approved("c"))]
    with begin() as connection:
        # The lock is held until both executors wait for it.
        connection.execute(select(decisions).where(decisions.c.decision_id == row.decision_id).with_for_update())
        for thread in threads:
            thread.start()
        while waiting_for_rows(connection) < len(threads):
            threading.Event().wait(0.05)
    for thread in threads:
        thread.join(timeout=30)
    assert len(states) == 3
    assert set(states) == {look(row.decision_id).state}
    assert len(orders()) == len(messages(CONSUMER)) == 1


def waiting_for_rows(connection: Any) -> int:
    query = "select count(*) from pg_locks where not granted and pid <> pg_backend_pid()"
    return connection.scalar(text(query))


def kill_in(where: str, row: Row) -> None:
    """Execute the approved decision in a process that is killed with -9 right after its call of `where`."""
    code = f"""
import os, signal
from datetime import UTC, datetime
from pkgutil import resolve_name
from include.water.triage import execute

owner, _, name = {where!r}.rpartition(".")
owner = resolve_name(owner)
original = getattr(owner, name)

def die(*args, **kwargs):
    original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, die)
execute.execute({row.decision_id!r}, {row.proposal_hash!r}, execute.Answer("approved", "ada", datetime.now(UTC), "ada"))
"""
    assert forks.run(code) == -signal.SIGKILL


def test_a_retry_executes_after_a_kill_before_the_commit():
    row = awaiting()
    kill_in("include.water.triage.execute.order_work", row)
    assert look(row.decision_id).state == "awaiting_approval"
    assert orders() == messages(CONSUMER) == []
    assert execute(row.decision_id, row.proposal_hash, approved()) == "executed"
    assert len(orders()) == len(messages(CONSUMER)) == 1


def test_a_retry_executes_nothing_after_a_kill_after_the_commit(topic):
    row = awaiting()
    kill_in("include.water.triage.execute.execute", row)
    assert look(row.decision_id).state == "executed"
    assert delivered(row) == []
    assert execute(row.decision_id, row.proposal_hash, approved()) == "executed"
    deliver_due([])
    deliver_due([])
    assert len(orders()) == len(messages(CONSUMER)) == 1
    assert delivered(row) == [f"WO-{row.decision_id}"]


def delivered(*rows: Row) -> list[str]:
    """The sorted ids of the work orders in Kafka for these decisions, with duplicates."""
    config = {**consumer_config(client_config(), "independent"), "enable.partition.eof": True}
    reader = reader_at(config, *(TopicPartition(WORK_ORDERS.name, n, 0) for n in range(WORK_ORDERS.partitions)))
    orders: list[WorkOrder] = []
    ended = 0
    while ended < WORK_ORDERS.partitions:
        record = reader.poll(10)
        assert record is not None
        if record.error() is None:
            orders.append(cast(WorkOrder, WORK_ORDERS.parse(record.value())))
        else:
            assert record.error().code() == KafkaError._PARTITION_EOF
            ended += 1
    reader.close()
    return sorted(order.work_order_id for order in orders if order.decision_id in {row.decision_id for row in rows})


@pytest.fixture
def topic(services) -> None:
    create_topics([WORK_ORDERS])
    wait_for_topics(AdminClient(admin_config(client_config())), WORK_ORDERS.name)


def test_every_decision_has_one_message_on_work_orders(topic):
    rows = [awaiting() for _ in range(4)]
    answers = (approved(), rejected(), nobody(), approved(at=datetime.now(UTC) + timedelta(days=1)))
    for row, answer in zip(rows, answers, strict=True):
        for _ in range(2):
            execute(row.decision_id, row.proposal_hash, answer)
        deliver_due([])
    assert delivered(*rows) == sorted(f"WO-{row.decision_id}" for row in rows)


def test_a_row_from_the_database_has_the_same_hash():
    row = record(a_request(district_id=None), proposal(Action.hand_to_person, summary="Ä 水", evidence=()))
    assert content_hash(row._mapping) == row.proposal_hash
    assert decision_id_of(row._mapping) == row.decision_id


def test_old_settled_decisions_are_deleted_with_their_work_orders():
    days = {"inbox_days": 480, "claims_days": 90, "outbox_days": 30, "alarms_days": 365}
    done, late, young = (record(a_request(), proposal(Action.open_ticket)) for _ in range(3))
    assert {row.state for row in (done, late, young)} == {"executed"}
    waits = awaiting()
    old = datetime.now(UTC) - RECORDS_KEPT - timedelta(days=1)
    for row in (done, late, waits):
        set_row(row.decision_id, decided_at=old)
    with begin() as connection:
        # The work order of `late` is new.
        its_order = work_orders.c.decision_id == done.decision_id
        connection.execute(update(work_orders).where(its_order).values(created_at=old))
    removed = PROJECT.prune(days, seconds=60)
    assert (removed["decisions"], removed["work_orders"]) == (1, 1)
    with begin() as connection:
        assert set(connection.scalars(select(decisions.c.decision_id))) == {
            row.decision_id for row in (late, young, waits)
        }
    # If inbox rows are kept longer, their decisions are kept as long.
    set_row(young.decision_id, decided_at=old)
    assert PROJECT.prune({**days, "inbox_days": 1_000}, seconds=60)["decisions"] == 0
