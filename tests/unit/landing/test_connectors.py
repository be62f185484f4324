"""Configurations of connectors come from files and connections, hold no password, and have clear errors."""

from __future__ import annotations

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest

from include.project import PROJECT
from include.streams.landing import connectors
from include.streams.landing.connect import Connect, ConnectUnreachable
from include.streams.landing.connector_status import ConnectorStatus, shortened
from include.streams.landing.tables import connector_name
from include.streams.landing.watchdog import Limits
from tests import webhooks
from tests.unit.contracts.orders import SCANS, TOPICS

CATALOG = {
    "conn_type": "postgres", "host": "db", "port": 5433, "login": "me", "password": "secret-word", "schema": "catalog",
    "extra": {"warehouse": "gs://bucket/warehouse", "sslmode": "require"},
}  # fmt: skip
STORE = {"conn_type": "google_cloud_platform", "extra": {"project": "local", "is_anonymous": True}}


@pytest.fixture(autouse=True)
def connections(monkeypatch) -> None:
    connect_to(monkeypatch, CATALOG, STORE)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://store:4443")


def connect_to(monkeypatch, catalog: dict, store: dict) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LANDING_CATALOG", json.dumps(catalog))
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(store))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / connectors.TEMPLATE).write_text('{"topics": "{{topic}}", "iceberg.tables": "{{table}}"}')
    return tmp_path


def test_the_template_fits_every_landed_topic_and_holds_no_password():
    for topic in connectors.landed_topics([*TOPICS, *PROJECT.topics]):
        config = connectors.connector_config(topic)
        assert config["topics"] == topic.name
        assert config["iceberg.control.topic"] == f"{connector_name(topic)}.control"
        assert config["iceberg.catalog.uri"] == "jdbc:postgresql://db:5433/catalog?sslmode=require"
        assert config["iceberg.catalog.jdbc.password"] == "${env:LANDING_CATALOG_PASSWORD}"
        assert config["iceberg.catalog.gcs.service.host"] == "http://store:4443"
        assert "{{" not in str(config)
        assert "secret-word" not in str(config)


def test_the_next_commit_does_not_start_when_the_last_times_out():
    # The broker has been seen to refuse the second of two transactions that follow within milliseconds.
    config = connectors.connector_config(SCANS)
    names = ("iceberg.control.commit.timeout-ms", "iceberg.control.commit.interval-ms")
    timeout, interval = (int(config[name]) for name in names)
    assert timeout <= interval - 1000


def test_google_storage_gets_no_address_and_no_anonymous_access(monkeypatch, folder):
    connect_to(monkeypatch, CATALOG, {"conn_type": "google_cloud_platform", "extra": {"project": "prod"}})
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    config = connectors.connector_config(SCANS, folder)
    assert config["iceberg.catalog.gcs.project-id"] == "prod"
    assert not {"iceberg.catalog.gcs.service.host", "iceberg.catalog.gcs.no-auth"} & config.keys()


def test_a_rest_catalog_gets_its_credential_from_connects_environment(monkeypatch, folder):
    extra = {"type": "rest", "uri": "https://catalog.example", "warehouse": "w"}
    connect_to(monkeypatch, {**CATALOG, "extra": extra}, STORE)
    config = connectors.connector_config(SCANS, folder)
    assert config["iceberg.catalog.type"] == "rest"
    assert config["iceberg.catalog.uri"] == "https://catalog.example"
    assert config["iceberg.catalog.credential"] == "${env:LANDING_CATALOG_CREDENTIAL}"
    assert "iceberg.catalog.jdbc.user" not in config


def test_a_connectors_own_file_replaces_settings_of_the_template(folder):
    (folder / connectors.TEMPLATE).write_text(
        '{"iceberg.catalog.uri": "jdbc:postgresql://elsewhere/c", "tasks.max": "2"}'
    )
    (folder / f"{connector_name(SCANS)}.json").write_text('{"tasks.max": "4"}')
    config = connectors.connector_config(SCANS, folder)
    assert (config["iceberg.catalog.uri"], config["tasks.max"]) == ("jdbc:postgresql://elsewhere/c", "4")
    other = dataclasses.replace(SCANS, name="other.scans")
    assert connectors.connector_config(other, folder)["tasks.max"] == "2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "landing.json cannot be read"),
        ('{"tasks.max": 2}', "values are strings"),
        ('{"topics": "{{tpoic}}"}', "no placeholder {{tpoic}}; there are control_topic, table, topic"),
    ],
)
def test_an_unusable_template_is_refused_with_the_reason(folder, text, words):
    (folder / connectors.TEMPLATE).write_text(text)
    with pytest.raises(ValueError, match=r"landing\.json|placeholder") as caught:
        connectors.connector_config(SCANS, folder)
    assert words in str(caught.value)


class Cluster:
    """A Kafka Connect with these connectors."""

    def __init__(self, configs: dict[str, dict[str, str]]) -> None:
        self._configs = configs

    def configs(self) -> dict[str, dict[str, str]]:
        return self._configs


def test_connectors_of_apply_without_a_landed_topic_are_left_over():
    name = connector_name(SCANS)
    setting = "iceberg.control.topic"
    cluster = Cluster(
        {
            name: {setting: f"{name}.control"},
            "landing-old-scans": {setting: "landing-old-scans.control"},
            "landing-of-somebody-else": {setting: "theirs"},
            "no-iceberg": {},
        }
    )
    found = connectors.left_over([SCANS], cast(Connect, cluster))
    assert found.keys() == {"landing-old-scans"}
    assert "python -m include.streams.landing remove landing-old-scans" in found["landing-old-scans"]
    unlanded = dataclasses.replace(SCANS, landed=False)
    assert connectors.left_over([unlanded], cast(Connect, cluster)).keys() == {name, "landing-old-scans"}


TRACE = """org.apache.kafka.connect.errors.ConnectException: Exiting WorkerSinkTask due to unrecoverable exception.
\tat org.apache.kafka.connect.runtime.WorkerSinkTask.deliverMessages(WorkerSinkTask.java:636)
Caused by: org.apache.kafka.connect.errors.DataException: cannot convert {"name": "Ms Example", "IBANException": 1}
\tat org.apache.kafka.connect.transforms.Cast.apply(Cast.java:1)
\t... 10 more
"""


def test_a_shortened_trace_has_no_messages():
    text = shortened(TRACE)
    assert text == "ConnectException <- DataException in org.apache.kafka.connect.transforms.Cast.apply"
    assert shortened("") == "no trace"
    assert len(shortened("Caused by: a.LongException\n" * 500)) <= 400


def test_a_connector_without_tasks_is_not_running():
    assert not ConnectorStatus("RUNNING", {}).is_running
    assert not ConnectorStatus("RUNNING", {0: "RUNNING", 1: "FAILED"}).is_running
    assert ConnectorStatus("RUNNING", {0: "RUNNING"}).is_running
    assert ConnectorStatus("FAILED", {}).has_failed


def test_pauses_double_up_to_an_hour_and_cover_a_night():
    limits = Limits()
    pauses = [limits.pause(n).total_seconds() / 60 for n in range(1, limits.max_restarts)]
    assert pauses[:7] == [2, 4, 8, 16, 32, 60, 60]
    assert sum(pauses) > 6 * 60
    assert limits.pause(10_000) == limits.longest_pause


def test_a_request_during_a_rebalance_is_repeated(monkeypatch):
    """Connect answers 409, or 500 with the word: both mean later. Any other 500 is an error, and so is a login page."""
    answers = [
        (409, {"message": "Cannot complete request momentarily due to stale configuration"}),
        (500, {"message": "Request cannot be completed because a rebalance is expected"}),
        (200, {"topics": "orders"}),
        (500, {"message": "disk full"}),
        (200, "<html>log in</html>"),
    ]

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("include.streams.landing.connect.REBALANCE_PAUSE_SECONDS", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_CONNECT", f"http://127.0.0.1:{server.server_port}")
        connect = Connect()
        assert connect.config("orders") == {"topics": "orders"}
        with pytest.raises(ConnectUnreachable, match="disk full"):
            connect.config("orders")
        with pytest.raises(ConnectUnreachable, match=r"connection kafka_connect: GET .* not JSON"):
            connect.config("orders")
        server.shutdown()


def test_each_picked_header_has_a_transform_of_its_own(folder):
    (folder / connectors.TEMPLATE).write_text('{"topics": "{{topic}}", "transforms": "hoist"}')
    config = connectors.connector_config(webhooks.topic(landed=True), folder)
    assert config["transforms"] == "hoist,header0,header1,headers"
    assert config["transforms.header0.headers"] == "X-Hub-Event"
    assert config["transforms.header1.fields"] == "header_x_hub_delivery"
    assert config["transforms.headers.static.value"] == "X-Hub-Event,X-Hub-Delivery"
    assert config["errors.tolerance"] == "all"
    plain = connectors.connector_config(SCANS, folder)
    assert plain["transforms"] == "hoist"
    assert "errors.tolerance" not in plain
