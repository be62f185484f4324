"""Publish landed rows that break their contract as dead letters, with their original records from Kafka.

The landing table has only the text of a record's value, and the headers that the contract needs. So the record is read
again by its coordinates, and the dead letter has the key, headers and bytes that the producer sent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection, func, literal, select, text
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, MultiRange, Range, insert

from include.streams.contracts.foreign import Headers
from include.streams.contracts.violations import FRAMED
from include.streams.kafka.dead_letters import DeadLetter, DeadLetterWriter, alarm_conflicts
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import OffsetRange
from include.streams.kafka.originals import Originals
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.intervals import Ranges
from include.streams.operations import metrics
from include.streams.operations.database import begin
from include.streams.operations.tables import Outcome, inbox

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

log = logging.getLogger(__name__)


def known(consumer: LandingConsumer, ranges: Iterable[OffsetRange]) -> list[tuple[int, int]]:
    """(partition, offset) of the dead letters in these ranges that an earlier try or run has recorded.

    A dead letter stays a dead letter even if the contract has changed since, until it is replayed. Otherwise the
    message would be a dead letter and a clean row.
    """
    recorded = select(inbox.c.partition, inbox.c.offset)
    with begin() as connection:
        return [tuple(row) for part in ranges for row in connection.execute(recorded.where(*_of(consumer, part)))]  # type: ignore[misc]


def count(consumer: LandingConsumer, ranges: Iterable[OffsetRange], empty: Mapping[int, Ranges]) -> int:
    """How many offsets of the ranges are recorded as dead letters.

    Args:
        consumer: The landing consumer.
        ranges: The ranges, one for each partition.
        empty: {partition: offsets that are not counted}, because a run that is cleared after its rows were removed
            finds no row there.
    """
    total = 0
    with begin() as connection:
        for part in ranges:
            counted = select(func.count()).select_from(inbox).where(*_of(consumer, part))
            if part.partition in empty:
                left_out = MultiRange(Range(start, end, bounds="[)") for start, end in empty[part.partition])
                counted = counted.where(~literal(left_out, INT8MULTIRANGE).contains(inbox.c.offset))
            total += connection.scalar(counted) or 0
    return total


class Counted(NamedTuple):
    """The dead letters with one reason.

    Attributes:
        reason: The reason.
        number: How many dead letters have it.
        framed: How many of them look like messages of a schema registry.
    """

    reason: str
    number: int
    framed: int


# Each range is read separately through the primary key. PostgreSQL cannot estimate a join with the ranges, and could
# read the whole inbox for it.
_REASONS = text(
    """
    select part.claim_id, found.reason, sum(found.number), sum(found.framed)
    from unnest(
        cast(:claim_ids as bigint[]), cast(:topic_ids as text[]), cast(:partitions as bigint[]),
        cast(:starts as bigint[]), cast(:ends as bigint[])
    ) as part (claim_id, topic_id, partition, first, last)
    cross join lateral (
        select i.reason, count(*) as number, count(*) filter (where strpos(i.detail, :framed) > 0) as framed
        from inbox i
        where i.consumer = :consumer and i.topic_id = part.topic_id and i.partition = part.partition
            and i."offset" >= part.first and i."offset" < part.last and i.outcome = 'dead_letter'
        group by i.reason
    ) as found
    group by 1, 2 order by 3 desc, 2
    """
)


def reasons(
    connection: Connection, consumer: str, parts: Iterable[tuple[int, OffsetRange]]
) -> dict[int, list[Counted]]:
    """The dead letters in these parts of claims, by claim and reason.

    Args:
        connection: A connection to the operational database.
        consumer: The consumer's name.
        parts: (claim, range) of each part.

    Returns:
        {claim: its reasons, the most frequent one first}, without claims that have no dead letter there.
    """
    rows = [(claim_id, part.topic_id, part.partition, part.start, part.end) for claim_id, part in parts]
    if not rows:
        return {}
    names = ("claim_ids", "topic_ids", "partitions", "starts", "ends")
    asked = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    by_claim: dict[int, list[Counted]] = {}
    for row in connection.execute(_REASONS, {"consumer": consumer, "framed": FRAMED, **asked}):
        claim_id, reason, number, framed = row
        by_claim.setdefault(claim_id, []).append(Counted(str(reason), int(number), int(framed)))
    return by_claim


def _of(consumer: LandingConsumer, part: OffsetRange) -> tuple[ColumnElement[bool], ...]:
    return (
        inbox.c.consumer == consumer.name,
        inbox.c.topic_id == part.topic_id,
        inbox.c.partition == part.partition,
        inbox.c.offset >= part.start,
        inbox.c.offset < part.end,
        inbox.c.outcome == Outcome.dead_letter,
    )


def landed_message(
    consumer: LandingConsumer,
    topic_id: str,
    place: tuple[int, int],
    timestamp: datetime | None,
    value: str | None,
    headers: Headers = (),
) -> Message:
    """A record that Kafka no longer has, built from its landed text: without a key, and with the landed headers only.

    Args:
        consumer: The landing consumer.
        topic_id: The id of the topic when the offset was claimed.
        place: (partition, offset) of the record.
        timestamp: The record's time.
        value: The landed text of its value.
        headers: Its landed headers.
    """
    partition, offset = place
    return Message(
        topic=consumer.topic.name,
        topic_id=topic_id,
        partition=partition,
        offset=offset,
        timestamp=timestamp,
        key=None,
        value=None if value is None else value.encode("utf-8", "surrogatepass"),
        headers=tuple(headers),
    )


def originals(consumer: LandingConsumer, topic_id: str) -> Originals:
    """A reader of single records of the consumer's topic; close it, or use it as a context manager.

    Args:
        consumer: The landing consumer.
        topic_id: The id of the topic when the offsets were claimed.
    """
    return Originals(consumer.topic.name, topic_id, group=consumer.group, conn_id=consumer.conn_id)


def publish_dead_letters(
    consumer: LandingConsumer, letters: Sequence[DeadLetter], *, run_id: str, producer: AcknowledgedProducer
) -> None:
    """Publish dead letters, wait until the broker has acknowledged them, then record them in the inbox.

    Dead letters that the broker does not accept go to the outbox, in the transaction that records them. If the process
    is killed before that transaction, the retry publishes all of them again, so some are in the dead-letter topic
    twice. Both copies have the same topic, partition and offset.

    Args:
        consumer: The landing consumer.
        letters: The dead letters.
        run_id: The Dag run.
        producer: Publishes them.
    """
    if not letters:
        return
    box = DeadLetterWriter(consumer.name, run_id, producer)
    waiting = box.publish(letters)
    rows = [
        {
            "consumer": consumer.name,
            "topic_id": letter.message.topic_id,
            "partition": letter.message.partition,
            "offset": letter.message.offset,
            "topic": letter.message.topic,
            "contract": consumer.topic.contract_name,
            "outcome": Outcome.dead_letter,
            "reason": letter.reason,
            "detail": letter.detail,
            "run_id": run_id,
        }
        for letter in letters
    ]
    statement = insert(inbox).on_conflict_do_nothing().returning(inbox.c.partition, inbox.c.offset)
    with begin() as connection:
        new = {tuple(row) for row in connection.execute(statement, rows)}
        recorded = [letter for letter in letters if _coordinates(letter) in new]
        alarm_conflicts(connection, consumer.name, recorded)
        # Compared by coordinates: comparing the letters themselves would take minutes for some ten thousand letters.
        box.add_to_outbox(connection, [refused for refused in waiting if _coordinates(refused.dead_letter) in new])
    for reason, number in Counter(letter.reason for letter in recorded).items():
        metrics.DEAD_LETTERS.add(number, consumer.name, consumer.topic.name, reason)


def _coordinates(letter: DeadLetter) -> tuple[int, int]:
    return letter.message.partition, letter.message.offset
