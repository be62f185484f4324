"""The rights in Kafka that the declarations lead to, and the command that prints them."""

from __future__ import annotations

import json
import shlex
from datetime import timedelta
from typing import Literal

import pytest

from include.streams import Consumer, Contract, LandingConsumer, Package, Project, Registry, Topic
from include.streams.__main__ import main
from include.streams.packages import Demo
from include.streams.rights import Part, Resource, rights


class Order(Contract):
    version: Literal[1]
    number: str

    @property
    def event_id(self) -> str:
        return self.number


def topic(name: str, **settings) -> Topic:
    return Topic(name, Order, key="number", partitions=1, retention=timedelta(days=1), **settings)


ORDERS, READINGS = topic("shop.orders"), topic("shop.readings", landed=True)
BOOK = Consumer(name="book", topics=(ORDERS,), effect="tests.unit.streams.test_rights:nothing")
LAND = LandingConsumer(name="land", topic=READINGS)
PROJECT = Project(
    Package(
        name="shop",
        topics=Registry(ORDERS, READINGS),
        consumers=(BOOK,),
        landing_consumers=(LAND,),
        demo=Demo(kafka_connections={"kafka_board": {"group.id": "board"}}),
    )
)
BARE = Project(Package(name="shop", topics=Registry(ORDERS), consumers=(BOOK,)))


def of(project: Project, part: Part, resource: Resource) -> dict[str, set[str]]:
    return {
        right.name: set(right.operations)
        for right in rights(project)
        if (right.part, right.resource) == (part, resource)
    }


def test_tasks_reach_every_declared_topic_and_nothing_else():
    topics = of(PROJECT, Part.tasks, Resource.topic)
    assert set(topics) == {
        "shop.orders",
        "shop.orders.dlq",
        "shop.readings",
        "shop.readings.dlq",
        "landing-shop-readings.control",
    }
    assert topics["shop.orders.dlq"] >= {"Read", "Write", "Describe", "DescribeConfigs", "Create"}
    assert "Write" not in topics["landing-shop-readings.control"]
    assert not {operation for operations in topics.values() for operation in operations} & {"Delete", "All"}
    groups = of(PROJECT, Part.tasks, Resource.group)
    assert {name for name, operations in groups.items() if "Read" in operations} == {"book", "land", "board"}


def test_the_triggerer_commits_offsets_only_for_a_stock_part():
    assert of(BARE, Part.triggerer, Resource.topic) == {"shop.orders": {"Read", "Describe"}}
    assert of(BARE, Part.triggerer, Resource.group) == {"book": {"Describe"}}
    assert "Read" in of(PROJECT, Part.triggerer, Resource.group)["board"]


def test_connect_reads_landed_topics_only():
    assert of(BARE, Part.connect, Resource.topic) == {}
    topics = of(PROJECT, Part.connect, Resource.topic)
    assert topics["shop.readings"] == {"Read", "Describe"}
    assert "shop.orders" not in topics


@pytest.mark.parametrize("part", [Part.pages, Part.producers])
def test_no_other_part_creates_anything(part: Part):
    operations = {operation for right in rights(PROJECT) if right.part is part for operation in right.operations}
    assert operations <= {"Read", "Write", "Describe"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["rights", "--project", f"{__name__}:PROJECT", *arguments])
    return code, capsys.readouterr().out


def test_the_command_prints_commands_for_the_parts_that_are_named(capsys):
    code, out = run(capsys, "connect=User:CN=connect worker", "producers=User:meters")
    assert code == 0
    words = [shlex.split(line) for line in out.splitlines()]
    assert {line[line.index("--allow-principal") + 1] for line in words} == {"User:CN=connect worker", "User:meters"}
    prefixed = [line[line.index("--group") + 1] for line in words if "prefixed" in line]
    assert prefixed == ["cg-control-"]


def test_the_command_prints_json(capsys):
    code, out = run(capsys, "--json", "producers=User:meters")
    assert code == 0
    rows = json.loads(out)
    assert {row["name"] for row in rows} == {"shop.orders", "shop.readings"}
    assert {row["principal"] for row in rows} == {"User:meters"}


@pytest.mark.parametrize("argument", ["nobody=User:a", "tasks", "tasks=Group:a"])
def test_a_wrong_principal_is_refused(capsys, argument: str):
    assert main(["rights", "--project", f"{__name__}:PROJECT", argument]) != 0
    assert "is not PART=User:NAME" in capsys.readouterr().err
