"""One thing that fails, or takes the task's whole time, leaves the others' turn to come."""

from functools import partial

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout

from include.streams.kafka.watch import CheckFailed
from include.streams.operations.each import do_each, shuffled

NAMES = ("b", "a", "c")


class TimeIsUp(BaseException):
    """Like Airflow's timeout of a task."""


def test_a_check_that_fails_is_named_after_all_others_were_made():
    checked = []

    def check(name: str) -> None:
        checked.append(name)
        if name != "c":
            raise ValueError("no")

    with pytest.raises(CheckFailed, match=r"^consumer a: no; consumer b: no$"):
        do_each({f"consumer {name}": partial(check, name) for name in NAMES}, CheckFailed)
    assert checked == ["b", "a", "c"]


def test_what_succeeds_has_a_result():
    assert do_each({name: name.upper for name in NAMES}, CheckFailed) == {"b": "B", "a": "A", "c": "C"}


@pytest.mark.parametrize("end", [AirflowTaskTimeout, KeyboardInterrupt, SystemExit])
def test_a_task_whose_time_is_up_ends_at_once(end: type[BaseException]):
    done = []

    def ends() -> None:
        raise end

    with pytest.raises(end):
        do_each({"a": partial(done.append, "a"), "b": ends, "c": partial(done.append, "c")}, CheckFailed)
    assert done == ["a"]


def test_a_check_that_takes_all_the_time_starves_no_consumer():
    checked = set()

    def check(name: str) -> None:
        if name == "b":
            raise TimeIsUp
        checked.add(name)

    # In the order of the list, none of them would be checked.
    for _ in range(200):
        with pytest.raises(TimeIsUp):
            do_each(shuffled({name: partial(check, name) for name in NAMES}), CheckFailed)
    assert checked == {"a", "c"}
