"""Services are queried in parallel with a time limit, and an unavailable service hides no other."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from include.streams import Consumer, LandingConsumer, Package, Project, Registry, Topic
from include.streams.overview import gathering
from include.streams.overview.gathering import gather
from tests.unit.contracts.orders import OrderV1

WEEK = timedelta(days=7)
ORDERS, RETURNS = (Topic(name, OrderV1, key="order_id", partitions=1, retention=WEEK) for name in ("orders", "returns"))
SCANS = Topic("scans", OrderV1, key="order_id", partitions=1, retention=WEEK, landed=True)
BOOK = Consumer(name="book", topics=(ORDERS, RETURNS), effect="a:b")
COUNT = LandingConsumer(name="count", topic=SCANS)
PROJECT = Project(
    Package(
        name="shop", topics=Registry(ORDERS, RETURNS, SCANS), consumers=(BOOK,), landing_consumers=(COUNT,)
    )
)  # fmt: skip


def test_answers_and_problems_are_separated():
    never = threading.Event()

    def fail() -> None:
        raise ValueError("first line\nsecond")

    parts = {"a": ("one", lambda: 1), "b": ("two", fail), "c": ("three", never.wait), "d": ("two", fail)}
    began = time.monotonic()
    answers, problems = gathering._ask(parts, seconds=0.2)
    assert time.monotonic() - began < 2
    assert answers == {"a": 1}
    assert problems == [
        {"service": "two", "text": "first line second"},
        {"service": "three", "text": "no answer within 0 s"},
    ]
    never.set()


@pytest.fixture
def away(monkeypatch) -> None:
    """No service answers."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("away")

    for name in ("_outcomes", "_counts", "_alarms", "_dags", "_status", "_tables", "_connectors", "_not_landed"):
        monkeypatch.setattr(gathering, name, fail)
    monkeypatch.setattr(gathering, "_import_clients", lambda is_landing: None)


@pytest.mark.usefixtures("away")
def test_declarations_are_shown_when_all_services_are_away():
    found = gather(PROJECT)
    assert [consumer["name"] for consumer in found["consumers"]] == ["book", "count"]
    assert [consumer["lane"] for consumer in found["consumers"]] == ["event", "standard"]
    assert [topic["lag"] for topic in found["consumers"][0]["topics"]] == [None, None]
    assert (found["alarms"], found["dags"], found["landed"][0]["rows"]) == (None, None, None)
    services = [problem["service"] for problem in found["problems"]]
    assert services == [
        "operational database", "Airflow", "Kafka (kafka_default)", "landing tables", "Kafka Connect",
    ]  # fmt: skip


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize(
    ("asked", "consumers", "landed"),
    [
        ({"topic": "orders"}, ["book"], []),
        ({"topic": "scans"}, ["count"], ["scans"]),
        ({"consumer": "book"}, ["book"], []),
        ({"consumer": "count"}, ["count"], ["scans"]),
        ({"consumer": "book", "topic": "returns"}, ["book"], []),
    ],
)
def test_a_topic_or_a_consumer_can_be_selected(asked, consumers, landed):
    found = gather(PROJECT, **asked)
    assert [consumer["name"] for consumer in found["consumers"]] == consumers
    assert [topic["topic"] for topic in found["landed"]] == landed


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"topic": "order"}, r"no topic 'order' in include/project\.py; it has: orders, returns, scans"),
        ({"consumer": "b"}, r"no consumer 'b' in include/project\.py; it has: book, count"),
        ({"consumer": "book", "topic": "scans"}, "consumer book does not read scans; it reads orders, returns"),
    ],
)
def test_an_undeclared_name_is_an_error(asked, text):
    with pytest.raises(LookupError, match=text):
        gather(PROJECT, **asked)


@pytest.mark.usefixtures("away")
def test_alarms_of_other_sources_are_left_out(monkeypatch):
    sources = ["book", "orders", "landing-scans", "raw.scans", "count", "outbox"]
    other: Any = {"kind": "k", "key": "", "message": "", "open_seconds": 1.0, "runbook": ""}
    alarms = [{"source": source, **other} for source in sources]
    monkeypatch.setattr(gathering, "_alarms", lambda: alarms)
    shown = lambda **asked: [alarm["source"] for alarm in gather(PROJECT, **asked)["alarms"] or ()]  # noqa: E731
    assert shown() == sources
    assert shown(consumer="book") == ["book", "orders"]
    assert shown(topic="scans") == ["landing-scans", "raw.scans", "count"]
