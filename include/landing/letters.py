"""Landed rows that break their contract: their records, from Kafka, and their way to the dead letters.

What has landed is the value's text only. The record itself is read again by its coordinates, so key, headers and bytes
are those that the producer sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from include.kafka.dead_letters import DeadLetter, DeadLetters, alarm_conflicts
from include.kafka.messages import Message
from include.kafka.offsets import GroupOffsets, OffsetRange, is_same_topic
from include.kafka.producer import AcknowledgedProducer
from include.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.landing.consumers import LandingConsumer
from include.operations.database import begin
from include.operations.tables import Outcome, claim_ranges, claims, inbox

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

log = logging.getLogger(__name__)

# Bad rows that stand close together are read in one go: to begin at an offset takes longer than to pass over these.
MAX_GAP = 200


def known(consumer: LandingConsumer, ranges: Iterable[OffsetRange]) -> list[tuple[int, int]]:
    """(partition, offset) of what is a dead letter already, from an earlier try or an earlier run of the same offsets.

    It stays one, also when the contract has been changed since: its way back is the replay, which the dead letter is
    there for, and it must not be in two places.
    """
    found = select(inbox.c.partition, inbox.c.offset)
    with begin() as connection:
        return [tuple(row) for part in ranges for row in connection.execute(found.where(*_of(consumer, part)))]  # type: ignore[misc]


def count(consumer: LandingConsumer, ranges: Iterable[OffsetRange]) -> int:
    """How many offsets of the ranges are dead letters on record."""
    counted = select(func.count()).select_from(inbox)
    with begin() as connection:
        return sum(connection.scalar(counted.where(*_of(consumer, part))) or 0 for part in ranges)


def reasons(connection: Connection, claim_id: int) -> list[tuple[str, int]]:
    """(reason, how many) of the dead letters in the claim's ranges, the commonest first."""
    of_claim = (
        (inbox.c.consumer == claims.c.consumer)
        & (inbox.c.topic_id == claim_ranges.c.topic_id)
        & (inbox.c.partition == claim_ranges.c.partition)
        & (inbox.c.offset >= claim_ranges.c.readable_from)
        & (inbox.c.offset < claim_ranges.c.end_offset)
    )
    query = (
        select(inbox.c.reason, func.count())
        .select_from(claims)
        .join(claim_ranges, claim_ranges.c.claim_id == claims.c.id)
        .join(inbox, of_claim)
        .where(claims.c.id == claim_id, inbox.c.outcome == Outcome.dead_letter)
        .group_by(inbox.c.reason)
        .order_by(func.count().desc(), inbox.c.reason)
    )
    return [(str(reason), number) for reason, number in connection.execute(query).all()]


def _of(consumer: LandingConsumer, part: OffsetRange) -> tuple[ColumnElement[bool], ...]:
    return (
        inbox.c.consumer == consumer.name,
        inbox.c.topic_id == part.topic_id,
        inbox.c.partition == part.partition,
        inbox.c.offset >= part.start,
        inbox.c.offset < part.end,
        inbox.c.outcome == Outcome.dead_letter,
    )


class Originals:
    """The records of a topic as they are in Kafka; connects with the first that is asked for."""

    def __init__(self, consumer: LandingConsumer, topic_id: str) -> None:
        self._consumer = consumer
        self._topic_id = topic_id
        self._group: GroupOffsets | None = None
        self._is_there = False

    def fetch(self, coordinates: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Message]:
        """{(partition, offset): record} of those that retention has left.

        Raises ReadingStalled, or what the broker says: a retry may find them, and nothing is taken for gone that only
        could not be read.
        """
        if self._group is None:
            self._group = GroupOffsets(self._consumer.group, self._consumer.conn_id, **CONSUMER_SETTINGS)
            # Of a topic that was made again, other records stand at these offsets.
            now = self._group.topic_ids_now([self._consumer.topic.name])
            self._is_there = is_same_topic(now.get(self._consumer.topic.name, ""), self._topic_id)
        wanted = set(coordinates)
        found: dict[tuple[int, int], Message] = {}
        if self._is_there:
            reader = RangeReader(self._group.consumer)
            for part in self._close_together(wanted):
                for batch in reader.read(part):
                    found |= {(m.partition, m.offset): m for m in batch if (m.partition, m.offset) in wanted}
        return found

    def _close_together(self, wanted: Iterable[tuple[int, int]]) -> Iterator[OffsetRange]:
        part: OffsetRange | None = None
        for partition, offset in sorted(wanted):
            if part and partition == part.partition and offset - part.end <= MAX_GAP:
                part = OffsetRange(part.topic, part.topic_id, partition, part.start, offset + 1)
                continue
            if part:
                yield part
            part = OffsetRange(self._consumer.topic.name, self._topic_id, partition, offset, offset + 1)
        if part:
            yield part

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


@contextmanager
def originals(consumer: LandingConsumer, topic_id: str) -> Iterator[Originals]:
    """Originals that are closed at the end of the block."""
    opened = Originals(consumer, topic_id)
    try:
        yield opened
    finally:
        opened.close()


def keep(
    consumer: LandingConsumer, letters: Sequence[DeadLetter], *, run_id: str, producer: AcknowledgedProducer
) -> None:
    """Send the letters, wait until the broker has acknowledged them, then record them in the inbox.

    Those that their topic does not take go to the outbox, in the transaction that records them. Killed before it: all
    are sent again, and some stand twice among the dead letters; their coordinates tell.
    """
    if not letters:
        return
    box = DeadLetters(consumer.name, run_id, producer)
    waiting = box.send(letters)
    rows = [
        {
            "consumer": consumer.name,
            "topic_id": letter.message.topic_id,
            "partition": letter.message.partition,
            "offset": letter.message.offset,
            "topic": letter.message.topic,
            "contract": consumer.topic.contract.__name__,
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
        on_record = [letter for letter in letters if (letter.message.partition, letter.message.offset) in new]
        alarm_conflicts(connection, consumer.name, on_record)
        box.hold(connection, [one for one in waiting if one.letter in on_record])
