"""A project consists of packages that do not know each other."""

from __future__ import annotations

from datetime import timedelta

import pytest

from include.streams import (
    Consumer,
    Contract,
    Demo,
    KeyedAsset,
    KindWithRunbook,
    LandingConsumer,
    Package,
    Project,
    Registry,
    Topic,
    services,
)
from include.streams.contracts.repairs import Repairs
from tests.unit.contracts.orders import OrderV1

ASSETS = "tests.unit.streams.test_packages"
WEEK = timedelta(days=7)
kept: list[timedelta | None] = []
PAID = object()
REPAIRS = Repairs()


def topic(name: str, *, landed: bool = False, contract: type[Contract] = OrderV1) -> Topic:
    return Topic(name=name, contract=contract, key="order_id", partitions=1, retention=WEEK, landed=landed)


def consumer(name: str, *topics: Topic) -> Consumer:
    return Consumer(name=name, topics=topics, effect=f"{ASSETS}:effect")


ORDERS, RETURNS = topic("orders"), topic("returns")
LANDED = topic("scans", landed=True)
BOOK = consumer("book", ORDERS)
COUNT = LandingConsumer(name="count", topic=LANDED)
SHOP = Package(name="shop", topics=Registry(ORDERS), consumers=(BOOK,), repairs=f"{ASSETS}:REPAIRS")
STORE = Package(
    name="store",
    topics=Registry(RETURNS, LANDED),
    landing_consumers=(COUNT,),
    tables=("store.counts",),
    nightly=("store.retention:remove_photos",),
)


def rules(inbox_kept: timedelta | None) -> list:
    kept.append(inbox_kept)
    return []


def test_a_project_has_what_its_packages_declare():
    project = Project(SHOP, STORE)
    assert [t.name for t in project.topics] == ["orders", "returns", "scans"]
    assert (project.consumers, project.landing_consumers) == ((BOOK,), (COUNT,))
    assert project.landed_topics == ["scans"]
    assert project.tables == ("clean.scans", "store.counts")
    assert project.nightly == {"remove_photos": "store.retention:remove_photos"}


def test_a_project_without_packages_is_empty():
    project = Project()
    assert (list(project.topics), project.consumers, project.tables, project.nightly) == ([], (), (), {})


def test_prepare_gets_the_topics_of_all_packages(monkeypatch):
    prepared: list[str] = []
    monkeypatch.setattr(services, "prepare", lambda topics: prepared.extend(topic.name for topic in topics) or ["done"])
    assert Project(SHOP, STORE).prepare() == ["done"]
    assert prepared == ["orders", "returns", "scans"]


def test_repairs_belong_to_the_package_of_the_topic():
    project = Project(SHOP, STORE)
    assert project.repairs_of("orders") is REPAIRS
    assert project.repairs_of("returns").of(RETURNS) == {}
    with pytest.raises(LookupError, match=r"no package of include/project\.py declares the topic 'refunds'"):
        project.repairs_of("refunds")


class Own(KindWithRunbook):
    shop_closed = "shop_closed", "shops.md#closed"


class Clash(KindWithRunbook):
    lag = "lag", "shops.md"


def test_alarm_kinds_are_those_of_the_library_and_of_all_packages():
    kinds = Project(Package(name="shop", topics=Registry(), alarm_kinds=Own), STORE).alarm_kinds
    assert kinds["shop_closed"].runbook == "docs/runbooks/shops.md#closed"
    assert kinds["lag"].runbook == "docs/runbooks/lag-grows.md"
    assert kinds.keys() - Project(STORE).alarm_kinds.keys() == {"shop_closed"}


@pytest.mark.parametrize(
    ("packages", "error"),
    [
        ((SHOP, SHOP), "two declarations of the package shop"),
        ((SHOP, Package(name="other", topics=Registry(ORDERS))), "two declarations of the topic orders"),
        (
            (SHOP, Package(name="other", topics=Registry(RETURNS), consumers=(consumer("book", RETURNS),))),
            "two declarations of the consumer book",
        ),
        # A consumer of the event lane and one of the standard lane would share a consumer group.
        (
            (STORE, Package(name="other", topics=Registry(ORDERS), consumers=(consumer("count", ORDERS),))),
            "two declarations of the consumer count",
        ),
        (
            (Package(name="other", topics=Registry(ORDERS), consumers=(consumer("book", ORDERS, RETURNS),)),),
            "consumer book reads returns, which no package of include/project\\.py declares",
        ),
        (
            (Package(name="other", topics=Registry(ORDERS), landing_consumers=(COUNT,)),),
            "consumer count reads scans, which no package of include/project\\.py declares",
        ),
        ((Package(name="shop", topics=Registry(), alarm_kinds=Clash),), "two declarations of the kind of alarm lag"),
        (
            (STORE, Package(name="other", topics=Registry(), nightly=("other.retention:remove_photos",))),
            "two declarations of the nightly function remove_photos",
        ),
        (
            (
                Package(name="one", topics=Registry(), demo=Demo(feeds={"prices": ("one.prices",)})),
                Package(name="two", topics=Registry(), demo=Demo(kafka_connections={"prices": {}})),
            ),
            "two declarations of the connection prices",
        ),
    ],
)
def test_declarations_that_contradict_each_other_are_refused(packages, error):
    with pytest.raises(ValueError, match=error):
        Project(*packages)


def test_two_topics_whose_names_collide_in_kafka_are_refused():
    with pytest.raises(ValueError, match="collides"):
        Project(SHOP, Package(name="other", topics=Registry(topic("orders.dlq2"), topic("orders_dlq2"))))


def test_a_packages_retention_rules_get_the_time_that_inbox_rows_are_kept(monkeypatch):
    from include.streams.operations import retention

    pruned: list = []
    monkeypatch.setattr(retention, "prune", lambda wanted, *, seconds: pruned.extend(wanted) or {})
    project = Project(Package(name="shop", topics=Registry(ORDERS), retention=f"{ASSETS}:rules"))
    days = {"inbox_days": 480, "claims_days": 1, "outbox_days": 1, "alarms_days": 1}
    project.prune(days, seconds=1)
    project.prune({**days, "inbox_days": None}, seconds=1)
    assert kept == [timedelta(days=480), None]
    tables = {"inbox", "replays", "claims", "outbox", "alarms", "operations_audit"}
    tables |= {"consumer_samples", "landing_samples", "outcome_counts", "outcome_intervals"}
    assert {rule.table.name for rule in pruned} == tables


def test_a_keyed_asset_gets_its_keys_from_the_named_function():
    keyed = KeyedAsset(asset=f"{ASSETS}:PAID", dag_id="settle", keys=f"{ASSETS}:unsettled")
    assert keyed.name == "paid"
    assert keyed.load_asset() is PAID
    assert keyed.keys_to_emit_again() == ["settle-1"]


def unsettled(dag_id: str) -> list[str]:
    return [f"{dag_id}-1"]


def test_the_stack_gets_the_connections_and_feeds_of_all_packages():
    demo = Demo(kafka_connections={"kafka_board": {"group.id": "board"}}, feeds={"prices": ("shop.prices", "serve")})
    project = Project(Package(name="shop", topics=Registry(), demo=demo), STORE)
    assert project.kafka_connections == {"kafka_board": {"group.id": "board"}}
    assert project.feeds == {"prices": ["shop.prices", "serve"]}
