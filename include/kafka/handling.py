"""From messages to effects, each once.

For every batch: what the inbox knows is skipped; what breaks its contract is kept as a dead letter, acknowledged by
the broker before anything goes on; the rest is written to the inbox and has its effect in ONE database transaction.
Killed before that transaction: nothing happened, a retry does it. After: the inbox knows, a retry skips it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DataError, InterfaceError, OperationalError

from include.contracts import ContractViolation, Reason
from include.kafka import dead_letters
from include.kafka.consumers import Consumer
from include.kafka.dead_letters import DeadLetter
from include.kafka.messages import Message, Rejected
from include.kafka.producer import AcknowledgedProducer
from include.operations import outbox
from include.operations.database import begin
from include.operations.tables import Outcome, inbox

log = logging.getLogger(__name__)

COORDINATES = (inbox.c.topic_id, inbox.c.partition, inbox.c.offset)
Effect = Callable[..., Any]
# The database is away or gives up on us: every message would fail alike, so the task does, and is retried. Any other
# error (a broken constraint, data that it cannot store, a wrong statement) belongs to one message.
DATABASE_AWAY = (OperationalError, InterfaceError)


class HandlingFailed(Exception):
    """The effect of some messages failed, and a retry may mend it; the others are handled."""


class Handler:
    """Handles messages of one consumer for one Dag run."""

    def __init__(self, consumer: Consumer, run_id: str, producer: AcknowledgedProducer) -> None:
        self.consumer = consumer
        self.run_id = run_id
        self.producer = producer
        self.effect: Effect = consumer.load_effect()
        self.prepare = consumer.load_prepare()
        self.counts = {outcome: 0 for outcome in Outcome}
        # What the effects have left in the outbox: ids by route.
        self.written: outbox.Written = {}

    def handle(self, messages: Sequence[Message]) -> None:
        """Handle a batch of one topic's messages, in the order given.

        Raises HandlingFailed when the effect of some of them failed; all others are handled then.
        """
        good, bad = self._validated(self._without_known(messages))
        self._send(bad)
        if self.prepare is not None:
            self._one_by_one(good, bad)
            return
        try:
            self._record(good, bad)
        except DATABASE_AWAY:
            raise
        except Exception:
            self._one_by_one(good, bad)

    def keep_dead_letters(self, messages: Sequence[Message]) -> list[Message]:
        """Settle the messages that break their contract; returns the others, without those that are done."""
        good, bad = self._validated(self._without_known(messages))
        self._send(bad)
        self._record([], bad)
        return good

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        if letters:
            dead_letters.send(letters, consumer=self.consumer.name, run_id=self.run_id, producer=self.producer)

    def _without_known(self, messages: Sequence[Message]) -> list[Message]:
        if not messages:
            return []
        known = select(*COORDINATES).where(
            inbox.c.consumer == self.consumer.name, tuple_(*COORDINATES).in_([m.coordinates for m in messages])
        )
        with begin() as connection:
            done = {tuple(row) for row in connection.execute(known)}
        return [message for message in messages if message.coordinates not in done]

    def _validated(self, messages: Iterable[Message]) -> tuple[list[Message], list[DeadLetter]]:
        good: list[Message] = []
        bad: list[DeadLetter] = []
        for message in messages:
            try:
                event = self.consumer.topic(message.topic).parse(message.value)
            except ContractViolation as violation:
                bad.append(DeadLetter(message, violation.reason, violation.detail))
            else:
                good.append(message.with_event(event))
        return good, bad

    def _one_by_one(self, good: Sequence[Message], bad: Sequence[DeadLetter]) -> None:
        """A transaction for each message, where one that fails took its whole batch with it, or where each is prepared.

        A poisoned message delays no other.
        """
        self._record([], bad)
        failures: list[str] = []
        for message in good:
            try:
                self._record([message], [], self._prepared(message))
            except (Rejected, DataError) as error:
                # DataError: the database cannot store it (a NUL in a text, a number out of range), today or tomorrow.
                detail = str(error) if isinstance(error, Rejected) else type(error.orig).__name__
                letter = DeadLetter(message, Reason.rejected, detail)
                self._send([letter])
                self._record([], [letter])
            except DATABASE_AWAY:
                raise
            except Exception as error:
                log.exception("effect failed: message=%s", message)
                failures.append(f"{message}: {type(error).__name__}: {error}")
        if failures:
            raise HandlingFailed(
                f"consumer {self.consumer.name}: {len(failures)} of {len(good)} messages failed, the others are "
                f"handled; the first: {failures[0]}"
            )

    def _prepared(self, message: Message) -> tuple[Any, ...]:
        """What the effect gets beside connection and message."""
        if self.prepare is None or self._is_repeated(message):
            return ()
        return (self.prepare(message),)

    def _is_repeated(self, message: Message) -> bool:
        """Whether the inbox knows its event from other coordinates: it has no effect then, and is not prepared."""
        handled = select(inbox.c.offset).where(
            inbox.c.consumer == self.consumer.name,
            inbox.c.contract == self._contract(message),
            inbox.c.event_id == message.event.event_id,
            inbox.c.outcome == Outcome.handled,
        )
        with begin() as connection:
            return connection.execute(handled).first() is not None

    def _contract(self, message: Message) -> str:
        return self.consumer.topic(message.topic).contract.__name__

    def _record(self, good: Sequence[Message], bad: Sequence[DeadLetter], prepared: tuple[Any, ...] = ()) -> None:
        """Inbox rows and effects, in one transaction."""
        if not good and not bad:
            return
        with begin() as connection, outbox.gathered(connection) as written:
            new = self._insert(connection, [self._entry(m, Outcome.handled) for m in good])
            # Neither new nor known by its coordinates: the same event was handled at others.
            again = [m for m in good if m.coordinates not in new]
            duplicates = self._insert(connection, [self._entry(m, Outcome.duplicate) for m in again])
            letters = [
                {
                    **self._entry(letter.message, Outcome.dead_letter),
                    "reason": letter.reason,
                    "detail": letter.detail,
                }
                for letter in bad
            ]
            kept = self._insert(connection, letters)
            for message in good:
                if message.coordinates in new:
                    self.effect(connection, message, *prepared)
        for route, ids in written.items():
            self.written.setdefault(route, []).extend(ids)
        self.counts[Outcome.handled] += len(new)
        self.counts[Outcome.duplicate] += len(duplicates)
        self.counts[Outcome.dead_letter] += len(kept)

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
        """Insert what neither unique key knows; returns the coordinates inserted."""
        if not rows:
            return set()
        # Sorted: two tasks that insert the same event ids in different orders would block each other.
        rows = sorted(rows, key=lambda row: (row["event_id"] or "", row["offset"]))
        statement = insert(inbox).on_conflict_do_nothing().returning(*COORDINATES)
        return {tuple(row) for row in connection.execute(statement, rows)}  # type: ignore[misc]

    def _entry(self, message: Message, outcome: Outcome) -> dict[str, Any]:
        return {
            "consumer": self.consumer.name,
            "topic_id": message.topic_id,
            "partition": message.partition,
            "offset": message.offset,
            "topic": message.topic,
            "contract": self._contract(message),
            # Not of a dead letter: its event was not accepted, and its id may be what cannot be stored.
            "event_id": None if outcome == Outcome.dead_letter else message.event.event_id,
            "outcome": outcome,
            "reason": None,
            "detail": None,
            "run_id": self.run_id,
        }
