"""The only private method of the Kafka provider that is overridden."""

import json

import pytest

from include.streams.compat.kafka_settings import kafka_settings


@pytest.fixture(autouse=True)
def connection(monkeypatch):
    extra = {"bootstrap.servers": "broker:9092", "client.id": "here"}
    monkeypatch.setenv("AIRFLOW_CONN_A_BROKER", json.dumps({"conn_type": "kafka", "extra": extra}))


def test_the_provider_returns_the_settings_and_creates_no_client():
    assert kafka_settings("a_broker") == {"bootstrap.servers": "broker:9092", "client.id": "here"}


def test_a_provider_that_creates_its_client_in_another_way_is_refused(monkeypatch):
    from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook

    monkeypatch.setattr(KafkaBaseHook, "get_conn", property(lambda self: object()))
    with pytest.raises(TypeError, match="include/streams/compat"):
        kafka_settings("a_broker")
