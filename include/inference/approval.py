"""An approval as an answer: until a moment, rejected by default, and a rejection is a result like any other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DeadlineApproval(ApprovalOperator):
    """Asks a person for approval until `deadline_at`, a time in ISO 8601 with its zone; a template field.

    Its result is {"chosen_options": ["Approve"] or ["Reject"], "responded_by_user": {"id", "name"}, "responded_at":
    datetime, ...}; after the deadline it is "Reject" by nobody (None).

    The stock operator differs in two ways. It counts its time from when it asks, so a run that waited in the queue,
    or was cleared, would ask beyond the deadline. And it skips its downstream tasks after a rejection, and then keeps
    no result: nobody could record who rejected.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "deadline_at")

    def __init__(self, *, deadline_at: Any, **kwargs: Any) -> None:
        # The timeout is set when it asks. Without one, the operator would take execution_timeout for it.
        super().__init__(defaults=self.REJECT, response_timeout=timedelta(days=1), **kwargs)
        self.deadline_at = deadline_at

    def execute(self, context: Context) -> None:
        left = datetime.fromisoformat(self.deadline_at) - datetime.now(UTC)
        # A second, when it has passed: then the default is recorded as if nobody had answered, which is so.
        self.response_timeout = max(left, timedelta(seconds=1))
        super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        return HITLOperator.execute_complete(self, context, event)
