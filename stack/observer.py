"""The state of a running project as others see it: Kafka's offsets, the operational database, Airflow's runs.

Consumers and what to show come from `include/project.py`; tables are found by their names.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from include.project import PROJECT
from stack.stack import Stack

DEAD_LETTERS = ".dlq"
REQUEST_SECONDS = 10
# Tasks that wait for a person's answer, the oldest first.
WAITING = """
    select subject, dag_id, run_id, task_id from hitl_detail join task_instance on task_instance.id = hitl_detail.ti_id
    where responded_at is null and state in ('deferred', 'awaiting_input') order by created_at
"""


@dataclass(frozen=True)
class Partition:
    topic: str
    number: int


@dataclass
class Snapshot:
    """Counts since the observer was created; `alarms`, `results` and `waiting` are the current content."""

    messages: dict[str, int] = field(default_factory=dict)  # topic -> arrived messages, also of dead-letter topics
    outcomes: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)  # (consumer, topic) -> outcome -> n
    lag: dict[str, int] = field(default_factory=dict)  # consumer -> messages not committed
    open_claims: dict[str, int] = field(default_factory=dict)
    runs: dict[str, dict[str, int]] = field(default_factory=dict)  # Dag -> state -> n
    results: dict[str, dict[str, int]] = field(default_factory=dict)  # title -> name -> number
    awaited: dict[str, int] = field(default_factory=dict)  # what must have happened -> how often it happened
    alarms: list[str] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(
        default_factory=list
    )  # (subject, path in Airflow) of what a person must answer

    def dead_letters(self, topic: str) -> int:
        return self.messages.get(topic + DEAD_LETTERS, 0)

    def unhandled(self, consumer: str, topic: str) -> int:
        """How many messages of the topic have no inbox row of the consumer."""
        return self.messages.get(topic, 0) - sum(self.outcomes.get((consumer, topic), {}).values())


class Observer:
    """Counts messages and runs since its creation; older ones do not belong to this demo."""

    def __init__(self, stack: Stack):
        from confluent_kafka.admin import AdminClient

        endpoints = stack.endpoints()
        self.consumers = {c.name: [topic.name for topic in c.topics] for c in PROJECT.consumers}
        self.landing_consumers = {c.name: [c.topic.name] for c in PROJECT.landing_consumers}
        self._databases = endpoints["databases"]
        self._client_config = endpoints["kafka"]["client_config"]
        self._admin = AdminClient({**self._client_config, "log_level": 0})
        self._start = self._ends()
        self._since = self._query("operations_db", "select now()")[0][0]

    def look(self) -> Snapshot:
        """Take a snapshot. Raises psycopg.Error or KafkaException while a service is unavailable."""
        ends = self._ends()
        snapshot = Snapshot()
        for partition, end in sorted(ends.items(), key=lambda item: (item[0].topic, item[0].number)):
            arrived = end - self._start.get(partition, 0)
            snapshot.messages[partition.topic] = snapshot.messages.get(partition.topic, 0) + arrived
        for consumer, topics in {**self.consumers, **self.landing_consumers}.items():
            snapshot.lag[consumer] = self._lag(consumer, topics, ends)
            for topic in topics:
                snapshot.outcomes[consumer, topic] = self._outcomes(consumer, topic, ends)
        claims = "select consumer, count(*) from claims where closed_at is null group by 1"
        snapshot.open_claims = dict(self._query("operations_db", claims))
        runs = "select dag_id, state, count(*) from dag_run where queued_at >= %s group by 1, 2 order by 1, 2"
        for dag, state, number in self._query("airflow_metadata", runs, self._since):
            snapshot.runs.setdefault(dag, {})[state] = number
        for demo in PROJECT.demos:
            for database, results in demo.results.items():
                for title, statement in results.items():
                    snapshot.results[title] = dict(self._query(database, statement))
            for name, statement in demo.awaited.items():
                snapshot.awaited[name] = self._query("operations_db", statement)[0][0]
        alarms = (
            "select concat_ws(' ', source, kind, nullif(key, '')) || ': ' || message from alarms "
            "where closed_at is null order by opened_at"
        )
        snapshot.alarms = [line for (line,) in self._query("operations_db", alarms)]
        snapshot.waiting = [
            (subject, f"dags/{dag}/runs/{quote(run, safe='')}/tasks/{task}/required_actions")
            for subject, dag, run, task in self._query("airflow_metadata", WAITING)
        ]
        return snapshot

    def _ends(self) -> dict[Partition, int]:
        """The log end of every partition of every topic that is not Kafka's own."""
        from confluent_kafka import TopicPartition
        from confluent_kafka.admin import OffsetSpec

        topics = self._admin.list_topics(timeout=REQUEST_SECONDS).topics
        wanted: dict[TopicPartition, OffsetSpec] = {
            TopicPartition(name, number): OffsetSpec.latest()  # type: ignore[misc]  # its stub says None
            for name, topic in topics.items()
            if not name.startswith("_")
            for number in topic.partitions
        }
        futures = self._admin.list_offsets(wanted, request_timeout=REQUEST_SECONDS) if wanted else {}
        return {Partition(p.topic, p.partition): future.result().offset for p, future in futures.items()}

    def _lag(self, group: str, topics: list[str], ends: dict[Partition, int]) -> int:
        from confluent_kafka import Consumer, TopicPartition

        asked = [TopicPartition(partition.topic, partition.number) for partition in ends if partition.topic in topics]
        # A consumer that does not subscribe joins no group. An AdminClient is not used: it crashes the process when the
        # broker answers NOT_COORDINATOR, as on the first start of a cluster (librdkafka issue 5040).
        consumer = Consumer({**self._client_config, "group.id": group, "enable.auto.commit": False, "log_level": 0})
        try:
            committed = {
                Partition(p.topic, p.partition): max(0, p.offset)
                for p in consumer.committed(asked, timeout=REQUEST_SECONDS)
            }
        finally:
            consumer.close()
        # Never negative: the ends were read first, and the group may have committed more since.
        return sum(max(0, ends[partition] - offset) for partition, offset in committed.items())

    def _outcomes(self, consumer: str, topic: str, ends: dict[Partition, int]) -> dict[str, int]:
        # By offset, not by time: an inbox row that was just written may belong to an older message.
        statement = """
            select outcome, count(*) from inbox
            where consumer = %s and topic = %s and partition = %s and "offset" >= %s and "offset" < %s group by 1
        """
        outcomes: dict[str, int] = {}
        for partition, end in ends.items():
            if partition.topic == topic:
                start = self._start.get(partition, 0)
                rows = self._query("operations_db", statement, consumer, topic, partition.number, start, end)
                for outcome, number in rows:
                    outcomes[outcome] = outcomes.get(outcome, 0) + number
        return outcomes

    def _query(self, database: str, statement: str, *values: Any) -> list[tuple]:
        import psycopg

        # A connection for each query: after the server was unavailable, the next query works at once.
        with psycopg.connect(self._databases[database], connect_timeout=5) as connection:
            return connection.execute(statement, values or None).fetchall()  # type: ignore[arg-type]
