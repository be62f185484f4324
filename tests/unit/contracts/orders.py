"""Contracts for tests of the library: a shop's orders in two versions, counters of its scanners, and complaints."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from include.streams.contracts import Contract, Registry, Topic
from include.streams.contracts.types import Day, Identifier, Line, Text, UtcTime, utc_text


class Kind(StrEnum):
    retail = "retail"
    trade = "trade"


class OrderV1(Contract):
    version: Literal[1]
    order_id: Identifier
    placed_at: UtcTime
    quantity: Annotated[int, Field(ge=1, le=1000)]
    price: Annotated[float, Field(ge=0, le=1e6)]
    kind: Kind
    ship_on: Day | None = None
    note: Annotated[Text, Field(max_length=50)] | None = None

    event_id_sql: ClassVar[str | None] = "order_id"

    @property
    def event_id(self) -> str:
        return self.order_id


class Position(Contract):
    article: Annotated[Line, Field(max_length=20)]
    quantity: Annotated[int, Field(ge=1, le=1000)]


class OrderV2(Contract):
    """Several positions instead of one quantity, so it is not compatible with version 1."""

    version: Literal[2]
    order_id: Identifier
    placed_at: UtcTime
    positions: Annotated[tuple[Position, ...], Field(min_length=1, max_length=10)]

    @property
    def event_id(self) -> str:
        return self.order_id


class Scan(Contract):
    """The value of a device's counter at one time: many small messages."""

    version: Literal[1]
    scanner_id: Annotated[str, Field(pattern=r"^S-[0-9]{6}$", max_length=8)]
    aisle: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=40)]
    scanned_at: UtcTime
    items_total: Annotated[int, Field(ge=0, le=10**12)]
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None

    event_id_sql: ClassVar[str | None] = "scanner_id || '@' || utc_text(scanned_at)"

    @property
    def event_id(self) -> str:
        return f"{self.scanner_id}@{utc_text(self.scanned_at)}"


class Complaint(Contract):
    """A text that a customer wrote."""

    version: Literal[1]
    complaint_id: Annotated[str, Field(pattern=r"^CO-[0-9]{8,12}$", max_length=15)]
    received_at: UtcTime
    kind: Kind
    aisle: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=40)] | None
    address: Annotated[Line, Field(max_length=200)] | None
    order_id: Identifier | None = None
    subject: Annotated[Line, Field(max_length=150)]
    text: Annotated[Text, Field(min_length=1, max_length=4000)]

    event_id_sql: ClassVar[str | None] = "complaint_id"

    @property
    def event_id(self) -> str:
        return self.complaint_id


ORDERS = Topic("orders", OrderV1, key="order_id", partitions=3, retention=timedelta(days=7), max_bytes=1000)
ORDERS_V2 = Topic("orders.v2", OrderV2, key="order_id", partitions=3, retention=timedelta(days=7))
SCANS = Topic(
    "scans", Scan, key="scanner_id", partitions=4, retention=timedelta(days=14), max_bytes=4 * 1024, landed=True,
    event_time="scanned_at",
)  # fmt: skip
COMPLAINTS = Topic(
    "complaints", Complaint, key="complaint_id", partitions=2, retention=timedelta(days=90), landed=True,
    event_time="received_at",
)  # fmt: skip
TOPICS = Registry(ORDERS, ORDERS_V2, SCANS, COMPLAINTS)


def order(**changes: Any) -> OrderV1:
    fields: dict[str, Any] = {
        "version": 1,
        "order_id": "o-1",
        "placed_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "quantity": 2,
        "price": 9.5,
        "kind": Kind.retail,
    }
    return OrderV1(**{**fields, **changes})


def message(*without: str, **changes: Any) -> bytes:
    """The value of a valid message, as another program would write it, with changed fields or without some."""
    fields = {
        "version": 1,
        "order_id": "o-1",
        "placed_at": "2026-01-02T03:04:05Z",
        "quantity": 2,
        "price": 9.5,
        "kind": "retail",
    }
    document = {name: value for name, value in {**fields, **changes}.items() if name not in without}
    return json.dumps(document).encode()
