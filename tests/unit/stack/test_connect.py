"""The local stack's Kafka Connect: the settings of its worker, and the jars of its sink."""

from __future__ import annotations

import re

import pytest

from stack import StackError, connect, jars
from stack.stack import Stack

SECURE = {
    "bootstrap.servers": "127.0.0.1:1", "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "me", "sasl.password": "word", "ssl.ca.location": "/ca.pem",
}  # fmt: skip


def test_a_secured_brokers_settings_reach_every_client_of_the_worker(tmp_path, monkeypatch):
    stack = Stack(tmp_path, services=("kafka", "connect"))
    monkeypatch.setattr(stack.kafka, "client_config", lambda: SECURE)
    settings = stack.connect.worker_settings()
    for prefix in ("", "producer.", "consumer.", "admin."):
        assert settings[f"{prefix}security.protocol"] == "SASL_SSL"
        assert 'username="me" password="word"' in settings[f"{prefix}sasl.jaas.config"]
        assert settings[f"{prefix}ssl.truststore.location"] == "/ca.pem"


def test_only_variables_of_the_landing_can_be_read():
    allowed = re.compile(connect.SETTINGS["config.providers.env.param.allowlist.pattern"])
    assert allowed.match("LANDING_CATALOG_PASSWORD")
    for name in ("AIRFLOW_CONN_OPERATIONS_DB", "PATH", "MY_LANDING_X", "landing_x"):
        assert not allowed.match(name)


def test_connect_without_a_broker_is_refused(tmp_path):
    with pytest.raises(StackError, match="connect needs the service kafka"):
        Stack(tmp_path, services=("connect",))


def test_an_external_kafka_connect_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker.example:9092")
    monkeypatch.setenv("KAFKA_CONNECT_URL", "http://connect.example:8083")
    stack = Stack(tmp_path, services=("kafka", "connect"), report=lambda line: None)
    try:
        stack.up()
        assert stack.endpoints()["connect"] == {"url": "http://connect.example:8083"}
        assert "connect.example" in stack.environment()["AIRFLOW_CONN_KAFKA_CONNECT"]
        assert stack.endpoints()["services"] == {}
    finally:
        stack.remove()


def test_the_sinks_jars_are_of_one_version_and_bring_no_logger():
    locked = jars.read_lock(jars.SINK)
    assert all(coordinate.endswith(jars.ICEBERG_VERSION) for coordinate in locked if ":iceberg-" in coordinate)
    assert f"org.apache.iceberg:iceberg-kafka-connect:{jars.ICEBERG_VERSION}" in locked
    assert not [coordinate for coordinate in locked if "slf4j" in coordinate or "log4j" in coordinate]


def test_a_jar_with_a_classifier_has_mavens_path(tmp_path):
    path = jars._path(tmp_path, "org.apache.orc:orc-core:1.9.8:nohive")
    assert path == tmp_path / "org/apache/orc/orc-core/1.9.8/orc-core-1.9.8-nohive.jar"
