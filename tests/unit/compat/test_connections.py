"""In a real worker: a connection counts as not defined only after a definite answer of Airflow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest

from include.streams.compat import connections
from include.streams.compat.connections import LookUpFailed, is_defined
from tests.worker import ApiServer, run_in_worker

# For each connection: the answers of `is_defined` and of Airflow itself. The difference is why `is_defined` exists.
ASK = """
import json
from airflow.sdk import BaseHook
from include.streams.compat.connections import LookUpFailed, is_defined

def result_of(look_up, conn_id):
    try:
        return look_up(conn_id)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

answer(json.dumps({conn_id: [
    result_of(is_defined, conn_id), result_of(lambda conn_id: BaseHook.get_connection(conn_id).conn_type, conn_id)
] for conn_id in CONN_IDS}))
"""


@pytest.fixture
def ask() -> Iterator[Callable[..., dict[str, list]]]:
    api = ApiServer()

    def ask_in_worker(connections: dict[str, dict | int], **settings: str) -> dict[str, list]:
        api.connections = connections
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")}
        code = f"CONN_IDS = {list(connections)}\n{ASK}"
        return json.loads(run_in_worker(code, api, {**environment, **settings}))

    yield ask_in_worker
    api.shutdown()
    api.server_close()


def test_only_a_definite_answer_makes_a_connection_undefined(ask):
    connections: dict[str, dict | int] = {
        "known": {"conn_type": "http"},
        "unknown": 404,
        "error": 500,
        "away": 503,
        "silent": 0,
        "denied": 403,
    }
    answers = ask(connections)
    assert answers["known"] == [True, "http"]
    assert answers["unknown"] == [False, "AirflowNotFoundException: The conn_id `unknown` isn't defined"]
    for conn_id in ("error", "away", "silent"):
        own, airflows = answers[conn_id]
        assert airflows == f"AirflowNotFoundException: The conn_id `{conn_id}` isn't defined"
        assert own.startswith(f"LookUpFailed: connection {conn_id}: the look-up failed (")
    assert answers["denied"][0].startswith("LookUpFailed: ")


def test_if_a_secrets_backend_fails_the_look_up_fails(ask):
    answers = ask({"unknown": 404}, AIRFLOW__WORKERS__SECRETS_BACKEND=f"{__name__}.FailingBackend")
    own, airflows = answers["unknown"]
    assert airflows == "AirflowNotFoundException: The conn_id `unknown` isn't defined"
    assert own == "LookUpFailed: connection unknown: the look-up failed (FailingBackend: ConnectionError)"


class FailingBackend:
    """A store of secrets that is away."""

    def _set_connection_class(self, _) -> None: ...

    def get_connection(self, conn_id: str):
        raise ConnectionError("the store is away")


def test_outside_airflow_the_environment_defines_connections(monkeypatch):
    assert not is_defined("a_webhook")
    monkeypatch.setenv("AIRFLOW_CONN_A_WEBHOOK", '{"conn_type": "http"}')
    assert is_defined("a_webhook")


def test_an_unreadable_definition_fails_the_look_up_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_A_WEBHOOK", '{"conn_type": "http", "password": "secret"')
    with pytest.raises(LookUpFailed) as failed:
        is_defined("a_webhook")
    assert "secret" not in str(failed.value)
    assert "EnvironmentVariablesBackend" in str(failed.value)


def test_without_the_private_parts_airflows_answer_counts_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(connections, "_is_logged", False)
    monkeypatch.delattr("airflow.sdk.execution_time.supervisor.ensure_secrets_backend_loaded")
    monkeypatch.setattr("airflow.sdk.BaseHook.get_connection", _not_found)
    assert [is_defined("a_webhook") for _ in range(2)] == [False, False]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "include.streams.compat.connections"]
    assert "see include/streams/compat/__init__.py" in line


def _not_found(conn_id: str):
    from airflow.sdk.exceptions import AirflowNotFoundException

    raise AirflowNotFoundException(conn_id)
