"""From a proposal that needs a person to what happens: ask, and settle what was answered, each decision once.

Called by the tasks of `execute_decisions`. What an approval is for cannot change under it: a run is for one decision, a
decision's id holds the hash of what was proposed, and `execute` hashes the row again. So the text that a person saw
(Airflow keeps the first one when a run is cleared) is always of what would be executed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Row, select, update

from include.operations.database import begin
from include.water.sites import DISTRICTS, SITES
from include.water.tables import decisions
from include.water.topics import OrderBasis
from include.water.triage.effect import content_hash, decision_id_of, order_work
from include.water.triage.policy import EXECUTION_GRACE, TIME_ZONE, why_not
from include.water.triage.proposals import POLICY_VERSION, Action, Target, TargetKind

log = logging.getLogger(__name__)

# Under this name its rows are in the outbox.
CONSUMER = "execute_decisions"
APPROVED, REJECTED, EXPIRED = "approved", "rejected", "expired"


class Answer(NamedTuple):
    """What a person said to a proposal, or that nobody did: verdict, who, when."""

    verdict: str
    approver: str | None
    at: datetime


def ask(decision_id: str, run_id: str, is_running: Callable[[str], bool]) -> dict[str, str] | None:
    """What a person is to be asked in this run: decision_id, proposal_hash, subject, body (Markdown), deadline_at.

    None when there is nothing to ask: the decision is settled, or another run asks already (`is_running(run_id)` says
    whether that one still does). Raises LookupError for a decision that does not exist.
    """
    with begin() as connection:
        row = connection.execute(select(decisions).where(decisions.c.decision_id == decision_id)).one_or_none()
    if row is None:
        raise LookupError(f"there is no decision {decision_id!r}: it was not recorded in this database")
    if row.state != "awaiting_approval":
        log.info("nothing to ask: decision=%s state=%s", decision_id, row.state)
        return None
    asking = row.approval_run_id
    # Asked outside of a transaction: it is a call to Airflow's API.
    if asking not in (None, run_id) and is_running(asking):
        log.info("nothing to ask: decision=%s, the run %s does", decision_id, asking)
        return None
    taken = update(decisions).where(
        decisions.c.decision_id == decision_id,
        decisions.c.state == "awaiting_approval",
        decisions.c.approval_run_id.is_not_distinct_from(asking),
    )
    with begin() as connection:
        if connection.execute(taken.values(approval_run_id=run_id)).rowcount == 0:
            log.info("nothing to ask: decision=%s, another run was faster", decision_id)
            return None
    return {
        "decision_id": decision_id,
        "proposal_hash": row.proposal_hash,
        "subject": f"{plain_words(row)} ({decision_id})",
        "body": _body(row),
        "deadline_at": row.deadline_at.isoformat(),
    }


def read_answer(result: Mapping[str, Any] | None) -> Answer:
    """The answer in the result of the task that asked.

    Only a named person can have answered: the default after the deadline has no name, and a task that somebody marked
    as successful has no result.
    """
    user = (result or {}).get("responded_by_user")
    if not result or not user:
        return Answer(EXPIRED, None, datetime.now(UTC))
    name, user_id = str(user["name"]), str(user["id"])
    approver = name if name == user_id else f"{name} ({user_id})"
    return Answer(APPROVED if result["chosen_options"] == ["Approve"] else REJECTED, approver, result["responded_at"])


def execute(decision_id: str, approved_hash: str, answer: Answer) -> str:
    """Record the answer and what follows from it, in one transaction; returns the decision's state.

    - approved: the work order for what was proposed, if that is still what is in the row (`approved_hash`), policy
      still allows it, and the answer came before the deadline;
    - otherwise (rejected, expired, refused): a work order that a person looks at the request.

    A decision that is settled stays as it is, so this may be called any number of times, at once too. Raises
    LookupError for a decision that does not exist.
    """
    with begin() as connection:
        # Locked: of two executors the second waits, and then finds it settled.
        row = connection.execute(
            select(decisions).where(decisions.c.decision_id == decision_id).with_for_update()
        ).one_or_none()
        if row is None:
            raise LookupError(f"there is no decision {decision_id!r}: it was not recorded in this database")
        if row.state != "awaiting_approval":
            log.info("settled before: decision=%s state=%s", decision_id, row.state)
            return row.state
        return _settle(connection, row, approved_hash, answer)


def _settle(connection: Connection, row: Row, approved_hash: str, answer: Answer) -> str:
    now = datetime.now(UTC)
    verdict = answer.verdict
    if verdict == APPROVED and (answer.at > row.deadline_at or now > row.deadline_at + EXECUTION_GRACE):
        verdict = EXPIRED
    refusal = _refusal(row, approved_hash) if verdict == APPROVED else None
    basis = OrderBasis.refused if refusal else OrderBasis(verdict)
    state = "executed" if basis == OrderBasis.approved else basis.value
    settled = update(decisions).where(decisions.c.decision_id == row.decision_id)
    connection.execute(
        settled.values(
            state=state,
            refusal=refusal,
            verdict=verdict,
            approver=answer.approver,
            verdict_at=answer.at,
            executed_at=now if state == "executed" else None,
        )
    )
    order_work(connection, dict(row._mapping), basis, consumer=CONSUMER)
    log.info("settled: decision=%s verdict=%s state=%s refusal=%s", row.decision_id, verdict, state, refusal)
    return state


def _refusal(row: Row, approved_hash: str) -> str | None:
    """Why the proposal may not be executed although it was approved; None if it may."""
    # By the policy of now: what was approved under another one was judged by other rules.
    found = content_hash({**row._mapping, "policy_version": POLICY_VERSION})
    if found != approved_hash or decision_id_of({**row._mapping, "proposal_hash": found}) != row.decision_id:
        return "what was approved is not what is proposed now"
    target = Target(kind=TargetKind(row.target_kind), id=row.target_id)
    return why_not(Action(row.action), target, cast(Any, row))


def plain_words(decision: Any) -> str:
    """What would happen, for the row of a decision: code's words, names from the network, and the customer's id."""
    kind, target_id = TargetKind(decision.target_kind), decision.target_id
    if kind == TargetKind.customer:
        where, whom = f"to the customer {_code(target_id)}", f"the customer {_code(target_id)}"
    elif kind == TargetKind.district and target_id in DISTRICTS:
        district = DISTRICTS[target_id]
        where = f"in the district {district.name}"
        whom = f"everybody in the district {district.name} ({district.meters} meters)"
    elif kind == TargetKind.site and target_id in SITES:
        where = f"at the site {SITES[target_id].name}"
        whom = f"everybody at the site {SITES[target_id].name}"
    else:
        where = whom = f"{kind} {_code(target_id)}"
    return {
        Action.close_valve: f"Close the supply valves {where}: {whom} may be without water",
        Action.advise_not_to_drink: f"Advise {whom} not to drink the water",
        Action.dispatch_crew: f"Send a crew {where} at night",
    }.get(Action(decision.action), f"{decision.action} {where}")


def _body(row: Row) -> str:
    """The approval's text, in Markdown. Nothing that a customer or a model wrote is in it as it was written."""
    until = f"{row.deadline_at:%d %b %Y %H:%M} UTC ({row.deadline_at.astimezone(TIME_ZONE):%H:%M} local time)"
    lines = (
        f"**{plain_words(row)}.**",
        f"- Request {_code(row.request_id)} of customer {_code(row.customer_id)}: "
        f"{_code(row.category)}, severity {_code(row.severity)}",
        f"- Proposed by the engine {_code(row.engine)}",
        f"- Evidence: {', '.join(map(_code, row.evidence)) or 'none'}",
        f"- Answer until {until}. Without an answer nothing of this happens, and a person gets the request",
        f"- Proposal {_code(row.proposal_hash)}",
    )
    return "\n".join((lines[0], "", *lines[1:]))


def _code(value: str) -> str:
    """The value as inline code, in which Markdown has no meaning; without what could end it, or be HTML."""
    return f"`{re.sub(r'[^A-Za-z0-9._:/@#-]', '?', value)}`"
