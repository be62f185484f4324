"""The connection `llm`: its valid and invalid settings, and a missing connection."""

import json
import subprocess
import sys

import pytest

from include.streams.inference.model import Misconfigured, from_connection


@pytest.fixture
def connection(monkeypatch):
    def define(**changes):
        value = {"conn_type": "http", "host": "https://models.example/v1", "password": "k", "extra": {"model": "m-1"}}
        monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps({**value, **changes}))

    return define


def test_an_undefined_connection_gives_no_model(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_LLM", raising=False)
    assert from_connection() is None


def test_a_connection_without_a_host_gives_no_model(connection):
    connection(host="")
    assert from_connection() is None


def test_the_connection_names_the_endpoint_the_key_and_the_model(connection):
    connection(extra={"model": "m-1", "max_seconds": 20, "parameters": {"max_tokens": 300}})
    model = from_connection()
    assert (model.base_url, model.api_key, model.settings.model) == ("https://models.example/v1", "k", "m-1")
    assert model.settings.max_seconds == 20
    assert model.settings.parameters == {"max_tokens": 300}


def test_a_host_without_scheme_gets_one(connection):
    connection(host="models.example", schema="http", port=8080)
    assert from_connection().base_url == "http://models.example:8080"
    connection(host="models.example")
    assert from_connection().base_url == "https://models.example"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra": {}}, "model"),
        ({"extra": {"model": ""}}, "model"),
        ({"extra": {"model": "m", "max_request": 3}}, "max_request"),
        ({"extra": {"model": "m", "max_seconds": 0}}, "max_seconds"),
        ({"extra": {"model": "m", "parameters": {"tools": []}}}, "tools"),
        ({"host": "ftp://models.example"}, "https://host/v1"),
    ],
)
def test_an_invalid_connection_is_refused_with_the_reason(connection, changes, said):
    connection(**changes)
    with pytest.raises(Misconfigured, match=f"connection llm.*{said}") as error:
        from_connection()
    assert "k" not in error.value.reason.split()


def test_importing_the_agent_imports_no_client():
    program = (
        "import sys; import include.streams.inference.agent; print({'openai', 'httpx', 'airflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
