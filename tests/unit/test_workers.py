"""Which worker of `make test` runs which tests."""

import pytest

from tests.conftest import next_group, worker_group

CONNECT, QUICK, DAGS, LANE = (
    "tests/integration/connect",
    "tests/unit/test_workers.py",
    "tests/dags/test_names.py",
    "tests/integration/kafka/test_claims.py",
)


@pytest.mark.parametrize(
    ("waiting", "worker", "expected"),
    [
        ([QUICK, LANE, DAGS], "gw0", LANE),
        ([QUICK, DAGS], "gw1", QUICK),
        ([CONNECT, LANE, DAGS, QUICK], "gw2", DAGS),
        ([CONNECT, LANE], "gw2", LANE),
        ([CONNECT], "gw2", None),
        # A worker that replaces one that ended.
        ([LANE, QUICK], "gw12", QUICK),
    ],
)
def test_a_worker_beyond_the_second_has_tests_without_services_first(waiting, worker, expected):
    assert next_group(waiting, worker) == expected


def test_tests_that_share_a_stack_go_to_one_worker():
    assert worker_group(f"{CONNECT}/test_connectors.py::test_a") == CONNECT
    assert worker_group(f"{LANE}::test_a") == LANE
