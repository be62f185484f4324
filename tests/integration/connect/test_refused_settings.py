"""Brokers that refuse a setting of a topic, as managed services do."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from include.streams.contracts import Topic
from include.streams.kafka import topics
from include.streams.kafka.connection import admin_config, client_config
from include.streams.kafka.topics import SettingsRefused, create_topics
from include.streams.landing import connectors
from include.streams.landing.tables import connector_name
from tests.integration.connect.conftest import send, wait_until_landed
from tests.integration.kafka.conftest import Order

pytestmark = pytest.mark.integration
# The broker refuses an unknown value with the same error as a policy: INVALID_CONFIG.
REFUSED = "refused-by-the-service"


def settings_of(name: str) -> dict[str, str | None]:
    admin = AdminClient(admin_config(client_config()))
    resource = ConfigResource(ResourceType.TOPIC, name)
    found = admin.describe_configs([resource])[resource].result(10)
    return {setting: entry.value for setting, entry in found.items()}


def test_a_control_topic_is_created_without_refused_compression(make_topic, folder, monkeypatch, caplog):
    topic = make_topic(partitions=1)
    control = connectors.control_topic(topic)
    config = {**connectors.CONTROL_CONFIG, "compression.type": REFUSED}
    monkeypatch.setattr(connectors, "CONTROL_CONFIG", config)
    changes = connectors.apply([topic], folder=folder)
    assert (
        f"topic {control}: created, unlimited retention, without compression.type, which the broker refuses" in changes
    )
    assert settings_of(control)["retention.ms"] == "-1"
    wait_until_landed(topic, send(topic, [b"lands"]))
    caplog.clear()
    # For the existing topic there is nothing to change, and no error.
    assert connectors.apply([topic], folder=folder) == []
    assert f"the broker refuses compression.type={REFUSED}" in caplog.text


def test_a_refused_setting_that_prevents_loss_is_an_error(make_topic, folder, monkeypatch):
    topic = make_topic(partitions=1)
    config = {**connectors.CONTROL_CONFIG, "retention.ms": "-7"}
    monkeypatch.setattr(connectors, "CONTROL_CONFIG", config)
    with pytest.raises(
        SettingsRefused, match=rf"{connectors.control_topic(topic)}: the broker refuses .*retention.ms=-7"
    ):
        connectors.apply([topic], folder=folder)
    assert connectors.Connect().config(connector_name(topic)) is None


def test_one_refused_topic_does_not_prevent_the_creation_of_others(services, monkeypatch):
    name = f"refused.{uuid.uuid4().hex[:8]}"
    fine = Topic(f"{name}.fine", Order, key="number", partitions=1, retention=timedelta(days=1))
    refused = Topic(f"{name}.not", Order, key="number", partitions=1, retention=timedelta(days=1))
    monkeypatch.setattr(Topic, "dead_letter_config", lambda _: {"message.timestamp.type": REFUSED})
    monkeypatch.setattr(
        Topic,
        "kafka_config",
        lambda topic: {"max.message.bytes": "-5"} if topic is refused else {"retention.ms": "1000"},
    )
    with pytest.raises(SettingsRefused, match=rf"topic {refused.name}: the broker refuses max.message.bytes=-5"):
        create_topics([refused, fine])
    assert settings_of(fine.name)["retention.ms"] == "1000"
    assert settings_of(fine.dead_letter_name)["message.timestamp.type"] == "CreateTime"
    assert topics.OPTIONAL_SETTINGS == ("compression.type", "message.timestamp.type")
