"""A repair in a Dag run: who did it, and what its form in Airflow asks for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError

from include.streams.operations.audit import Actor, Refused
from include.streams.operations.repair_runs import choice, name, repair_params, run_repair


def run_of(user: str | None) -> Any:
    return SimpleNamespace(dag_id="close_alarm", run_id="r", triggering_user_name=user, run_type="scheduled")


def test_the_actor_is_the_user_who_triggered_the_run():
    assert Actor.of_run(run_of("ann")) == Actor("ann", "close_alarm", "r")
    assert Actor.of_run(run_of(None)).name == "no user (scheduled run)"


def test_a_refusal_is_not_retried_and_another_error_is():
    def raising(error: Exception):
        def repair(params, by):
            raise error

        return repair

    with pytest.raises(AirflowFailException, match=r"^write a reason$"):
        run_repair(raising(Refused("write a reason")), {}, run_of("ann"))
    with pytest.raises(ConnectionError):
        run_repair(raising(ConnectionError()), {}, run_of("ann"))


def test_every_repair_has_a_reason_and_is_a_dry_run_by_default():
    params = repair_params(source=name("the source"))
    assert [*params] == ["source", "reason", "dry_run"]
    assert params["dry_run"].resolve() is True
    assert params["reason"].resolve() == ""


@pytest.mark.parametrize("value", ["", " a", "a ", "a" * 301, "a\nb", 7, None])
def test_a_name_is_one_line_without_spaces_at_its_ends(value):
    with pytest.raises(ParamValidationError):
        name("a name").resolve(value)


def test_a_choice_is_one_of_the_names():
    param = choice({"a": 1, "b": 2}, "which")
    assert param.resolve("b") == "b"
    with pytest.raises(ParamValidationError):
        param.resolve("c")
