"""The Astro CLI accepts airflow_settings.yaml, .env.example and .astro/config.yaml, and they contain no secret."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from stack.requirements import PROJECT

# The keys of each entry that the CLI reads (its settings/types.go); it silently ignores all other keys.
KEYS = {
    "connections": {
        "conn_id",
        "conn_type",
        "conn_host",
        "conn_schema",
        "conn_login",
        "conn_password",
        "conn_port",
        "conn_uri",
        "conn_extra",
    },
    "pools": {"pool_name", "pool_slot", "pool_description"},
    "variables": {"variable_name", "variable_value"},
}
PLACEHOLDER = "change-me"


@pytest.fixture(scope="module")
def settings() -> dict:
    return yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text())["airflow"]


@pytest.fixture(scope="module")
def connections(settings: dict) -> dict[str, dict]:
    return {connection["conn_id"]: connection for connection in settings["connections"]}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The variables of a container: Compose expands ${NAME} to the value of an earlier line."""
    values: dict[str, str] = {}
    for name, value in written():
        values[name] = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value)
    return values


def written() -> list[tuple[str, str]]:
    """The names and values of .env.example, not expanded."""
    lines = (PROJECT / ".env.example").read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if line and not line.startswith("#")]


def test_the_password_is_written_once():
    assert [name for name, value in written() if PLACEHOLDER in value] == ["POSTGRES_PASSWORD"]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((PROJECT / "docker-compose.override.yml").read_text())["services"]


@pytest.mark.parametrize("kind", KEYS)
def test_the_cli_knows_every_key(kind: str, settings: dict):
    assert settings.keys() == KEYS.keys()
    for entry in settings[kind]:
        assert entry.keys() <= KEYS[kind], entry


def test_airflow_accepts_the_settings_that_the_cli_sends(settings: dict):
    from airflow.api_fastapi.core_api.datamodels.connections import ConnectionBody
    from airflow.api_fastapi.core_api.datamodels.pools import PoolBody
    from airflow.api_fastapi.core_api.datamodels.variables import VariableBody

    # The CLI posts these to Airflow's REST API, and ignores a pool without slots.
    names = {"conn_id": "connection_id", "conn_type": "conn_type"}
    for connection in settings["connections"]:
        ConnectionBody.model_validate({names.get(k, k.removeprefix("conn_")): v for k, v in connection.items()})
    for pool in settings["pools"]:
        assert pool["pool_slot"] > 0
        PoolBody.model_validate({"name": pool["pool_name"], "slots": pool["pool_slot"], "include_deferred": False})
    for variable in settings["variables"]:
        VariableBody.model_validate({"key": variable["variable_name"], "value": variable["variable_value"]})


def test_every_connection_has_a_type_and_a_number_as_port(settings: dict):
    for connection in settings["connections"]:
        assert connection["conn_type"]
        assert isinstance(connection.get("conn_port", 0), int)


def test_extras_are_json_in_a_string(settings: dict):
    # With a YAML map, its keys would reach Airflow in lower case.
    for connection in settings["connections"]:
        if "conn_extra" in connection:
            assert isinstance(connection["conn_extra"], str), connection["conn_id"]
            assert isinstance(json.loads(connection["conn_extra"]), dict)


def test_a_connection_is_declared_in_one_place(settings: dict, environment: dict[str, str]):
    ids = [connection["conn_id"] for connection in settings["connections"]]
    assert len(ids) == len(set(ids))
    from_environment = {name.removeprefix("AIRFLOW_CONN_").lower() for name in environment}
    assert from_environment.isdisjoint(ids)


def test_no_password_is_committed(settings: dict, environment: dict[str, str]):
    for connection in settings["connections"]:
        assert "conn_password" not in connection
        assert "conn_uri" not in connection
        assert not re.search("password|secret|token|private_key", connection.get("conn_extra", ""))
    for name, value in environment.items():
        if "PASSWORD" in name:
            assert value == PLACEHOLDER, name
        for password in re.findall(r"://[^:/@]*:([^@]+)@", value):
            assert password == PLACEHOLDER, name


def test_values_of_the_environment_file_are_not_quoted(environment: dict[str, str]):
    assert environment
    for name, value in environment.items():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name)
        assert value == value.strip()
        assert not value.startswith(("'", '"')), name


def test_the_database_is_the_one_of_the_compose_file(environment: dict[str, str], compose: dict):
    from airflow.models import Connection

    service = compose["operations-db"]
    connection = Connection(conn_id="operations_db", uri=environment["AIRFLOW_CONN_OPERATIONS_DB"])
    assert connection.conn_type == "postgres"
    assert connection.host in compose
    assert connection.port == 5432
    assert connection.login == service["environment"]["POSTGRES_USER"]
    assert connection.schema == service["environment"]["POSTGRES_DB"]
    assert connection.password == environment["POSTGRES_PASSWORD"]
    assert service["env_file"] == ".env"


def test_the_broker_is_the_one_of_the_compose_file(connections: dict[str, dict], compose: dict):
    advertised = compose["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    internal = dict(listener.split("://") for listener in advertised.split(","))["INTERNAL"]
    extra = json.loads(connections["kafka_default"]["conn_extra"])
    assert extra["bootstrap.servers"] == internal


def test_the_broker_connection_is_one_that_the_clients_accept(connections: dict[str, dict]):
    from include.streams.kafka.connection import check

    check("kafka_default", json.loads(connections["kafka_default"]["conn_extra"]))


def test_the_object_store_is_the_one_of_the_compose_file(environment: dict[str, str], compose: dict):
    assert f"-external-url={environment['STORAGE_EMULATOR_HOST']}" in compose["objectstore"]["command"]


def test_names_are_those_of_the_local_stack(connections: dict[str, dict], compose: dict):
    from stack.object_store import CONNECTION
    from stack.postgres import DATABASES

    assert compose["operations-db"]["environment"]["POSTGRES_DB"] == DATABASES["operations_db"]
    google = connections["google_cloud_default"]
    assert google["conn_type"] == CONNECTION["conn_type"]
    assert json.loads(google["conn_extra"]) == CONNECTION["extra"]


def test_airflow_supports_the_clis_metadata_database():
    config = yaml.safe_load((PROJECT / ".astro" / "config.yaml").read_text())
    assert config["project"]["name"]
    # Airflow 3.3 needs 14; the image of 18 keeps its data where the CLI mounts no volume.
    assert 14 <= int(config["postgres"]["tag"]) <= 17
    assert config["disable_astro_run"] is True
