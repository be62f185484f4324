"""An approval with a deadline. Without an answer it is a rejection, and a rejection is a normal result."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DeadlineApproval(ApprovalOperator):
    """Asks a person for approval until a deadline.

    The result is {"chosen_options": ["Approve"] or ["Reject"], "responded_by_user": {"id", "name"}, "responded_at":
    datetime, ...}. After the deadline it is "Reject", and `responded_by_user` is None.

    The stock operator differs in three ways. Its timeout starts when it asks, so a run that waited in the queue, or was
    cleared, would ask beyond the deadline. After a rejection it skips its downstream tasks and stores no result, so no
    task could record who rejected. And its assigned users are known when the Dag file is parsed; here an earlier task
    names them.

    Args:
        deadline_at: The deadline in ISO 8601 with a time zone; a template field.
        approvers: The users who may answer, as a list of {"id", "name"}; a template field. None: everybody whom Airflow
            lets answer. An empty list is refused, because Airflow would take it for None.
        kwargs: The other arguments of the stock operator.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "deadline_at", "approvers")

    def __init__(self, *, deadline_at: Any, approvers: Any = None, **kwargs: Any) -> None:
        # A placeholder: `execute` sets the timeout. Without it, the operator would use execution_timeout.
        super().__init__(defaults=self.REJECT, response_timeout=timedelta(days=1), **kwargs)
        self.deadline_at = deadline_at
        self.approvers = approvers

    def execute(self, context: Context) -> None:
        if self.approvers is not None:
            if not self.approvers:
                raise ValueError("nobody may answer: an approval needs approvers")
            self.assigned_users = [*self.approvers]
        left = datetime.fromisoformat(self.deadline_at) - datetime.now(UTC)
        # At least one second: after the deadline, the default is then recorded without an answer of a person.
        self.response_timeout = max(left, timedelta(seconds=1))
        super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        return HITLOperator.execute_complete(self, context, event)
