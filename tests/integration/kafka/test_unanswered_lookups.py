"""An outage of Airflow's API server drops no request; requests to an undefined connection open no alarm."""

import os
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from include.streams.operations import outbox, outbox_delivery
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, make_all_due
from tests.integration.kafka.test_handling import Receiver, outbox_states
from tests.worker import ApiServer, run_in_worker

pytestmark = pytest.mark.integration

DELIVER = """
from include.streams.kafka.delivery import deliver_due
answer(deliver_due([]))
"""
CHECK_CONNECTORS = """
from airflow.dag_processing.dagbag import DagBag
dag = DagBag("dags/operations/watch_connectors.py").dags["watch_connectors"]
check = dag.get_task("check_connectors").python_callable
try:
    check(params={"max_lag": 1, "stalled_minutes": 1, "max_restarts": 1})
except Exception as error:
    answer(type(error).__name__)
"""


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def in_worker(api) -> Callable[[str], str]:
    """A function that runs code in a worker with the services' connections and an API server for the others."""
    known = ("AIRFLOW_CONN_OPERATIONS_DB", "AIRFLOW_CONN_KAFKA_DEFAULT")
    environment = {name: v for name, v in os.environ.items() if name in known or not name.startswith("AIRFLOW_CONN_")}
    return lambda code: run_in_worker(code, api, environment)


@pytest.fixture
def request_to(make_topic, make_consumer):
    """A function that adds a request to an HTTP connection to the outbox, and returns the request's consumer."""

    def make(conn_id: str):
        consumer = make_consumer(make_topic())
        with begin() as connection:
            outbox.add_request(connection, consumer=consumer.name, conn_id=conn_id, payload={"n": 1})
        return consumer

    return make


def failures(consumer) -> list[tuple[int, str]]:
    with begin() as connection:
        query = text("select failures, last_error from outbox_routes where consumer = :name")
        return [tuple(row) for row in connection.execute(query, {"name": consumer.name})]


def test_while_the_api_server_is_away_requests_wait(api, in_worker, request_to):
    server = Receiver()
    consumer = request_to("late_webhook")
    api.connections["late_webhook"] = 503
    make_all_due(consumer)
    assert in_worker(DELIVER) == "0"
    assert outbox_states(consumer) == [("request", "pending")]
    ((count, error),) = failures(consumer)
    assert (count, "late_webhook: the look-up failed" in error) == (1, True)

    # The API server's database was away for a moment: then Airflow answers that the connection is not defined.
    api.connections["late_webhook"] = 404
    make_all_due(consumer)
    assert in_worker(DELIVER) == "0"
    assert outbox_states(consumer) == [("request", "pending")]

    api.connections["late_webhook"] = {"conn_type": "http", "host": f"http://127.0.0.1:{server.server_port}"}
    make_all_due(consumer)
    assert in_worker(DELIVER) == "1"
    server.shutdown()
    assert [payload for _, payload in server.seen] == [{"n": 1}]


def test_requests_to_an_undefined_connection_are_skipped_without_an_alarm(in_worker, request_to):
    consumer = request_to("nobodys_webhook")
    for state in ("pending", "skipped"):
        make_all_due(consumer)
        assert in_worker(DELIVER) == "0"
        assert outbox_states(consumer) == [("request", state)]
    assert failures(consumer) == [(0, None)]
    outbox_delivery.watch()
    assert alarms(consumer) == {}


def test_only_the_first_rows_of_an_undefined_connection_wait_a_minute(request_to):
    consumer = request_to("nobodys_webhook")
    (route,) = [route for route in outbox_delivery.due_routes() if route.consumer == consumer.name]
    due, reason = outbox.outbox.c.due_at <= text("now()"), "connection nobodys_webhook is not defined"
    outbox_delivery._skip(route, reason, due)
    with begin() as connection:
        query = text(
            "select state, due_at - now() between interval '50 s' and interval '60 s' "
            "from outbox where consumer = :name"
        )
        assert tuple(connection.execute(query, {"name": consumer.name}).one()) == ("pending", True)
    make_all_due(consumer)
    outbox_delivery._skip(route, reason, due)
    with begin() as connection:
        outbox.add_request(connection, consumer=consumer.name, conn_id="nobodys_webhook", payload={"n": 2})
    outbox_delivery._skip(route, reason, due)
    assert outbox_states(consumer) == [("request", "skipped")] * 2


@pytest.mark.parametrize(("status", "ends"), [(503, "LookUpFailed"), (404, "AirflowSkipException")])
def test_connectors_are_unwatched_only_if_kafka_connect_is_undefined(status, ends, api, in_worker):
    api.connections["kafka_connect"] = status
    assert in_worker(CHECK_CONNECTORS) == ends
