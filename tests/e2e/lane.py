"""A lane seen from outside: Kafka through the tests' own clients, effects and claims in the database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
from confluent_kafka import Consumer, Message, TopicPartition

from include.streams.contracts import Contract, Topic
from tests.clients import producer_to, reader_at
from tests.e2e.airflow import wait_for

Coordinates = tuple[str, int, int]  # topic, partition, offset


def of(topic: Topic, event: Contract) -> tuple[Topic, bytes, bytes]:
    """A message, as `Lane.send` takes it."""
    return topic, *topic.serialize(event)


class Lane:
    """The stack's topics and operational database, with the changes since the test began.

    Args:
        endpoints: The stack's endpoints.
        consumer: The name of the consumer.
        topics: The topics to read.
    """

    def __init__(self, endpoints: dict[str, Any], consumer: str, topics: Iterable[Topic]) -> None:
        self.consumer = consumer
        self._config = {**endpoints["kafka"]["client_config"], "log_level": 2}
        self._databases = endpoints["databases"]
        self._since = {name: self._ends(name) for topic in topics for name in (topic.name, topic.dead_letter_name)}

    def send(self, *messages: tuple[Topic, bytes, bytes | None]) -> list[Coordinates]:
        """Produce the messages; returns their (topic, partition, offset)."""
        sent: dict[int, Coordinates] = {}
        producer = producer_to(self._config, *{topic.name for topic, *_ in messages})
        for n, (topic, key, value) in enumerate(messages):

            def delivered(error: Any, record: Message, n: int = n) -> None:
                assert error is None, error
                sent[n] = (str(record.topic()), record.partition() or 0, record.offset() or 0)

            producer.produce(topic.name, key=key, value=value, on_delivery=delivered)
        producer.flush(30)
        return [sent[n] for n in range(len(messages))]

    def query(self, statement: str, *values: Any, database: str = "operations_db") -> list[tuple]:
        with psycopg.connect(self._databases[database], connect_timeout=5) as connection:
            return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]

    def execute(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self._databases["operations_db"], connect_timeout=5) as connection:
            connection.execute(statement, values)  # type: ignore[arg-type]

    def inbox(self, sent: list[Coordinates]) -> dict[Coordinates, tuple[str, str]]:
        """{(topic, partition, offset): (outcome, run id)} of the messages that have an inbox row."""
        statement = 'select topic, partition, "offset", outcome, run_id from inbox where consumer = %s'
        rows = {tuple(row[:3]): (row[3], row[4]) for row in self.query(statement, self.consumer)}
        return {where: rows[where] for where in sent if where in rows}

    def wait_for_inbox(self, sent: list[Coordinates], seconds: float = 30) -> dict[Coordinates, tuple[str, str]]:
        missing = f"{len(sent)} messages have an inbox row"
        return wait_for(
            lambda: (outcomes := self.inbox(sent)) and len(outcomes) == len(sent) and outcomes, seconds, missing
        )

    def ranges(self, run_id: str) -> list[tuple]:
        statement = """
            select topic, topic_id, partition, start_offset, end_offset, claim_id, claimed_at
            from claims join claim_ranges on claim_id = id where consumer = %s and run_id = %s order by 1, 3
        """
        return self.query(statement, self.consumer, run_id)

    def open_claims(self) -> int:
        statement = "select count(*) from claims where consumer = %s and closed_at is null"
        return self.query(statement, self.consumer)[0][0]

    def records(self, name: str) -> list[Message]:
        """Every record of the topic since the test began."""
        starts = self._since[name]
        expected = sum(self._ends(name)) - sum(starts)
        reader = reader_at(self._config, *(TopicPartition(name, n, offset) for n, offset in enumerate(starts)))
        records = reader.consume(expected, timeout=20) if expected else []
        reader.close()
        assert len(records) == expected
        assert all(record.error() is None for record in records)
        return records

    def _ends(self, name: str) -> list[int]:
        reader = Consumer({**self._config, "group.id": "independent"})
        partitions = sorted(reader.list_topics(name, timeout=10).topics[name].partitions)
        ends = [reader.get_watermark_offsets(TopicPartition(name, n), timeout=10)[1] for n in partitions]
        reader.close()
        return ends
