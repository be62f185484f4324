"""The effect of triage: a proposal becomes a decision and, unless a person has to approve it, a work order.

A request has one decision and at most one work order, and is never dropped: if its proposal is not allowed, is rejected
or is not answered in time, it ends as a work order with the action hand_to_person.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, or_, select
from sqlalchemy.dialects.postgresql import insert

from include.streams import Message, begin, outbox
from include.streams.inference.binding import proposal_hash
from include.water.consumers import TRIAGE_SERVICE_REQUESTS
from include.water.tables import decisions, work_orders
from include.water.topics import WORK_ORDERS, Action, OrderBasis, ServiceRequest, Severity, TargetKind, WorkOrder
from include.water.triage.policy import APPROVAL_DEADLINE, Risk, allowed, risk_of
from include.water.triage.proposals import POLICY_VERSION, Proposal, TriageDecision

log = logging.getLogger(__name__)

# The columns that an approval covers: what will happen, and what supports it.
BOUND = (
    "request_id",
    "customer_id",
    "district_id",
    "category",
    "severity",
    "summary",
    "action",
    "target_kind",
    "target_id",
    "evidence",
    "risk",
    "policy_version",
)


def record_decision(connection: Connection, message: Message, proposal: Proposal) -> None:
    """Record the decision on a request, in the transaction that records its message.

    - Low risk: executed at once, with a work order and its message on `work.orders`.
    - High risk: waits for approval until its deadline; nothing else happens.
    - Not allowed: refused; a person gets the request.

    A request that already has a decision keeps it.

    Args:
        connection: The transaction.
        message: The message with the ServiceRequest.
        proposal: The engine's proposal.
    """
    request = cast(ServiceRequest, message.event)
    decision = proposal.decision
    now = datetime.now(UTC)
    risk = risk_of(decision.action, decision.target, now)
    refusal = allowed(decision, request)
    state = "refused" if refusal else "executed" if risk == Risk.low else "awaiting_approval"
    row = {
        **_proposed(decision, request, risk),
        "severity_rank": decision.severity.rank,
        "state": state,
        "refusal": refusal,
        "decided_at": now,
        "executed_at": now if state == "executed" else None,
        "deadline_at": now + APPROVAL_DEADLINE if state == "awaiting_approval" else None,
        **_origin(proposal),
        "source_topic": message.topic,
        "source_partition": message.partition,
        "source_offset": message.offset,
        "source_timestamp": message.timestamp,
    }
    row["proposal_hash"] = content_hash(row)
    row["decision_id"] = decision_id_of(row)
    new = insert(decisions).values(row).on_conflict_do_nothing().returning(decisions.c.decision_id)
    if connection.execute(new).first() is None:
        log.info("decided before: request=%s message=%s", request.request_id, message)
        return
    if state != "awaiting_approval":
        basis = OrderBasis.refused if refusal else OrderBasis.low_risk
        order_work(connection, row, basis, consumer=TRIAGE_SERVICE_REQUESTS.name)
    log.info(
        "decided: decision=%s action=%s risk=%s state=%s engine=%s message=%s",
        row["decision_id"],
        decision.action,
        risk,
        state,
        proposal.engine,
        message,
    )


def order_work(connection: Connection, decision: Mapping[str, Any], basis: OrderBasis, *, consumer: str) -> None:
    """Order what the decision proposed or, if that may not be done, that a person looks at the request.

    It writes the work order and its message. The caller delivers the message from the outbox of `consumer`.

    Args:
        connection: A transaction on the operational database.
        decision: The decision's row.
        basis: Why the proposal may be executed, or why not.
        consumer: The name under which the message is in the outbox.
    """
    done = basis in (OrderBasis.low_risk, OrderBasis.approved)
    proposed = Action(decision["action"])
    order = WorkOrder(
        version=1,
        work_order_id=f"WO-{decision['decision_id']}",
        decision_id=decision["decision_id"],
        request_id=decision["request_id"],
        action=proposed if done else Action.hand_to_person,
        target_kind=TargetKind(decision["target_kind"]) if done else TargetKind.customer,
        target_id=decision["target_id"] if done else decision["customer_id"],
        district_id=decision["district_id"],
        severity=Severity(decision["severity"]),
        basis=basis,
        proposed_action=proposed,
        ordered_at=datetime.now(UTC),
    )
    columns = {"work_order_id", "decision_id", "action", "target_kind", "target_id", "district_id", "severity", "basis"}
    row = order.model_dump(mode="json", include=columns)
    connection.execute(insert(work_orders).values(**row, created_at=order.ordered_at))
    outbox.add_message(connection, consumer=consumer, topic=WORK_ORDERS, event=order)


def content_hash(decision: Mapping[str, Any]) -> str:
    """The hash of the proposal in a decision's row."""
    return proposal_hash({name: decision[name] for name in BOUND})


def decision_id_of(decision: Mapping[str, Any]) -> str:
    """The id of the decision with this request and this hash."""
    return f"{decision['request_id']}-{decision['proposal_hash'][:12]}"


def awaiting_approval(key: str) -> list[str]:
    """The decisions on one message for which no run has asked a person yet.

    Args:
        key: The message's partition key, "topic-partition-offset".

    Returns:
        The decision ids, to be emitted as partition keys of PROPOSAL.
    """
    topic, partition, offset = key.rsplit("-", 2)
    columns = decisions.c
    return _unasked(
        columns.source_topic == topic,
        columns.source_partition == int(partition),
        columns.source_offset == int(offset),
        columns.approval_run_id.is_(None),
    )


def open_proposals(older_than: timedelta) -> list[str]:
    """Decisions for which no run has asked a person, and decisions past their deadline; the oldest first.

    They are emitted (again) as partition keys of the asset PROPOSAL: Airflow drops the keys of a paused Dag, and a run
    can be deleted while it waits. A decision for which a run has asked is returned only after its deadline has passed.
    If a decision gets a second run, that run finds the first run and ends as skipped.

    Args:
        older_than: The least time since the decision, or since its deadline.
    """
    columns = decisions.c
    before = datetime.now(UTC) - older_than
    never_asked = columns.approval_run_id.is_(None) & (columns.decided_at < before)
    return _unasked(or_(never_asked, columns.deadline_at < before))


def proposals_to_emit_again(dag_id: str) -> list[str]:
    """The partition keys of open proposals that have no run. Call it in a task.

    Args:
        dag_id: The Dag that asks a person about a proposal.

    Returns:
        The decision ids, the oldest first.

    Raises:
        AirflowSkipException: The Dag is paused, its queue may contain their runs, or every proposal has a run.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include.streams import can_take_keys, has_queued_runs

    if not can_take_keys(dag_id):
        raise AirflowSkipException(f"{dag_id} is paused: Airflow would drop its keys")
    if has_queued_runs(dag_id):
        raise AirflowSkipException(f"{dag_id} has runs in its queue: they may be those of these proposals")
    # A proposal's first run gets this long to ask.
    keys = open_proposals(older_than=timedelta(minutes=10))
    if not keys:
        raise AirflowSkipException("every proposal is being asked about, or settled")
    return keys


def _unasked(*conditions: Any) -> list[str]:
    open_ones = select(decisions.c.decision_id).where(decisions.c.state == "awaiting_approval", *conditions)
    with begin() as connection:
        return list(connection.scalars(open_ones.order_by(decisions.c.decided_at)))


def _proposed(decision: TriageDecision, request: ServiceRequest, risk: Risk) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "customer_id": request.customer_id,
        "district_id": request.district_id,
        "category": decision.category.value,
        "severity": decision.severity.value,
        "summary": _storable(decision.summary),
        "action": decision.action.value,
        "target_kind": decision.target.kind.value,
        "target_id": decision.target.id,
        "evidence": _storable(decision.evidence),
        "risk": risk.value,
        "policy_version": POLICY_VERSION,
    }


def _origin(proposal: Proposal) -> dict[str, Any]:
    names = ("engine", "model_asked", "model_answered", "prompt_version", "fallback_reason")
    names += ("tool_calls", "usage", "explanation")
    return {name: _storable(getattr(proposal, name)) for name in names}


def _storable(value: Any) -> Any:
    """The value without what PostgreSQL cannot store in text or JSON: NUL, lone surrogates, infinity, NaN.

    An engine can be tricked into writing them; the request must not become a dead letter because of that.
    """
    if isinstance(value, str):
        return value.replace("\0", "").encode(errors="replace").decode()
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping):
        return {_storable(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value
