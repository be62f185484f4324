"""A consumer's lane on real services, for the tests of a topic: send messages, do what its Dag does, see the result.

Each lane has a topic and a consumer of its own, which are copies under other names.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka.admin import AdminClient
from sqlalchemy import text

from include.streams import Consumer, LandingConsumer, Shape, Topic
from include.streams.kafka import tasks
from include.streams.kafka.connection import admin_config, client_config, producer_config
from include.streams.kafka.sending import Value
from include.streams.kafka.topics import create_topics
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from tests.clients import producer_to
from tests.integration.kafka.conftest import open_claims, read_all, wait_for_topics


def copy_of(topic: Topic, **changes: Any) -> Topic:
    """The topic under a name of its own, created on the broker with its dead-letter topic."""
    found = dataclasses.replace(topic, name=f"{topic.name}.{uuid.uuid4().hex[:8]}-test", partitions=1, **changes)
    create_topics([found])
    wait_for_topics(AdminClient(admin_config(client_config())), found.name, found.dead_letter_name)
    return found


def send(topic: Topic, messages: Sequence[Value]) -> None:
    producer = producer_to(producer_config(client_config()), topic.name)
    for message in messages:
        producer.produce(topic.name, message.data, key=message.key, headers=list(message.headers))
    assert producer.flush(30) == 0


def letters(topic: Topic) -> Counter[str]:
    """{reason: how many} of the topic's dead letters."""
    return Counter(dict(letter.headers())["dlq.reason"].decode() for letter in read_all(topic.dead_letter_name))


class EventLane:
    """A consumer of the event lane. The test needs the fixture `services`."""

    def __init__(self, consumer: Consumer) -> None:
        upgrade()
        self.topics = tuple(copy_of(topic) for topic in consumer.topics)
        name = f"{consumer.name}-{uuid.uuid4().hex[:8]}"
        self.consumer = dataclasses.replace(consumer, name=name, topics=self.topics)

    def send(self, *messages: Value) -> None:
        send(self.topics[0], messages)

    def run(self, run_id: str = "run") -> None:
        """All tasks of a run, or of the runs of all keys."""
        if self.consumer.shape is Shape.chunked:
            for chunk in tasks.claim_messages(self.consumer, run_id):
                tasks.handle_chunk(self.consumer, chunk, run_id)
        else:
            for key in tasks.claim_partition_keys(self.consumer, run_id):
                tasks.handle_message(self.consumer, key, f"{run_id} {key}")
        assert open_claims(self.consumer) == 0

    def outcomes(self) -> dict[str, int]:
        query = text("select outcome, count(*) from inbox where consumer = :name group by 1")
        with begin() as connection:
            return dict(connection.execute(query, {"name": self.consumer.name}).tuples().all())


class StandardLane:
    """A consumer of a landing table. The test needs the fixture `landing_services`."""

    def __init__(self, consumer: LandingConsumer) -> None:
        from include.streams.landing.tables import create_landing_table

        upgrade()
        self.topic = copy_of(consumer.topic)
        create_landing_table(self.topic)
        name = f"{consumer.name}-{uuid.uuid4().hex[:8]}"
        self.consumer = dataclasses.replace(consumer, name=name, topic=self.topic, landing_grace=timedelta())
        self._landed = 0

    def send(self, *messages: Value) -> None:
        """Send messages, and append a data file as the sink does."""
        import pyarrow as pa

        from include.streams.contracts.topics import HEADERS_LANDED, header_column
        from include.streams.landing.tables import headers_of, load_landing_table

        send(self.topic, messages)
        table, size = load_landing_table(self.topic), len(messages)
        columns: dict[str, Any] = {
            "topic": [self.topic.name] * size,
            "partition": [0] * size,
            "offset": list(range(self._landed, self._landed + size)),
            "timestamp": [datetime.now(UTC)] * size,
            "value": [None if m.data is None else m.data.decode("utf-8", "replace") for m in messages],
        }
        for name in headers_of(table):
            columns[header_column(name)] = [dict(message.headers).get(name) for message in messages]
        if HEADERS_LANDED in table.schema().column_names:
            columns[HEADERS_LANDED] = [",".join(self.topic.headers)] * size
        table.append(pa.table(columns, schema=table.schema().as_arrow()))
        self._landed += size

    def run(self, run_id: str = "run") -> Any:
        """All tasks of a run, without those of the consumer's own aggregates; returns the run's summary."""
        from include.streams import landing_tasks

        landing_tasks.repair_gaps(self.consumer, run_id)
        units = landing_tasks.plan(self.consumer, run_id)
        summary = landing_tasks.commit(
            self.consumer, [landing_tasks.validate(self.consumer, unit, run_id) for unit in units], run_id
        )
        landing_tasks.close(self.consumer, summary, run_id)
        assert open_claims(self.consumer) == 0
        return summary
