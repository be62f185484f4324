"""If one action fails, or takes the task's whole time, the others still run."""

from functools import partial

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout

from include.streams.kafka.watch import CheckFailed
from include.streams.operations.each import do_each, shuffled

NAMES = ("b", "a", "c")


class TimeIsUp(BaseException):
    """Like Airflow's timeout of a task."""


def test_a_failed_check_is_named_after_all_others_have_run():
    checked = []

    def check(name: str) -> None:
        checked.append(name)
        if name != "c":
            raise ValueError("no")

    with pytest.raises(CheckFailed, match=r"^consumer a: no; consumer b: no$"):
        do_each({f"consumer {name}": partial(check, name) for name in NAMES}, CheckFailed)
    assert checked == ["b", "a", "c"]


def test_each_action_has_its_result():
    assert do_each({name: name.upper for name in NAMES}, CheckFailed) == {"b": "B", "a": "A", "c": "C"}


@pytest.mark.parametrize("end", [AirflowTaskTimeout, KeyboardInterrupt, SystemExit])
def test_a_timeout_or_an_interrupt_ends_all_actions_at_once(end: type[BaseException]):
    done = []

    def ends() -> None:
        raise end

    with pytest.raises(end):
        do_each({"a": partial(done.append, "a"), "b": ends, "c": partial(done.append, "c")}, CheckFailed)
    assert done == ["a"]


def test_a_check_that_takes_all_the_time_does_not_starve_the_others():
    checked = set()

    def check(name: str) -> None:
        if name == "b":
            raise TimeIsUp
        checked.add(name)

    # In a fixed order, the checks after it would never run.
    for _ in range(200):
        with pytest.raises(TimeIsUp):
            do_each(shuffled({name: partial(check, name) for name in NAMES}), CheckFailed)
    assert checked == {"a", "c"}
