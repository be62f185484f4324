"""A small package of a shop for the tests of the declaration checks, which leave out parts of a copy of it."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Asset

from include.streams import Consumer, LandingConsumer, Package, Project, Registry, Shape, Topic, lag_watcher
from tests.unit.contracts.orders import OrderV1

WEEK = timedelta(days=7)
ORDERS, RETURNS = (Topic(name, OrderV1, key="order_id", partitions=1, retention=WEEK) for name in ("orders", "returns"))
SCANS = Topic("scans", OrderV1, key="order_id", partitions=1, retention=WEEK, landed=True)


def book(connection, message): ...


def prepare(message): ...


BOOK = Consumer(name="book", topics=(ORDERS,), effect="tests.dags.shop:book")
REFUND = Consumer(name="refund", topics=(RETURNS,), effect="tests.dags.shop:book", shape=Shape.per_message)
COUNT = LandingConsumer(name="count", topic=SCANS)
SHOP = Package(
    name="shop", topics=Registry(ORDERS, RETURNS, SCANS), consumers=(BOOK, REFUND), landing_consumers=(COUNT,)
)
PROJECT = Project(SHOP)

ORDERS_WAITING = Asset("orders_waiting", watchers=[lag_watcher(BOOK)])
RETURNS_WAITING = Asset("returns_waiting", watchers=[lag_watcher(REFUND)])
REFUNDS = Asset("refunds")
