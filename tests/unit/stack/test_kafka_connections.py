"""Airflow connections to the broker: the stack's own, and those of packages."""

import json

from include import project
from stack.kafka import Kafka
from stack.state import State


def connections(tmp_path, **declared) -> dict[str, dict]:
    state = State(tmp_path)
    state.set("port.kafka", 9)
    kafka = Kafka(state, tmp_path, print, connections=declared)
    return {name: json.loads(value) for name, value in kafka.environment().items()}


def test_a_declared_connection_has_the_same_broker_and_own_settings(tmp_path):
    declared = connections(tmp_path, kafka_reports={"group.id": "reports"})
    assert declared == {
        "AIRFLOW_CONN_KAFKA_DEFAULT": {"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:9"}},
        "AIRFLOW_CONN_KAFKA_REPORTS": {
            "conn_type": "kafka",
            "extra": {"bootstrap.servers": "127.0.0.1:9", "group.id": "reports"},
        },
    }


def test_the_stack_has_the_connections_of_airflow_settings(tmp_path):
    import yaml

    from stack.airflow import SETTINGS_FILE

    declared = {
        connection["conn_id"]: json.loads(connection["conn_extra"])
        for connection in yaml.safe_load(SETTINGS_FILE.read_text())["airflow"]["connections"]
        if connection["conn_type"] == "kafka"
    }
    for extra in declared.values():
        extra.pop("bootstrap.servers")  # containers reach the broker by another address
    assert declared == {"kafka_default": {}, **project.PROJECT.kafka_connections}
