"""docker-compose.override.yml is valid, and its services can be reached only from Airflow and this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stack import connect, jars, object_store, postgres
from stack.requirements import PROJECT

FILE = PROJECT / "docker-compose.override.yml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVING = {name: service for name, service in COMPOSE["services"].items() if "ports" in service}
each_service = pytest.mark.parametrize("service", SERVING.values(), ids=SERVING)


def check(path: Path) -> int:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


def test_the_file_is_valid_by_the_compose_specification():
    assert check(FILE) == 0


def test_a_typing_error_breaks_the_compose_specification(tmp_path: Path):
    path = tmp_path / FILE.name
    path.write_text(FILE.read_text().replace("healthcheck:", "healthchek:"))
    assert check(path) != 0


def test_it_has_the_services_of_the_local_stack():
    assert SERVING.keys() == {"kafka", "connect", "objectstore", "operations-db", "schema-registry"}
    # An example may add its simulators, which run only in their profile.
    assert COMPOSE["services"].keys() - SERVING.keys() - {"simulators"} == {"connect-plugin"}


@each_service
def test_a_service_is_in_airflows_network_pinned_and_checked(service: dict):
    assert service["networks"] == ["airflow"]
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")
    assert service["healthcheck"]["test"]


@each_service
def test_a_service_listens_on_loopback_only(service: dict):
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", sorted(SERVING.keys() - {"connect", "schema-registry"}))  # their state is elsewhere
def test_the_data_of_a_service_outlives_its_container(name: str):
    names = {volume.split(":")[0] for volume in COMPOSE["services"][name]["volumes"]}
    assert names
    assert names <= COMPOSE["volumes"].keys()


def test_containers_and_the_host_get_reachable_addresses():
    environment = COMPOSE["services"]["kafka"]["environment"]
    advertised = dict(pair.split("://") for pair in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(pair.split("://") for pair in environment["KAFKA_LISTENERS"].split(","))
    protocols = dict(pair.split(":") for pair in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert advertised["INTERNAL"].startswith("kafka:")
    assert advertised["HOST"].startswith("127.0.0.1:")
    assert advertised["INTERNAL"].split(":")[1] == listening["INTERNAL"].removeprefix(":")
    assert listening.keys() == protocols.keys()
    (port,) = COMPOSE["services"]["kafka"]["ports"]
    assert port == f"{advertised['HOST']}{listening['HOST']}"


def test_a_misspelt_topic_is_not_created():
    assert COMPOSE["services"]["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def worker_settings() -> dict[str, str]:
    """The variables as Connect's container reads them: Compose turns two dollar signs into one."""
    lines = COMPOSE["configs"]["connect_worker"]["content"].replace("$$", "$").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_connect_has_the_settings_of_the_local_stack():
    settings = worker_settings()
    assert connect.SETTINGS.items() <= settings.items()
    listeners = COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"INTERNAL://{settings['bootstrap.servers']}" in listeners
    assert settings["rest.advertised.host.name"] in COMPOSE["services"]


def test_connect_finds_its_worker_settings_its_plugin_and_its_passwords():
    service = COMPOSE["services"]["connect"]
    (config,) = service["configs"]
    assert config["target"] == service["command"][-1]
    (volume,) = service["volumes"]
    assert volume == "connect_plugins:/opt/connect/plugins:ro"
    assert volume.split(":")[1] == worker_settings()["plugin.path"]
    assert service["env_file"] == ".env"
    assert service["image"] == f"apache/kafka:{jars.KAFKA_VERSION}"


def test_buckets_and_catalog_are_those_of_the_local_stack():
    script = COMPOSE["services"]["objectstore"]["entrypoint"][-1]
    assert all(f"/storage/{bucket} " in script for bucket in object_store.BUCKETS)
    databases = [postgres.DATABASES[key] for key in ("landing_catalog", "schema_registry")]
    content = " ".join(f"CREATE DATABASE {database};" for database in databases)
    assert COMPOSE["configs"]["landing_catalog"]["content"] == content
    (config,) = COMPOSE["services"]["operations-db"]["configs"]
    assert config == {"source": "landing_catalog", "target": "/docker-entrypoint-initdb.d/landing_catalog.sql"}


def test_no_service_writes_to_this_machine():
    for service in COMPOSE["services"].values():
        mounted = {volume.split(":")[0] for volume in service.get("volumes", ())}
        assert mounted <= COMPOSE["volumes"].keys()


def test_connect_waits_for_its_jars_and_for_the_broker():
    conditions = {name: wait["condition"] for name, wait in COMPOSE["services"]["connect"]["depends_on"].items()}
    assert conditions == {"kafka": "service_healthy", "connect-plugin": "service_completed_successfully"}


def test_the_script_fetches_jars_into_connects_plugin_path():
    service = COMPOSE["services"]["connect-plugin"]
    assert service["image"] == COMPOSE["services"]["connect"]["image"]
    files = {config["target"]: COMPOSE["configs"][config["source"]]["file"] for config in service["configs"]}
    _, script, lock, folder = service["command"]
    assert files == {script: "./stack/connect_plugin.sh", lock: "./stack/sink.lock"}
    assert folder.startswith(f"{worker_settings()['plugin.path']}/")
