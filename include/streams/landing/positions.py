"""The state of a consumer of a landing table: its next offsets, its claims, and why it is stopped."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from sqlalchemy import Connection, select

from include.streams.kafka.claims import ConsumerStopped, positions_of, reset_command
from include.streams.kafka.offsets import OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.streams.landing.gaps import RUNBOOK
from include.streams.landing.tables import LandedTopic, raw_table
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_lasting
from include.streams.operations.database import begin
from include.streams.operations.tables import claim_ranges, claims


class Claimant(Protocol):
    """A consumer of a landing table, or the attributes of it that a trigger has."""

    @property
    def name(self) -> str: ...

    @property
    def topic(self) -> LandedTopic: ...

    @property
    def conn_id(self) -> str: ...


def next_offsets(connection: Connection, consumer: Claimant, of_topic: str) -> dict[int, int]:
    """{partition: the consumer's next offset}, for the topic with this id. An offset below it is claimed.

    Args:
        connection: A connection to the operational database.
        consumer: The consumer.
        of_topic: The topic id. Positions with another topic id are left out; all generations of its log count.
    """
    known = positions_of(connection, consumer.name, [consumer.topic.name])
    return {p.number: offset for p, (identity, offset) in known.items() if is_same_topic(identity, of_topic)}


def has_claim(connection: Connection, consumer: Claimant, run_id: str) -> bool:
    """Whether this run already has a claim, because it is retried or was cleared."""
    own_claim = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.run_id == run_id)
    return connection.scalar(own_claim) is not None


def open_claim_of_another_run(connection: Connection, consumer: str, run_id: str | None = None) -> str | None:
    """Return the run that has the oldest open claim of this consumer, or None.

    Args:
        connection: A connection to the operational database.
        consumer: The consumer's name.
        run_id: This run's claim is ignored.
    """
    others = select(claims.c.run_id).where(claims.c.consumer == consumer, claims.c.closed_at.is_(None))
    if run_id is not None:
        others = others.where(claims.c.run_id != run_id)
    return connection.scalar(others.order_by(claims.c.claimed_at).limit(1))


def claim_of(consumer: Claimant, run_id: str) -> tuple[int, list[OffsetRange]]:
    """The run's claim and its ranges.

    Args:
        consumer: The consumer.
        run_id: The Dag run.

    Returns:
        (the claim's id, its readable ranges sorted by partition).

    Raises:
        LookupError: The run has no claim.
    """
    own_claim = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.run_id == run_id)
    with begin() as connection:
        claim_id = connection.scalar(own_claim)
        if claim_id is None:
            raise LookupError(f"consumer {consumer.name}: run {run_id} has no claim; clear the task that plans it")
        of_claim = select(claim_ranges).where(claim_ranges.c.claim_id == claim_id)
        rows = connection.execute(of_claim.order_by(claim_ranges.c.partition)).all()
    return claim_id, [OffsetRange(r.topic, r.topic_id, r.partition, r.readable_from, r.end_offset) for r in rows]


def check_same_topic(topic: LandedTopic, landing_id: str, kafka: Mapping[Partition, PartitionOffsets]) -> None:
    """Raise ConsumerStopped when Kafka's topic is not the landed one: the same offsets would be other messages.

    Args:
        topic: The landed topic.
        landing_id: The topic id of the landing table.
        kafka: The offsets of the topic's partitions in Kafka, with the topic's present id.

    Raises:
        ConsumerStopped: The topic was deleted and recreated.
    """
    for offsets in kafka.values():
        if not is_same_topic(offsets.topic_id, landing_id):
            why = (
                f"topic {topic.name} was deleted and recreated (its id was {landing_id} and is {offsets.topic_id}), "
                f"and landing table {raw_table(topic)} holds the messages of the old topic"
            )
            raise ConsumerStopped({topic.name: why})


def stopped_failure(consumer: Claimant, stopped: ConsumerStopped) -> Exception:
    """Open an alarm and return a failure that Airflow does not retry: only a person can fix this.

    Args:
        consumer: The stopped consumer.
        stopped: Why it is stopped.

    Returns:
        The exception for the caller to raise.
    """
    from airflow.sdk.exceptions import AirflowFailException

    with begin() as connection:
        return AirflowFailException(open_stopped_alarm(connection, consumer, [str(stopped)]))


def open_stopped_alarm(connection: Connection, consumer: Claimant, reasons: Iterable[str]) -> str:
    """Open the alarm about logs that are not those that were claimed before, or add the reasons that it lacks.

    Args:
        connection: A connection in a transaction.
        consumer: The stopped consumer.
        reasons: What happened to each log; the same text at every check.

    Returns:
        The text with the remedy.
    """
    command = reset_command(consumer.name, consumer.topic.name, consumer.conn_id)
    # Partitions of a topic that was recreated have one reason.
    texts = [f"{why}; {RUNBOOK} says how to continue, with: {command}" for why in dict.fromkeys(reasons)]
    add_lasting(connection, consumer.name, AlarmKind.consumer_stopped, texts, key=consumer.topic.name)
    return "; ".join(texts)
