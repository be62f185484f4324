"""Move an open claim to another Dag run, when the run that owns it was deleted.

Airflow reserves ids such as `asset_triggered__...`, so a run with the old id cannot be created again. A run with the
new id finds the claim under its own id, and handles the messages that are left. Messages that were handled before are
skipped, because the inbox has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select, update

from include.streams.kafka.claims import lock_consumer
from include.streams.kafka.consumers import Shape
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, repair_rows
from include.streams.operations.tables import claims

# The states of a run that may still work on its claim.
ACTIVE = ("queued", "running")
# Claims that an error lists.
MAX_LISTED = 10

StateOf = Callable[[str, str], str | None]


class MoveClaim(RepairParams):
    """The parameters of `move`.

    Attributes:
        consumer: The consumer's name.
        run_id: The run that owns the claim.
    """

    consumer: str
    run_id: str


class MovedClaim(RepairReport):
    """The report of `move`.

    Attributes:
        dag_id: The Dag to start.
        new_run_id: The id for its run, which finds the claim.
    """

    dag_id: str
    new_run_id: str


def move(params: MoveClaim, by: Actor, *, state_of: StateOf, shape: Shape | None = None) -> MovedClaim:
    """Give an open claim to a run with a new id; the caller then starts the consumer's Dag with this run id.

    Args:
        params: The consumer and the run.
        by: Who moves the claim.
        state_of: Returns the state of (Dag, run) in Airflow; None if the run was deleted.
        shape: The consumer's shape; None if it has none, or is not known.

    Returns:
        The report. The Dag that claims has the name of its consumer.

    Raises:
        Refused: The reason is empty, the consumer has one run per message, there is no such claim, the claim is closed,
            or its run is still active.
    """
    consumer, run_id = params["consumer"], params["run_id"]

    def work(connection: Connection) -> list[str]:
        if shape is Shape.per_message:
            raise Refused(
                f"consumer {consumer} has one run per message, so no claim has to be moved: the Dag maintain emits the "
                "keys of its open claims again"
            )
        # Before the locks, because it is a call to Airflow.
        state = state_of(consumer, run_id)
        if state in ACTIVE:
            raise Refused(
                f"run {run_id} of {consumer} is {state}: wait until it has ended; if it has failed, clear it instead"
            )
        lock_consumer(connection, consumer)
        of_consumer = select(claims).where(claims.c.consumer == consumer)
        claim = connection.execute(of_consumer.where(claims.c.run_id == run_id)).one_or_none()
        if claim is None:
            still_open = of_consumer.where(claims.c.closed_at.is_(None)).order_by(claims.c.id).limit(MAX_LISTED)
            runs = ", ".join(row.run_id for row in connection.execute(still_open)) or "none"
            raise Refused(f"run {run_id} of {consumer} has no claim; the runs with an open claim are: {runs}")
        if claim.closed_at is not None:
            raise Refused(f"claim {claim.id} of run {run_id} is closed: all of its messages are handled")
        new = _free_id(connection, consumer, claim.id)
        connection.execute(update(claims).where(claims.c.id == claim.id).values(run_id=new))
        owner = "was deleted" if state is None else f"has ended ({state})"
        return [f"run {run_id} {owner}", f"claim {claim.id} of {consumer} belongs to run {new}"]

    report = repair_rows("move_claim", params, by, work)
    return {**report, "dag_id": consumer, "new_run_id": report["lines"][-1].rpartition(" ")[2]}


def state_in_airflow(dag_id: str, run_id: str) -> str | None:
    """The state of a run, as far as `move` needs it. Call it in a task.

    Args:
        dag_id: The Dag's id.
        run_id: The run's id.

    Returns:
        "queued", "running", or "not active"; None if there is no such run.
    """
    from airflow.sdk import get_current_context

    context: Any = get_current_context()
    ti = context["ti"]
    for state in ACTIVE:
        if ti.get_dr_count(dag_id, run_ids=[run_id], states=[state]):
            return state
    return "not active" if ti.get_dr_count(dag_id, run_ids=[run_id]) else None


def _free_id(connection: Connection, consumer: str, claim_id: int) -> str:
    """An id that no claim of the consumer has: a claim may be moved again, when the new run was deleted too."""
    moved = claims.c.run_id.regexp_match(f"^moved-{claim_id}-[0-9]{{1,9}}$")
    taken = connection.scalars(select(claims.c.run_id).where(claims.c.consumer == consumer, moved))
    last = max((int(run_id.rpartition("-")[2]) for run_id in taken), default=0)
    return f"moved-{claim_id}-{last + 1}"
