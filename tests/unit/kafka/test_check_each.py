"""One consumer's check that fails, or takes the task's whole time, leaves the others' turn to come."""

from types import SimpleNamespace

import pytest

from include.kafka.watch import CheckFailed, check_each

CONSUMERS = [SimpleNamespace(name=name) for name in ("b", "a", "c")]


class TimeIsUp(BaseException):
    """Like Airflow's timeout of a task."""


def test_a_check_that_fails_is_named_after_all_others_were_made():
    checked = []

    def check(consumer) -> None:
        checked.append(consumer.name)
        if consumer.name != "c":
            raise ValueError("no")

    with pytest.raises(CheckFailed, match=r"^consumer a: no; consumer b: no$"):
        check_each(CONSUMERS, check)
    assert sorted(checked) == ["a", "b", "c"]


def test_a_check_that_takes_all_the_time_starves_no_consumer():
    checked = set()

    def check(consumer) -> None:
        if consumer.name == "b":
            raise TimeIsUp
        checked.add(consumer.name)

    # In the order of the list, none of them would be checked.
    for _ in range(200):
        with pytest.raises(TimeIsUp):
            check_each(CONSUMERS, check)
    assert checked == {"a", "c"}
