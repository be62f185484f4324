"""A topic that cannot work is refused when it is declared; settings of topics in Kafka; the registry."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from include.streams.contracts import Contract, Registry, Topic
from include.streams.contracts.types import Identifier
from tests.unit.contracts.orders import ORDERS, ORDERS_V2, OrderV1, OrderV2


def topic(**changes: Any) -> Topic:
    fields: dict[str, Any] = {
        "name": "orders",
        "contract": OrderV1,
        "key": "order_id",
        "partitions": 1,
        "retention": timedelta(days=1),
    }
    return Topic(**{**fields, **changes})


class Colour(StrEnum):
    red = "red"


class Base(Contract):
    @property
    def event_id(self) -> str:
        return "derived"


class WithoutEventId(Contract):
    version: Literal[1]
    order_id: Identifier


class WithoutVersion(Base):
    order_id: Identifier


class DefaultVersion(Base):
    version: Literal[1] = 1
    order_id: Identifier


class TwoVersions(Base):
    version: Literal[1, 2]
    order_id: Identifier


class PlainVersion(Base):
    version: int
    order_id: Identifier


class Lax(Base):
    model_config = ConfigDict(strict=False)
    version: Literal[1]
    order_id: Identifier


class Open(Base):
    model_config = ConfigDict(extra="ignore")
    version: Literal[1]
    order_id: Identifier


class Keys(Base):
    version: Literal[1]
    order_id: Identifier
    maybe: Identifier | None
    late: Identifier = "x"
    colour: Colour
    price: float
    flag: bool


class NoContract(BaseModel):
    version: Literal[1]
    order_id: Identifier


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": ""}, "not legal in Kafka"),
        ({"name": "orders "}, "not legal in Kafka"),
        ({"name": "orders\n"}, "not legal in Kafka"),
        ({"name": "órders"}, "not legal in Kafka"),
        ({"name": "."}, "not legal in Kafka"),
        ({"name": ".."}, "not legal in Kafka"),
        ({"name": "x" * 246}, "longer than 249"),
        ({"name": "orders.dlq"}, "dead-letter"),
        ({"name": "orders.v2"}, "has version 1"),
        ({"contract": NoContract}, "does not inherit from Contract"),
        ({"contract": WithoutEventId}, "does not define the property event_id"),
        ({"event_time": "order_id"}, "is not a required time"),
        ({"event_time": "nothing"}, "is not a required time"),
        ({"contract": WithoutVersion}, "version: Literal"),
        ({"contract": DefaultVersion}, "version: Literal"),
        ({"contract": TwoVersions}, "version: Literal"),
        ({"contract": PlainVersion}, "version: Literal"),
        ({"contract": Lax}, "strict=False; it must stay True"),
        ({"contract": Open}, "extra='ignore'; it must stay 'forbid'"),
        ({"key": "customer"}, "OrderV1 has no field 'customer'"),
        ({"contract": Keys, "key": "maybe"}, "required str or int"),
        ({"contract": Keys, "key": "late"}, "required str or int"),
        ({"contract": Keys, "key": "colour"}, "required str or int"),
        ({"contract": Keys, "key": "price"}, "required str or int"),
        ({"contract": Keys, "key": "flag"}, "required str or int"),
        ({"partitions": 0}, "at least 1"),
        ({"retention": timedelta(0)}, "at least a minute"),
        ({"retention": timedelta(seconds=-1)}, "at least a minute"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 2**30}, "max_bytes"),
    ],
)
def test_a_topic_that_cannot_work_is_refused_with_its_name(changes: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=r"^topic ") as caught:
        topic(**changes)
    assert complaint in str(caught.value)


def test_a_topic_knows_its_version_and_dead_letter_topic():
    assert (ORDERS.version, ORDERS.dead_letter_name) == (1, "orders.dlq")
    assert (ORDERS_V2.version, ORDERS_V2.dead_letter_name) == (2, "orders.v2.dlq")


def test_retention_and_compaction_become_settings_of_kafka():
    assert topic().kafka_config() == {
        "cleanup.policy": "delete",
        "retention.ms": "86400000",
        "max.message.bytes": "1048588",
    }
    assert topic(retention=None).kafka_config()["retention.ms"] == "-1"
    assert topic(retention=None).kafka_config()["cleanup.policy"] == "delete"
    assert topic(compacted=True).kafka_config()["cleanup.policy"] == "compact,delete"
    assert topic(compacted=True, retention=None).kafka_config()["cleanup.policy"] == "compact"


def test_the_broker_accepts_messages_that_are_too_large_for_the_contract():
    for size in (100, 64 * 1024, 1_048_588, 5_000_000):
        assert int(topic(max_bytes=size).kafka_config()["max.message.bytes"]) > size


def test_the_dead_letter_topic_accepts_the_largest_message_with_headers():
    of_topic, of_dead_letters = topic().kafka_config(), topic(compacted=True).dead_letter_config()
    assert int(of_dead_letters["max.message.bytes"]) >= int(of_topic["max.message.bytes"]) + 32 * 1024
    assert int(of_dead_letters["retention.ms"]) >= timedelta(days=90) / timedelta(milliseconds=1)
    assert of_dead_letters["cleanup.policy"] == "delete"
    assert of_dead_letters["message.timestamp.type"] == "LogAppendTime"


def test_a_registry_finds_topics_by_name():
    registry = Registry(ORDERS, ORDERS_V2)
    assert list(registry) == [ORDERS, ORDERS_V2]
    assert len(registry) == 2
    assert registry["orders.v2"] is ORDERS_V2
    assert "orders" in registry
    assert "other" not in registry
    with pytest.raises(KeyError, match=r"no topic 'other' in the registry; it has: orders, orders\.v2"):
        registry["other"]


@pytest.mark.parametrize("other", ["orders", "order_s"])
def test_names_that_collide_in_kafka_are_refused(other: str):
    first = topic(name=other.replace("_", "."))
    with pytest.raises(ValueError, match="collides"):
        Registry(first, Topic(other, OrderV2, key="order_id", partitions=1, retention=None))


@pytest.mark.parametrize("other", ["a.b", "a-b.coord", "a_b"])
def test_landed_topics_that_would_share_a_table_or_a_group_are_refused(other: str):
    first, second = (topic(name=name, landed=True) for name in ("a-b", other))
    with pytest.raises(ValueError, match=rf"'a-b' and '{other}' would share a table"):
        Registry(first, second)
    Registry(first, topic(name=other, landed=False))
