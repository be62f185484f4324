"""A shop for the tests of the whole stack, with its own topics, consumers and effects.

`python -m tests.e2e.shop` creates its topics, its table and its connector in the services of the environment. Its Dags
are in `tests/e2e/dags/`; Airflow gets them as a second bundle, beside those of the project.
"""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from include.streams import Consumer, Contract, LandingConsumer, Registry, Shape, Topic
from include.streams.contracts.types import Identifier, UtcTime

DAY = timedelta(days=1)


class Order(Contract):
    """A customer has ordered something."""

    version: Literal[1]
    number: Identifier
    customer: Identifier
    amount: Annotated[int, Field(ge=1, le=1_000)]

    event_id_sql: ClassVar[str | None] = "number"

    @property
    def event_id(self) -> str:
        return self.number


class Booked(Contract):
    """An order has been booked."""

    version: Literal[1]
    number: Identifier
    topic: Identifier
    partition: Annotated[int, Field(ge=0, le=1_000)]
    offset: Annotated[int, Field(ge=0, le=10**12)]

    @property
    def event_id(self) -> str:
        return self.number


class Scan(Contract):
    """The count of a scanner so far."""

    version: Literal[1]
    scan_id: Identifier
    scanned_at: UtcTime
    items: Annotated[int, Field(ge=0, le=10**9)]

    event_id_sql: ClassVar[str | None] = "scan_id"

    @property
    def event_id(self) -> str:
        return self.scan_id


ORDERS = Topic("e2e.orders", Order, key="customer", partitions=4, retention=DAY)
RETURNS = Topic("e2e.returns", Order, key="customer", partitions=2, retention=DAY)
PARCELS = Topic("e2e.parcels", Order, key="number", partitions=2, retention=DAY)
BOOKED = Topic("e2e.booked", Booked, key="number", partitions=2, retention=DAY)
SCANS = Topic("e2e.scans", Scan, key="scan_id", partitions=2, retention=DAY, landed=True, event_time="scanned_at")
TOPICS = Registry(ORDERS, RETURNS, PARCELS, BOOKED, SCANS)

BOOK_ORDERS = Consumer(name="e2e_book_orders", topics=(ORDERS, RETURNS), effect="tests.e2e.shop:book")
PACK_PARCELS = Consumer(
    name="e2e_pack_parcels",
    topics=(PARCELS,),
    shape=Shape.per_message,
    effect="tests.e2e.shop:book",
    max_messages_per_claim=200,
    chunk_size=200,
)
COUNT_SCANS = LandingConsumer(name="e2e_count_scans", topic=SCANS, suite="tests.e2e.shop:scans")

# Without a unique key, so that a repeated effect is found.
TABLE = """
create table if not exists shop_effects
    (consumer text, topic text, "partition" int, "offset" bigint, number text, run_id text)
"""


def book(connection: Any, message: Any) -> None:
    """Write a row, and a message about it."""
    from sqlalchemy import text

    from include.streams import outbox

    consumer = PACK_PARCELS if message.topic == PARCELS.name else BOOK_ORDERS
    row = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    number = message.event.number
    statement = 'insert into shop_effects (consumer, topic, "partition", "offset", number) values (:c, :t, :p, :o, :n)'
    values = {"c": consumer.name, "t": message.topic, "p": message.partition, "o": message.offset, "n": number}
    connection.execute(text(statement), values)
    event = Booked(version=1, number=number, **row)
    outbox.add_message(connection, consumer=consumer.name, topic=BOOKED, event=event)


def scans() -> Any:
    """The suite of the scans' clean table: scanners that count too much stop a run."""
    from include.streams.validators.rules import Measure, SetSuite

    return SetSuite(
        name="scans",
        description="What scanners have counted.",
        columns=(*Scan.model_fields, "event_id", "kafka_offset", "kafka_timestamp"),
        queries=("select max(items) as most_items from run",),
        measures=(Measure("most_items", "items of a scan", maximum=1_000_000),),
    )


def prepare() -> None:
    """Create the topics, tables and connector of the Dags. Safe to repeat."""
    from sqlalchemy import text

    from include.streams.kafka.topics import create_topics
    from include.streams.landing import connectors
    from include.streams.operations.database import begin

    create_topics(TOPICS)
    with begin() as connection:
        connection.execute(text(TABLE))
    with tempfile.TemporaryDirectory() as folder:
        # A test waits for each commit of the sink.
        settings = json.loads((connectors.FOLDER / connectors.TEMPLATE).read_text())
        settings |= {"iceberg.control.commit.interval-ms": "2000", "iceberg.control.commit.timeout-ms": "1000"}
        (Path(folder) / connectors.TEMPLATE).write_text(json.dumps(settings))
        connectors.apply(TOPICS, folder=Path(folder))


if __name__ == "__main__":
    prepare()
