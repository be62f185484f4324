"""From messages to effects, each once.

For every batch: messages in the inbox are skipped. Valid messages get their inbox rows and their effects in ONE
database transaction. Then each message that breaks its contract is written to the dead-letter topic and acknowledged,
or written to the outbox, no later than its inbox row. A message that no contract of its topic's union takes only gets
an inbox row.

Killed before a transaction commits: a retry does the work. Killed after it: a retry finds the inbox rows and skips the
messages. Killed between a dead letter and its inbox row: a retry sends the dead letter again.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Select, func, literal, select, true
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.sql.functions import Function

from include.streams.contracts import ContractViolation, NotWanted, Reason
from include.streams.contracts.digests import differ, digest
from include.streams.kafka.consumers import PROGRAMMING_ERRORS, Consumer
from include.streams.kafka.dead_letters import DeadLetter, DeadLetters, alarm_conflicts
from include.streams.kafka.messages import Message, Rejected
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.operations import outbox
from include.streams.operations.database import LOCK_NOT_AVAILABLE, begin
from include.streams.operations.tables import Outcome, inbox

log = logging.getLogger(__name__)

COORDINATES = (inbox.c.topic_id, inbox.c.partition, inbox.c.offset)
Effect = Callable[..., Any]
# An index entry has at most 2,704 bytes in PostgreSQL, and this entry also holds the names of consumer and contract.
MAX_EVENT_ID_BYTES = 2_000
# After a transaction has waited for a lock in vain, the next ones of the task wait at most this long, and after each
# further failure half as long. With the minute of every transaction, ten messages that need a locked row would take all
# the time of their task at every retry, and the messages behind them would never be reached.
LOCK_SECONDS, LEAST_LOCK_SECONDS = 5.0, 0.2


class HandlingFailed(Exception):
    """The effects of some messages failed, and a retry may succeed; the other messages are handled."""


class _Good(NamedTuple):
    """A message that keeps its contract, with the identity and the digest of its event."""

    message: Message
    contract: str
    event_id: str
    digest: bytes


def _sqlstate(error: Exception) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _database_is_away(error: Exception) -> bool:
    """Whether the database is unavailable: every message would fail, so the task fails and is retried.

    Any other error is taken for one message's: a violated constraint, data that the database cannot store, a wrong
    statement, a text that is too long for an index, a statement timeout, a lock timeout, a deadlock. If it is not, each
    message fails once; the other mistake would let one message hold up all messages after it.
    """
    is_connection = isinstance(error, OperationalError | InterfaceError)
    # Without an SQLSTATE, the client has found no server. 08: the connection failed. 57P: the server is ending it.
    return is_connection and (not (state := _sqlstate(error)) or state.startswith(("08", "57P")))


def _is_limit(error: Exception) -> bool:
    """Whether a value exceeds a limit of PostgreSQL (SQLSTATE class 54), which no retry changes."""
    return _sqlstate(error).startswith("54")


class Handler:
    """Handles messages of one consumer for one Dag run.

    Attributes:
        counts: {outcome: number of messages that this object has recorded with it}.
        written: The ids of outbox rows that the effects have added, by route.
        failed: How many messages' effects have failed.
        faults: The kinds of programming errors among these failures, one for each message.
    """

    def __init__(
        self, consumer: Consumer, run_id: str, producer: AcknowledgedProducer, *, until: float = math.inf
    ) -> None:
        self.consumer = consumer
        self.run_id = run_id
        # A time of the monotonic clock: messages that are handled one by one are left from then on, as failed.
        self.until = until
        self.letters = DeadLetters(consumer.name, run_id, producer)
        self.effect: Effect = consumer.load_effect()
        self.prepare = consumer.load_prepare()
        self.counts = {outcome: 0 for outcome in Outcome}
        self.written: outbox.Written = {}
        self.failed = 0
        self.faults: list[str] = []
        # The longest wait for a lock from now on; None: the minute of every transaction.
        self._lock_seconds: float | None = None

    def handle(self, messages: Sequence[Message]) -> None:
        """Handle a batch of messages.

        Valid messages come first, in the given order, so that no dead letter and no dead-letter topic delays them.

        Args:
            messages: Messages of the consumer's topics; `event` need not be set.

        Raises:
            HandlingFailed: The effects of some messages failed; all other messages are handled.
            SQLAlchemyError: The database is unavailable.
        """
        good, bad, unwanted = self._validated(self._without_known(messages))
        refused, failures = self._act(good)
        self._settle([*bad, *refused])
        self._count_unwanted(unwanted)
        if failures:
            raise HandlingFailed(
                f"consumer {self.consumer.name}: {len(failures)} of {len(good)} messages failed, the others are "
                f"handled; the first: {failures[0]}"
            )

    def keep_dead_letters(self, messages: Sequence[Message]) -> list[Message]:
        """Settle the messages that break their contract as dead letters, and those that are not wanted. No effects.

        Args:
            messages: Messages of the consumer's topics.

        Returns:
            The valid messages that are not in the inbox yet.
        """
        good, bad, unwanted = self._validated(self._without_known(messages))
        self._settle(bad)
        self._count_unwanted(unwanted)
        return [one.message for one in good]

    def _without_known(self, messages: Sequence[Message]) -> list[Message]:
        if not messages:
            return []
        known = self._rows_of(COORDINATES, {message.coordinates for message in messages}, COORDINATES)
        with begin() as connection:
            done = {tuple(row) for row in connection.execute(known)}
        return [message for message in messages if message.coordinates not in done]

    def _rows_of(
        self, key: Sequence[Column], wanted: Collection[tuple], shown: Sequence[Column], *conditions: ColumnElement
    ) -> Select:
        """The consumer's inbox rows with these values of a unique key: one look into the key's index for each.

        With a list of 500 keys (`in`), a consumer that the database's statistics do not know yet would get a plan that
        compares every row of the consumer with each of the 500.
        """
        names = [column.name for column in key]
        values = zip(*wanted, strict=True)
        arrays = [literal(list(each), ARRAY(column.type)) for column, each in zip(key, values, strict=True)]
        # Not `func.unnest`: once sqlalchemy-bigquery is imported, as Great Expectations does, this is BigQuery's in the
        # whole process, and takes one array only.
        keys = Function("unnest", *arrays).table_valued(*names).render_derived()
        same = (column == keys.c[column.name] for column in key)
        # The limit keeps PostgreSQL from making a join of it, for which it could read all rows of the consumer.
        row = select(*shown).where(inbox.c.consumer == self.consumer.name, *same, *conditions).limit(1).lateral()
        return select(*(row.c[column.name] for column in shown)).select_from(keys.join(row, true()))

    def _validated(self, messages: Iterable[Message]) -> tuple[list[_Good], list[DeadLetter], list[Message]]:
        """The messages that keep their contract, those that break it, and those that no contract of a union takes."""
        good: list[_Good] = []
        bad: list[DeadLetter] = []
        unwanted: list[Message] = []
        for message in messages:
            try:
                good.append(self._good(message))
            except ContractViolation as violation:
                bad.append(DeadLetter(message, violation.reason, violation.detail))
            except NotWanted:
                unwanted.append(message)
        return good, bad, unwanted

    def _good(self, message: Message) -> _Good:
        topic = self.consumer.topic(message.topic)
        event = topic.parse(message.value, message.headers)
        try:
            event_id, content = event.event_id, digest(event)
            length = len(event_id.encode())
        except Exception as error:
            text = f"the contract's own code raised {type(error).__name__} for the event's id or content"
            raise ContractViolation(Reason.rejected, text) from error
        if length > MAX_EVENT_ID_BYTES:
            raise ContractViolation(Reason.rejected, f"event_id has {length} bytes, at most {MAX_EVENT_ID_BYTES}")
        return _Good(message.with_event(event), event.contract_name, event_id, content)

    def _act(self, good: Sequence[_Good]) -> tuple[list[DeadLetter], list[str]]:
        """Apply the effects; returns the messages that became dead letters instead, and the errors of failed ones."""
        if self.prepare is None:
            try:
                return self._record(good), []
            except Exception as error:
                if _database_is_away(error):
                    raise
                self._wait_less_if_locked(error)
        return self._one_by_one(good)

    def _one_by_one(self, good: Sequence[_Good]) -> tuple[list[DeadLetter], list[str]]:
        """Use one transaction per message: after a message made its batch fail, or when each message is prepared.

        A poison message delays no other.
        """
        letters: list[DeadLetter] = []
        failures: list[str] = []
        for number, one in enumerate(good):
            if time.monotonic() > self.until:
                failures.append(f"no time was left for {len(good) - number} messages")
                break
            try:
                letters += self._record([one], self._prepared(one))
            except (Rejected, DataError) as error:
                # DataError: the database can never store the value (a NUL in a text, a number out of range).
                detail = str(error) if isinstance(error, Rejected) else type(error.orig).__name__
                letters.append(DeadLetter(one.message, Reason.rejected, detail))
            except Exception as error:
                if _database_is_away(error):
                    raise
                if _is_limit(error):
                    letters.append(DeadLetter(one.message, Reason.rejected, "larger than the database takes"))
                    continue
                self._wait_less_if_locked(error)
                log.exception("effect failed: message=%s", one.message)
                self.failed += 1
                if isinstance(error, PROGRAMMING_ERRORS):
                    self.faults.append(type(error).__name__)
                failures.append(f"{one.message}: {type(error).__name__}: {error}")
        return letters, failures

    def _wait_less_if_locked(self, error: Exception) -> None:
        """Shorten the wait for locks after one was in vain; the message stays open, and its retry waits a minute."""
        if _sqlstate(error) == LOCK_NOT_AVAILABLE:
            last = self._lock_seconds
            self._lock_seconds = LOCK_SECONDS if last is None else max(last / 2, LEAST_LOCK_SECONDS)

    def _prepared(self, one: _Good) -> tuple[Any, ...]:
        """The arguments of the effect after connection and message: the prepared value, or none."""
        if self.prepare is None or self._is_repeated(one):
            return ()
        return (self.prepare(one.message),)

    def _is_repeated(self, one: _Good) -> bool:
        """Whether its event was handled at other coordinates: it then has no effect and need not be prepared."""
        with begin() as connection:
            return bool(self._handled(connection, [one]))

    def _handled(self, connection: Connection, events: Sequence[_Good]) -> dict[tuple[str, str], Any]:
        """{(contract, event id): inbox row} of those events that were handled before, with any content."""
        identity = (inbox.c.contract, inbox.c.event_id)
        wanted = {(one.contract, one.event_id) for one in events}
        shown = (*identity, inbox.c.digest, *COORDINATES)
        known = self._rows_of(identity, wanted, shown, inbox.c.outcome == Outcome.handled)
        return {(row.contract, row.event_id): row for row in connection.execute(known)}

    def _record(self, good: Sequence[_Good], prepared: tuple[Any, ...] = ()) -> list[DeadLetter]:
        """Write inbox rows and apply effects, in one transaction; returns the events whose id another event has.

        Of two events with one id, the event that was recorded first is handled, also within a batch.
        """
        if not good:
            return []
        with begin() as connection, outbox.gathered(connection) as written:
            if self._lock_seconds is not None:
                # Not `begin(patience=...)`: it would also shorten the time that an effect may compute or call.
                limit = f"{self._lock_seconds * 1_000:.0f}ms"
                connection.execute(select(func.set_config("lock_timeout", limit, True)))
            new = self._insert(connection, [self._row(one, Outcome.handled) for one in good])
            # Not inserted, although its coordinates were not in the inbox: its event id was handled at others.
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
        """Write dead letters and their inbox rows."""
        if not letters:
            return
        waiting = self.letters.send(letters)
        with begin() as connection:
            new = self._insert(connection, [self._letter_row(letter) for letter in letters])
            # Only dead letters that this transaction recorded: of two concurrent tasks, only one uses the outbox.
            self.letters.hold(connection, [one for one in waiting if one.letter.message.coordinates in new])
            alarm_conflicts(connection, self.consumer.name, [one for one in letters if one.message.coordinates in new])
        self.counts[Outcome.dead_letter] += len(new)

    def _count_unwanted(self, messages: Sequence[Message]) -> None:
        """Record messages that no contract of their topic's union takes: each is accounted for, and has no effect."""
        if not messages:
            return
        rows = [{**self._coordinates_row(one, Outcome.not_wanted), **self._no_event(one)} for one in messages]
        with begin() as connection:
            self.counts[Outcome.not_wanted] += len(self._insert(connection, rows))

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
        """Insert the rows that violate neither unique key; returns their coordinates."""
        if not rows:
            return set()
        # Sorted: two tasks that insert the same event ids in different orders would deadlock.
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
            **self._no_event(letter.message),
            "reason": letter.reason,
            "detail": letter.detail,
        }

    def _no_event(self, message: Message) -> dict[str, Any]:
        # No event id: the message has none, or was rejected, and the id may be what the database cannot store.
        return {"contract": self.consumer.topic(message.topic).contract_name, "event_id": None, "digest": None}

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
    """Whether the event that was handled first has other content.

    A row from before digests existed has none and counts as no conflict.
    """
    if first is None or first.digest is None:
        return False
    # Another task may have handled this same message in the meantime.
    is_itself = (first.topic_id, first.partition, first.offset) == one.message.coordinates
    return not is_itself and differ(bytes(first.digest), one.digest)


def _conflict(message: Message, first: Any) -> DeadLetter:
    detail = f"the event of this id at partition {first.partition} offset {first.offset} has other content"
    return DeadLetter(message, Reason.conflict, detail)
