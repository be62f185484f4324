"""An approval ends at its deadline, even if it is requested late, and its rejection is a result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskAwaitingInput

from include.streams.inference.approval import DeadlineApproval
from include.streams.inference.approvers import parse_approvers


class TaskInstance:
    id = "the task"


def approval(left: timedelta) -> DeadlineApproval:
    deadline = (datetime.now(UTC) + left).isoformat()
    with DAG("approvals"):
        asking = DeadlineApproval(task_id="approve", subject="Do it", deadline_at=deadline)
        # Something depends on it: the stock operator would skip that.
        asking >> DeadlineApproval(task_id="next", subject="Next", deadline_at=deadline)
    return asking


@pytest.mark.parametrize(
    ("left", "at_least", "at_most"),
    [(timedelta(hours=1), 3590, 3600), (timedelta(seconds=30), 20, 30), (timedelta(days=-1), 1, 1)],
)
def test_an_approval_is_open_until_its_deadline_and_rejected_by_default(
    monkeypatch, left: timedelta, at_least: int, at_most: int
):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: asked.update(detail))
    with pytest.raises(TaskAwaitingInput) as waiting:
        approval(left).execute({"task_instance": TaskInstance()})  # type: ignore[arg-type]
    assert timedelta(seconds=at_least) <= waiting.value.timeout <= timedelta(seconds=at_most)
    assert (asked["options"], asked["defaults"]) == (["Approve", "Reject"], ["Reject"])


def test_only_the_named_users_are_asked(monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: asked.update(detail))
    asking = approval(timedelta(hours=1))
    asking.approvers = parse_approvers('["ann", "bob", "ann"]', "approvers").assigned()
    with pytest.raises(TaskAwaitingInput):
        asking.execute({"task_instance": TaskInstance()})  # type: ignore[arg-type]
    assert asked["assigned_users"] == [{"id": "ann", "name": "ann"}, {"id": "bob", "name": "bob"}]
    # Airflow takes an empty list for "anybody".
    asking.approvers = []
    with pytest.raises(ValueError, match="nobody may answer"):
        asking.execute({"task_instance": TaskInstance()})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "ann", "[]", '{"ann": 1}', "[7]", '[""]'])
def test_without_a_valid_list_nobody_may_approve(value: str | None):
    approvers = parse_approvers(value, "approvers")
    assert approvers.users == ()
    assert "set the Airflow Variable approvers to a JSON array of user ids" in approvers.problem


@pytest.mark.parametrize("option", ["Approve", "Reject"])
def test_either_answer_is_a_result_and_skips_no_task(option: str):
    answer = {
        "chosen_options": [option],
        "params_input": {},
        "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "7", "name": "ada"},
    }
    result = approval(timedelta(hours=1)).execute_complete({}, answer)  # type: ignore[arg-type]
    assert result == answer


def test_an_option_that_was_not_offered_is_an_error():
    answer = {"chosen_options": ["Maybe"], "params_input": {}, "responded_at": None, "responded_by_user": None}
    with pytest.raises(ValueError, match="Maybe"):
        approval(timedelta(hours=1)).execute_complete({}, answer)  # type: ignore[arg-type]
