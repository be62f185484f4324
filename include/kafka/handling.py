"""From messages to effects, each once.

For every batch: what the inbox knows is skipped; what keeps its contract is written to the inbox and has its effect in
ONE database transaction; then what breaks its contract is kept as a dead letter, acknowledged by the broker or held in
the outbox, before the inbox knows it. Killed before a transaction: a retry does it. After: the inbox knows, a retry
skips it. Killed between a dead letter and its inbox row: it is sent again.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DataError, InterfaceError, OperationalError

from include.contracts import ContractViolation, Reason
from include.contracts.digests import digest
from include.kafka.consumers import Consumer
from include.kafka.dead_letters import DeadLetter, DeadLetters, alarm_conflicts
from include.kafka.messages import Message, Rejected
from include.kafka.producer import AcknowledgedProducer
from include.operations import outbox
from include.operations.database import LOCK_NOT_AVAILABLE, begin
from include.operations.tables import Outcome, inbox

log = logging.getLogger(__name__)

COORDINATES = (inbox.c.topic_id, inbox.c.partition, inbox.c.offset)
Effect = Callable[..., Any]
# An index takes no entry beyond 2,704 bytes, and this one holds the names of consumer and contract besides.
MAX_EVENT_ID_BYTES = 2_000


class HandlingFailed(Exception):
    """The effect of some messages failed, and a retry may succeed; the others are handled."""


class _Good(NamedTuple):
    """A message that keeps its contract, and what tells its event from others."""

    message: Message
    contract: str
    event_id: str
    digest: bytes


def _database_is_away(error: Exception) -> bool:
    """Whether every message would fail alike, so that the task does, and is retried.

    Any other error (a broken constraint, data that it cannot store, a wrong statement, a text that is too long for an
    index, a lock that was not free in time) belongs to one message.
    """
    waited = getattr(getattr(error, "orig", None), "sqlstate", None) == LOCK_NOT_AVAILABLE
    return isinstance(error, OperationalError | InterfaceError) and not _is_limit(error) and not waited


def _is_limit(error: Exception) -> bool:
    """SQLSTATE 54: a limit of PostgreSQL that a value exceeds, today or tomorrow."""
    return (getattr(getattr(error, "orig", None), "sqlstate", None) or "").startswith("54")


class Handler:
    """Handles messages of one consumer for one Dag run."""

    def __init__(self, consumer: Consumer, run_id: str, producer: AcknowledgedProducer) -> None:
        self.consumer = consumer
        self.run_id = run_id
        self.letters = DeadLetters(consumer.name, run_id, producer)
        self.effect: Effect = consumer.load_effect()
        self.prepare = consumer.load_prepare()
        self.counts = {outcome: 0 for outcome in Outcome}
        # What the effects have left in the outbox: ids by route.
        self.written: outbox.Written = {}

    def handle(self, messages: Sequence[Message]) -> None:
        """Handle a batch of one topic's messages, in the order given.

        The good ones first: no dead letter, and no topic of dead letters, delays them.

        Raises HandlingFailed when the effect of some of them failed; all others are handled then.
        """
        good, bad = self._validated(self._without_known(messages))
        refused, failures = self._act(good)
        self._settle([*bad, *refused])
        if failures:
            raise HandlingFailed(
                f"consumer {self.consumer.name}: {len(failures)} of {len(good)} messages failed, the others are "
                f"handled; the first: {failures[0]}"
            )

    def keep_dead_letters(self, messages: Sequence[Message]) -> list[Message]:
        """Settle the messages that break their contract; returns the others, without those that are done."""
        good, bad = self._validated(self._without_known(messages))
        self._settle(bad)
        return [one.message for one in good]

    def _without_known(self, messages: Sequence[Message]) -> list[Message]:
        if not messages:
            return []
        known = select(*COORDINATES).where(
            inbox.c.consumer == self.consumer.name, tuple_(*COORDINATES).in_([m.coordinates for m in messages])
        )
        with begin() as connection:
            done = {tuple(row) for row in connection.execute(known)}
        return [message for message in messages if message.coordinates not in done]

    def _validated(self, messages: Iterable[Message]) -> tuple[list[_Good], list[DeadLetter]]:
        good: list[_Good] = []
        bad: list[DeadLetter] = []
        for message in messages:
            try:
                good.append(self._good(message))
            except ContractViolation as violation:
                bad.append(DeadLetter(message, violation.reason, violation.detail))
        return good, bad

    def _good(self, message: Message) -> _Good:
        topic = self.consumer.topic(message.topic)
        event = topic.parse(message.value)
        try:
            event_id, content = event.event_id, digest(event)
            length = len(event_id.encode())
        except Exception as error:
            text = f"the contract's own code raised {type(error).__name__} for the event's id or content"
            raise ContractViolation(Reason.rejected, text) from error
        if length > MAX_EVENT_ID_BYTES:
            raise ContractViolation(Reason.rejected, f"event_id has {length} bytes, at most {MAX_EVENT_ID_BYTES}")
        return _Good(message.with_event(event), topic.contract.__name__, event_id, content)

    def _act(self, good: Sequence[_Good]) -> tuple[list[DeadLetter], list[str]]:
        """Have the effects; returns what became a dead letter instead, and why others failed."""
        if self.prepare is None:
            try:
                return self._record(good), []
            except Exception as error:
                if _database_is_away(error):
                    raise
        return self._one_by_one(good)

    def _one_by_one(self, good: Sequence[_Good]) -> tuple[list[DeadLetter], list[str]]:
        """A transaction for each message, where one that fails took its whole batch with it, or where each is prepared.

        A poisoned message delays no other.
        """
        letters: list[DeadLetter] = []
        failures: list[str] = []
        for one in good:
            try:
                letters += self._record([one], self._prepared(one))
            except (Rejected, DataError) as error:
                # DataError: the database cannot store it (a NUL in a text, a number out of range), today or tomorrow.
                detail = str(error) if isinstance(error, Rejected) else type(error.orig).__name__
                letters.append(DeadLetter(one.message, Reason.rejected, detail))
            except Exception as error:
                if _database_is_away(error):
                    raise
                if _is_limit(error):
                    letters.append(DeadLetter(one.message, Reason.rejected, "larger than the database takes"))
                    continue
                log.exception("effect failed: message=%s", one.message)
                failures.append(f"{one.message}: {type(error).__name__}: {error}")
        return letters, failures

    def _prepared(self, one: _Good) -> tuple[Any, ...]:
        """What the effect gets beside connection and message."""
        if self.prepare is None or self._is_repeated(one):
            return ()
        return (self.prepare(one.message),)

    def _is_repeated(self, one: _Good) -> bool:
        """Whether the inbox knows its event from other coordinates: it has no effect then, and is not prepared."""
        with begin() as connection:
            return bool(self._handled(connection, [one]))

    def _handled(self, connection: Connection, events: Sequence[_Good]) -> dict[tuple[str, str], Any]:
        """{(contract, event id): its row in the inbox} of those events that were handled, whatever their content."""
        identity = (inbox.c.contract, inbox.c.event_id)
        known = select(*identity, inbox.c.digest, *COORDINATES).where(
            inbox.c.consumer == self.consumer.name,
            tuple_(*identity).in_({(one.contract, one.event_id) for one in events}),
            inbox.c.outcome == Outcome.handled,
        )
        return {(row.contract, row.event_id): row for row in connection.execute(known)}

    def _record(self, good: Sequence[_Good], prepared: tuple[Any, ...] = ()) -> list[DeadLetter]:
        """Inbox rows and effects, in one transaction; returns the events whose id another event has.

        Of two such events the one that was recorded first stays, within a batch too.
        """
        if not good:
            return []
        with begin() as connection, outbox.gathered(connection) as written:
            new = self._insert(connection, [self._row(one, Outcome.handled) for one in good])
            # Neither new nor known by its coordinates: an event of this id was handled at others.
            again = [one for one in good if one.message.coordinates not in new]
            handled = self._handled(connection, again) if again else {}
            firsts = [(one, handled.get((one.contract, one.event_id))) for one in again]
            duplicates = [one for one, first in firsts if not _conflicts(one, first)]
            repeated = self._insert(connection, [self._row(one, Outcome.duplicate) for one in duplicates])
            for one in good:
                if one.message.coordinates in new:
                    self.effect(connection, one.message, *prepared)
        for route, ids in written.items():
            self.written.setdefault(route, []).extend(ids)
        self.counts[Outcome.handled] += len(new)
        self.counts[Outcome.duplicate] += len(repeated)
        return [_conflict(one.message, first) for one, first in firsts if _conflicts(one, first)]

    def _settle(self, letters: Sequence[DeadLetter]) -> None:
        """Dead letters and their inbox rows."""
        if not letters:
            return
        waiting = self.letters.send(letters)
        with begin() as connection:
            new = self._insert(connection, [self._letter_row(letter) for letter in letters])
            # Only those that are on record now: of two tasks at once, one hands a letter to the outbox.
            self.letters.hold(connection, [one for one in waiting if one.letter.message.coordinates in new])
            alarm_conflicts(connection, self.consumer.name, [one for one in letters if one.message.coordinates in new])
        self.counts[Outcome.dead_letter] += len(new)

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
        """Insert what neither unique key knows; returns the coordinates inserted."""
        if not rows:
            return set()
        # Sorted: two tasks that insert the same event ids in different orders would block each other.
        rows = sorted(rows, key=lambda row: (row["event_id"] or "", row["offset"]))
        statement = insert(inbox).on_conflict_do_nothing().returning(*COORDINATES)
        return {tuple(row) for row in connection.execute(statement, rows)}  # type: ignore[misc]

    def _row(self, one: _Good, outcome: Outcome) -> dict[str, Any]:
        return {
            **self._coordinates_row(one.message, outcome),
            "contract": one.contract,
            "event_id": one.event_id,
            "digest": one.digest,
        }

    def _letter_row(self, letter: DeadLetter) -> dict[str, Any]:
        return {
            **self._coordinates_row(letter.message, Outcome.dead_letter),
            "contract": self.consumer.topic(letter.message.topic).contract.__name__,
            # Its event was not accepted, and its id may be what cannot be stored.
            "event_id": None,
            "digest": None,
            "reason": letter.reason,
            "detail": letter.detail,
        }

    def _coordinates_row(self, message: Message, outcome: Outcome) -> dict[str, Any]:
        return {
            "consumer": self.consumer.name,
            "topic_id": message.topic_id,
            "partition": message.partition,
            "offset": message.offset,
            "topic": message.topic,
            "outcome": outcome,
            "reason": None,
            "detail": None,
            "run_id": self.run_id,
        }


def _conflicts(one: _Good, first: Any) -> bool:
    """Whether the event that was handled first says something else. One without a digest is from before there were."""
    if first is None or first.digest is None:
        return False
    # Another task may have handled this very message meanwhile.
    is_itself = (first.topic_id, first.partition, first.offset) == one.message.coordinates
    return not is_itself and bytes(first.digest) != one.digest


def _conflict(message: Message, first: Any) -> DeadLetter:
    detail = f"the event of this id at partition {first.partition} offset {first.offset} has other content"
    return DeadLetter(message, Reason.conflict, detail)
