"""Ask a person about a proposal, and execute the answer, once for each decision.

The tasks of `execute_decisions` call this module. The content of an approval cannot change after it was shown: a run is
for one decision, a decision's id contains the hash of the proposal, and `execute` hashes the row again. So the text
that a person saw always describes what would be executed (Airflow keeps the first text when a run is cleared).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Row, select, update

from include.streams import begin
from include.streams.inference.approvers import Approvers, read_approvers
from include.water.flows.definition import TIME_ZONE
from include.water.sites import DISTRICTS, SITES
from include.water.tables import decisions
from include.water.topics import OrderBasis
from include.water.triage.effect import content_hash, decision_id_of, order_work
from include.water.triage.policy import EXECUTION_GRACE, why_not
from include.water.triage.proposals import POLICY_VERSION, Action, Target, TargetKind

log = logging.getLogger(__name__)

# The Airflow Variable that names the users who may approve.
APPROVERS = "water_approvers"
# The consumer name of its rows in the outbox.
CONSUMER = "execute_decisions"
APPROVED, REJECTED, EXPIRED = "approved", "rejected", "expired"


class Answer(NamedTuple):
    """A person's answer to a proposal: verdict, name, time, id in Airflow. EXPIRED without a name: nobody answered."""

    verdict: str
    approver: str | None
    at: datetime
    user_id: str | None = None


def ask(
    decision_id: str, run_id: str, is_running: Callable[[str], bool], approvers: Approvers | None = None
) -> dict[str, Any] | None:
    """Prepare the question for a person in this run.

    Args:
        decision_id: The decision.
        run_id: This run.
        is_running: Whether the run with this id is queued or running.
        approvers: The users who may approve; None to read them from the Variable. If there are none, nobody is asked:
            the proposal is refused at once, and a person gets the request.

    Returns:
        `decision_id`, `proposal_hash`, `subject`, `body` (Markdown), `deadline_at` (ISO 8601) and `approvers`; None
        when there is nothing to ask, because the decision is settled, another run is asking, or nobody may approve.

    Raises:
        LookupError: The decision does not exist.
    """
    approvers = approvers or read_approvers(APPROVERS)
    with begin() as connection:
        row = connection.execute(select(decisions).where(decisions.c.decision_id == decision_id)).one_or_none()
    if row is None:
        raise LookupError(f"there is no decision {decision_id!r}: it was not recorded in this database")
    if row.state != "awaiting_approval":
        log.info("nothing to ask: decision=%s state=%s", decision_id, row.state)
        return None
    asking = row.approval_run_id
    # Outside of a transaction, because it is a call to Airflow's API.
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
        if not approvers.users:
            log.error("decision=%s is refused: %s", decision_id, approvers.problem)
            locked = select(decisions).where(decisions.c.decision_id == decision_id).with_for_update()
            nobody = Answer(EXPIRED, None, datetime.now(UTC))
            _settle(connection, connection.execute(locked).one(), row.proposal_hash, nobody, approvers.problem)
            return None
    return {
        "decision_id": decision_id,
        "proposal_hash": row.proposal_hash,
        "subject": f"{plain_words(row)} ({decision_id})",
        "body": _body(row),
        "deadline_at": row.deadline_at.isoformat(),
        "approvers": approvers.assigned(),
    }


def read_answer(result: Mapping[str, Any] | None) -> Answer:
    """The answer in the result of the approval task.

    Only an answer with a person's name counts: the default after the deadline has no name, and a task that somebody
    marked as successful has no result.

    Args:
        result: The XCom of the approval task.
    """
    user = (result or {}).get("responded_by_user")
    if not result or not user:
        return Answer(EXPIRED, None, datetime.now(UTC))
    name, user_id = str(user["name"]), str(user["id"])
    approver = name if name == user_id else f"{name} ({user_id})"
    return Answer(
        APPROVED if result["chosen_options"] == ["Approve"] else REJECTED, approver, result["responded_at"], user_id
    )


def execute(decision_id: str, approved_hash: str, answer: Answer, approvers: Approvers | None = None) -> str:
    """Record the answer and its consequence in one transaction.

    - approved: the work order for the proposal, if the row still has the approved proposal (`approved_hash`), the
      policy still allows it, the person may approve, and the answer came before the deadline;
    - otherwise (rejected, expired, refused): a work order that a person looks at the request.

    A settled decision does not change, so this function may be called any number of times, also concurrently.

    Args:
        decision_id: The decision.
        approved_hash: The proposal_hash that `ask` returned.
        answer: The answer.
        approvers: The users who may approve now; None to read them from the Variable.

    Returns:
        The decision's state.

    Raises:
        LookupError: The decision does not exist.
    """
    # Read now: who was removed from the list since the question may not approve any more.
    approvers = approvers or read_approvers(APPROVERS)
    with begin() as connection:
        # Locked: of two executors, the second waits and then finds the decision settled.
        row = connection.execute(
            select(decisions).where(decisions.c.decision_id == decision_id).with_for_update()
        ).one_or_none()
        if row is None:
            raise LookupError(f"there is no decision {decision_id!r}: it was not recorded in this database")
        if row.state != "awaiting_approval":
            log.info("settled before: decision=%s state=%s", decision_id, row.state)
            return row.state
        may_not = None if answer.user_id in approvers.users else f"{answer.approver} may not approve"
        return _settle(connection, row, approved_hash, answer, may_not if answer.verdict == APPROVED else None)


def _settle(connection: Connection, row: Row, approved_hash: str, answer: Answer, refused: str | None) -> str:
    now = datetime.now(UTC)
    verdict = answer.verdict
    if verdict == APPROVED and (answer.at > row.deadline_at or now > row.deadline_at + EXECUTION_GRACE):
        verdict = EXPIRED
    refusal = refused or (_refusal(row, approved_hash) if verdict == APPROVED else None)
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
    # With the current policy version: an approval under another policy was judged by other rules.
    current = content_hash({**row._mapping, "policy_version": POLICY_VERSION})
    if current != approved_hash or decision_id_of({**row._mapping, "proposal_hash": current}) != row.decision_id:
        return "what was approved is not what is proposed now"
    target = Target(kind=TargetKind(row.target_kind), id=row.target_id)
    return why_not(Action(row.action), target, cast(Any, row))


def plain_words(decision: Any) -> str:
    """The proposed action of a decision's row, in fixed words, names from the network, and the customer's id."""
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
    """The approval's text in Markdown. It contains no unescaped text of a customer or a model."""
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
    """The value as Markdown inline code; characters that could end the code, or be HTML, are replaced."""
    return f"`{re.sub(r'[^A-Za-z0-9._:/@#-]', '?', value)}`"
