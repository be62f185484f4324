"""A real broker and a real database: topics, consumers and effects for one test."""

import json
import os
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from sqlalchemy import text

from include.streams.contracts import Contract, Topic
from include.streams.kafka import tasks
from include.streams.kafka.connection import admin_config, client_config, consumer_config, producer_config
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.delivery import deliver_due
from include.streams.kafka.messages import Message, Rejected
from include.streams.operations.alarms import SENDER
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from tests.clients import producer_to, reader_at


class Order(Contract):
    version: Literal[1]
    number: str
    amount: int

    @property
    def event_id(self) -> str:
        return self.number


def order(number: object, amount: int = 1, **changes: object) -> bytes:
    return json.dumps({"version": 1, "number": str(number), "amount": amount, **changes}).encode()


def record_effect(connection, message: Message) -> None:
    """An effect without a unique key in its table, so that a second effect is visible.

    The amount -1 stands for a message that can never be handled, -2 for a message whose effect fails.
    """
    if message.event.amount == -1:
        raise Rejected("amount is -1")
    if message.event.amount == -2:
        raise RuntimeError("the effect fails")
    connection.execute(
        text("insert into test_effects values (:topic, :partition, :offset, :number)"),
        {
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "number": message.event.number,
        },
    )


@pytest.fixture(scope="session")
def operations(services) -> None:
    """The operational database, migrated, with a table for the tests' effects."""
    upgrade()
    with begin() as connection:
        connection.execute(
            text('create table if not exists test_effects (topic text, "partition" int, "offset" bigint, number text)')
        )


@pytest.fixture
def admin(services) -> AdminClient:
    return AdminClient(admin_config(client_config()))


@pytest.fixture
def make_topic(admin) -> Callable[..., Topic]:
    """Create a topic of orders (and its dead-letter topic) with a unique name."""

    def make(name: str | None = None, partitions: int = 3, config: dict[str, str] | None = None, **kwargs) -> Topic:
        topic = Topic(
            name or f"orders.{uuid.uuid4().hex[:8]}",
            Order,
            key="number",
            partitions=partitions,
            retention=timedelta(days=1),
            **kwargs,
        )
        new = [
            NewTopic(topic.name, partitions, 1, config={**topic.kafka_config(), **(config or {})}),
            NewTopic(topic.dead_letter_name, 1, 1, config=topic.dead_letter_config()),
        ]
        for future in admin.create_topics(new).values():
            future.result(30)
        wait_for_topics(admin, topic.name, topic.dead_letter_name)
        return topic

    return make


def wait_for_topics(admin: AdminClient, *names: str) -> None:
    for name in names:
        for _ in range(100):
            metadata = admin.list_topics(name, timeout=10).topics[name]
            partitions = metadata.partitions.values()
            if metadata.error is None and partitions and all(partition.leader >= 0 for partition in partitions):
                break


def cut_log(services, topic, partition: int, offset: int) -> None:
    """Remove the records from this offset on; each record is a separate batch."""
    folder = services.folder / "kafka" / "data" / f"{topic.name}-{partition}"
    (path,) = folder.glob("*.log")
    data, at = path.read_bytes(), 0
    while int.from_bytes(data[at : at + 8], "big") < offset:
        at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
    os.truncate(path, at)


@pytest.fixture
def cut(services, admin):
    """Cut logs, [(topic, partition, offset)], while the broker is stopped."""

    def cut_all(*places):
        services.stop("kafka")
        for place in places:
            cut_log(services, *place)
        # Without this file, the broker reads its logs again, as it does after a kill.
        (services.folder / "kafka" / "data" / ".kafka_cleanshutdown").unlink()
        services.start("kafka")
        wait_for_topics(admin, *{topic.name for topic, _, _ in places})

    return cut_all


@pytest.fixture
def make_consumer(operations) -> Callable[..., Consumer]:
    def make(*topics: Topic, name: str | None = None, **kwargs) -> Consumer:
        return Consumer(
            name=name or f"consumer-{uuid.uuid4().hex[:8]}",
            topics=topics,
            effect="tests.integration.kafka.conftest:record_effect",
            **{"max_messages_per_claim": 500, "chunk_size": 500, **kwargs},
        )

    return make


@pytest.fixture
def send(services) -> Callable[..., list[int]]:
    """Produce values to a topic; returns their offsets."""

    def produce(
        topic: Topic | str,
        *values: bytes | None,
        partition: int = 0,
        key: bytes | None = None,
        headers: list | None = None,
    ) -> list[int]:
        # A new client: an older client would not know partitions that were added since.
        name = topic if isinstance(topic, str) else topic.name
        producer = producer_to(producer_config(client_config()), name)
        offsets: list[int] = []

        def delivered(error, message) -> None:
            assert error is None, error
            offsets.append(message.offset())

        for value in values:
            producer.produce(name, value, key=key, partition=partition, headers=headers or [], on_delivery=delivered)
        producer.flush(30)
        assert len(offsets) == len(values)
        return offsets

    return produce


def whole_run(consumer: Consumer, run_id: str) -> None:
    """Run all tasks of a run: the claiming task, and a task for each chunk that it returns."""
    for chunk in tasks.claim_messages(consumer, run_id):
        tasks.handle_chunk(consumer, chunk, run_id)


def committed(admin: AdminClient, group: str, topic: Topic) -> dict[int, int]:
    """The group's committed offsets, requested by another client."""
    partitions = [TopicPartition(topic.name, n) for n in range(topic.partitions)]
    (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, partitions)]).values()
    return {tp.partition: tp.offset for tp in future.result(10).topic_partitions if tp.offset >= 0}


def effects(topic: Topic) -> list[tuple[int, int, str]]:
    """(partition, offset, number) of each effect, in order, from a separate session.

    A recreated topic has several effects of one offset. They are also sorted by number: without that, PostgreSQL
    returns them in any order, and a test fails sometimes.
    """
    with begin() as connection:
        rows = connection.execute(
            text('select "partition", "offset", number from test_effects where topic = :topic order by 1, 2, 3'),
            {"topic": topic.name},
        )
        return [tuple(row) for row in rows]


def numbers(topic: Topic) -> list[str]:
    return [number for _, _, number in effects(topic)]


def read_all(name: str, partition: int = 0) -> list:
    """All records of a partition, read by an independent consumer."""
    config = {**consumer_config(client_config(), "independent"), "enable.partition.eof": True}
    reader = reader_at(config, TopicPartition(name, partition, 0))
    records = []
    while (record := reader.poll(10)) is not None and record.error() is None:
        records.append(record)
    reader.close()
    return records


def open_claims(consumer: Consumer) -> int:
    with begin() as connection:
        query = text("select count(*) from claims where consumer = :name and closed_at is null")
        return connection.scalar(query, {"name": consumer.name}) or 0


def alarms(consumer: Consumer) -> dict[str, str]:
    """{kind: messages of its keys} of the open alarms."""
    query = "select kind, string_agg(message, '; ' order by id) from alarms where source = :name and closed_at is null"
    with begin() as connection:
        return dict(connection.execute(text(f"{query} group by kind"), {"name": consumer.name}).all())


def make_all_due(*consumers: Consumer) -> None:
    """Make the pending rows of these consumers and of alarms due now."""
    names = {"names": [*(consumer.name for consumer in consumers), SENDER]}
    with begin() as connection:
        # Rows of other tests must not reach the receivers of this test.
        others = "update outbox set state = 'skipped' where state = 'pending' and consumer <> all(:names)"
        connection.execute(text(others), names)
        connection.execute(text("update outbox set due_at = now() where state = 'pending'"))
        undefined = "undefined_since = undefined_since - interval '1 hour'"
        connection.execute(text(f"update outbox_routes set retry_at = now(), {undefined}"))


def deliver_now(*consumers: Consumer) -> int:
    """Deliver rows of these consumers and of alarms as the Dag `deliver_outbox` does, as if all were due."""
    make_all_due(*consumers)
    return deliver_due(consumers)
