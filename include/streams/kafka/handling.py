"""Apply the effect of each message once.

For every batch: messages in the inbox are skipped. Valid messages get their inbox rows and their effects in ONE
database transaction. Then each message that breaks its contract is written to the dead-letter topic and acknowledged,
or written to the outbox. Its inbox row is never written earlier. A message that no contract of its topic's union takes
only gets an inbox row.

Killed before a transaction commits: a retry does the work. Killed after it: a retry finds the inbox rows and skips the
messages. Killed between a dead letter and its inbox row: a retry sends the dead letter again.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Select, func, literal, select, true
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.sql.functions import Function

from include.streams.contracts import ContractViolation, NotWanted, Reason
from include.streams.contracts.digests import differ, digest
from include.streams.formats import RegistryUnavailable
from include.streams.kafka.consumers import PROGRAMMING_ERRORS, Consumer
from include.streams.kafka.dead_letters import DeadLetter, DeadLetterWriter, alarm_conflicts
from include.streams.kafka.messages import Message, Rejected
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.kafka.tracing import SpanLinks, trace_headers
from include.streams.operations import metrics, outbox
from include.streams.operations.database import LOCK_NOT_AVAILABLE, begin
from include.streams.operations.tables import Outcome, inbox

log = logging.getLogger(__name__)

COORDINATES = (inbox.c.topic_id, inbox.c.partition, inbox.c.offset)
Effect = Callable[..., Any]
# An index entry has at most 2,704 bytes in PostgreSQL, and this entry also holds the names of consumer and contract.
MAX_EVENT_ID_BYTES = 2_000
# The longest wait for a lock after another transaction of the task has waited for a lock and failed; half as long after
# each further failure, but at least the second value. If every transaction waited its minute, ten messages that need a
# locked row would take all the time of their task at every retry, and it would never reach the messages after them.
LOCK_SECONDS, LEAST_LOCK_SECONDS = 5.0, 0.2


class HandlingFailed(Exception):
    """The effects of some messages failed, and a retry may succeed; the other messages are handled."""


class _ValidMessage(NamedTuple):
    """A message that meets its contract, with the identity and the digest of its event."""

    message: Message
    contract: str
    event_id: str
    digest: bytes


def _sqlstate(error: Exception) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _database_is_away(error: Exception) -> bool:
    """Whether the database is unavailable: every message would fail, so the task fails and is retried.

    Any other error is treated as the error of one message: a violated constraint, data that the database cannot store,
    a wrong statement, a text that is too long for an index, a statement timeout, a lock timeout, a deadlock. If that is
    wrong, each message fails once. The opposite mistake would let one message stop all messages after it.
    """
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    state = _sqlstate(error)
    # Without an SQLSTATE, the client has found no server. 08: the connection failed. 57P: the server is ending it.
    return not state or state.startswith(("08", "57P"))


def _service_is_away(error: Exception) -> bool:
    """Whether the database is unavailable, or the schema registry that an effect needs for the messages it sends."""
    return isinstance(error, RegistryUnavailable) or _database_is_away(error)


def _is_limit(error: Exception) -> bool:
    """Whether a value exceeds a limit of PostgreSQL (SQLSTATE class 54), which no retry changes."""
    return _sqlstate(error).startswith("54")


class BatchProcessor:
    """Handles batches of messages of one consumer for one Dag run: validation, effects, dead letters, inbox rows.

    Args:
        consumer: The consumer.
        run_id: The Dag run, for inbox rows and dead letters.
        producer: Sends the dead letters.
        until: A time of the monotonic clock. Messages that are handled one by one are not tried after it, and count as
            failed.

    Attributes:
        counts: {outcome: number of messages that this object has recorded with it}.
        written: {route: ids of the outbox rows that the effects have added}.
        failed: The number of messages whose effects have failed.
        faults: The class names of the programming errors among these failures, one for each message.

    Raises:
        FunctionUnusable: The consumer's effect cannot be loaded.
    """

    def __init__(
        self, consumer: Consumer, run_id: str, producer: AcknowledgedProducer, *, until: float = math.inf
    ) -> None:
        self.consumer = consumer
        self.run_id = run_id
        self.until = until
        self.dead_letters = DeadLetterWriter(consumer.name, run_id, producer)
        self.effect: Effect = consumer.load_effect()
        self.prepare = consumer.load_prepare()
        self.counts = {outcome: 0 for outcome in Outcome}
        self.written: outbox.Written = {}
        self._links = SpanLinks()
        self.failed = 0
        self.faults: list[str] = []
        # The longest wait for a lock from now on; None for the default of every transaction, a minute.
        self._lock_seconds: float | None = None

    def handle(self, messages: Sequence[Message]) -> None:
        """Handle a batch of messages.

        Valid messages come first, in the given order, so that no dead letter and no dead-letter topic delays them.

        Args:
            messages: Messages of the consumer's topics; `event` need not be set.

        Raises:
            HandlingFailed: The effects of some messages failed; all other messages are handled.
            RegistryUnavailable: The schema registry is unavailable. It is never the reason for a dead letter.
            SQLAlchemyError: The database is unavailable.
        """
        started = time.monotonic()
        unfinished = self._without_finished(messages)
        self._links.add(unfinished)
        valid, invalid, unwanted = self._validate(unfinished)
        rejected, failures = self._apply_effects(valid)
        self._settle([*invalid, *rejected])
        self._record_unwanted(unwanted)
        took = timedelta(seconds=time.monotonic() - started)
        for topic, number in Counter(message.topic for message in messages).items():
            metrics.CONSUMED.add(number, self.consumer.name, topic)
            metrics.PROCESSED.record(took, self.consumer.name, topic)
        if failures:
            raise HandlingFailed(
                f"consumer {self.consumer.name}: {len(failures)} of {len(valid)} messages failed, the others are "
                f"handled; the first: {failures[0]}"
            )

    def publish_invalid(self, messages: Sequence[Message]) -> list[Message]:
        """Publish messages that break their contract as dead letters, and record those that are not wanted.

        It applies no effects.

        Args:
            messages: Messages of the consumer's topics.

        Returns:
            The valid messages that are not in the inbox yet.

        Raises:
            RegistryUnavailable: The schema registry is unavailable.
            SQLAlchemyError: The database is unavailable.
        """
        valid, invalid, unwanted = self._validate(self._without_finished(messages))
        self._settle(invalid)
        self._record_unwanted(unwanted)
        return [event.message for event in valid]

    def _without_finished(self, messages: Sequence[Message]) -> list[Message]:
        """The messages without those that have an inbox row."""
        if not messages:
            return []
        query = self._inbox_rows(COORDINATES, {message.coordinates for message in messages}, COORDINATES)
        with begin() as connection:
            finished = {tuple(row) for row in connection.execute(query)}
        return [message for message in messages if message.coordinates not in finished]

    def _inbox_rows(
        self, key: Sequence[Column], wanted: Collection[tuple], columns: Sequence[Column], *conditions: ColumnElement
    ) -> Select:
        """Select the consumer's inbox rows with these values of a unique key, by one index look-up for each value.

        With a list of 500 keys (`in`), PostgreSQL may compare every row of the consumer with each of the 500: it plans
        so while its statistics do not know the consumer.
        """
        names = [column.name for column in key]
        values = zip(*wanted, strict=True)
        arrays = [literal(list(array), ARRAY(column.type)) for column, array in zip(key, values, strict=True)]
        # Not `func.unnest`: the import of sqlalchemy-bigquery, which Great Expectations imports, replaces that function
        # in the whole process by BigQuery's, which takes one array only.
        keys = Function("unnest", *arrays).table_valued(*names).render_derived()
        is_same_key = (column == keys.c[column.name] for column in key)
        # The limit prevents PostgreSQL from turning this into a join that reads all rows of the consumer.
        matching = select(*columns).where(inbox.c.consumer == self.consumer.name, *is_same_key, *conditions)
        row = matching.limit(1).lateral()
        return select(*(row.c[column.name] for column in columns)).select_from(keys.join(row, true()))

    def _validate(self, messages: Iterable[Message]) -> tuple[list[_ValidMessage], list[DeadLetter], list[Message]]:
        """The messages that meet their contract, those that break it, and those that no contract of a union takes."""
        valid: list[_ValidMessage] = []
        invalid: list[DeadLetter] = []
        unwanted: list[Message] = []
        for message in messages:
            try:
                valid.append(self._parse(message))
            except ContractViolation as violation:
                invalid.append(DeadLetter(message, violation.reason, violation.detail))
            except NotWanted:
                unwanted.append(message)
        return valid, invalid, unwanted

    def _parse(self, message: Message) -> _ValidMessage:
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
        return _ValidMessage(message.with_event(event), event.contract_name, event_id, content)

    def _apply_effects(self, valid: Sequence[_ValidMessage]) -> tuple[list[DeadLetter], list[str]]:
        """Apply the effects; returns the messages that became dead letters, and an error text for each failed one."""
        if self.prepare is None:
            try:
                return self._record(valid), []
            except Exception as error:
                if _service_is_away(error):
                    raise
                self._wait_less_if_locked(error)
        return self._one_by_one(valid)

    def _one_by_one(self, valid: Sequence[_ValidMessage]) -> tuple[list[DeadLetter], list[str]]:
        """Use one transaction per message: after a message made its batch fail, or when each message is prepared.

        A message whose effect always fails delays no other.
        """
        dead_letters: list[DeadLetter] = []
        failures: list[str] = []
        for number, event in enumerate(valid):
            if time.monotonic() > self.until:
                failures.append(f"{len(valid) - number} messages were not tried within the time limit")
                break
            try:
                dead_letters += self._record([event], self._prepared(event))
            except (Rejected, DataError) as error:
                # DataError: the database can never store the value (a NUL in a text, a number out of range).
                detail = str(error) if isinstance(error, Rejected) else type(error.orig).__name__
                dead_letters.append(DeadLetter(event.message, Reason.rejected, detail))
            except Exception as error:
                if _service_is_away(error):
                    raise
                if _is_limit(error):
                    dead_letters.append(DeadLetter(event.message, Reason.rejected, "larger than the database takes"))
                    continue
                self._wait_less_if_locked(error)
                log.exception("effect failed: message=%s", event.message)
                self.failed += 1
                metrics.FAILED_EFFECTS.add(1, self.consumer.name, event.message.topic)
                if isinstance(error, PROGRAMMING_ERRORS):
                    self.faults.append(type(error).__name__)
                failures.append(f"{event.message}: {type(error).__name__}: {error}")
        return dead_letters, failures

    def _wait_less_if_locked(self, error: Exception) -> None:
        """Shorten the next waits for locks after a lock timeout. A retry of the task starts with a minute again."""
        if _sqlstate(error) == LOCK_NOT_AVAILABLE:
            last = self._lock_seconds
            self._lock_seconds = LOCK_SECONDS if last is None else max(last / 2, LEAST_LOCK_SECONDS)

    def _prepared(self, event: _ValidMessage) -> tuple[Any, ...]:
        """The arguments of the effect after connection and message: the prepared value, or none."""
        if self.prepare is None or self._is_repeated(event):
            return ()
        return (self.prepare(event.message),)

    def _is_repeated(self, event: _ValidMessage) -> bool:
        """Whether the event was handled at other coordinates: then it has no effect and need not be prepared."""
        with begin() as connection:
            return bool(self._handled(connection, [event]))

    def _handled(self, connection: Connection, events: Sequence[_ValidMessage]) -> dict[tuple[str, str], Any]:
        """{(contract, event id): inbox row} of those events that were handled before, with any content."""
        identity = (inbox.c.contract, inbox.c.event_id)
        wanted = {(event.contract, event.event_id) for event in events}
        columns = (*identity, inbox.c.digest, *COORDINATES)
        query = self._inbox_rows(identity, wanted, columns, inbox.c.outcome == Outcome.handled)
        return {(row.contract, row.event_id): row for row in connection.execute(query)}

    def _record(self, valid: Sequence[_ValidMessage], prepared: tuple[Any, ...] = ()) -> list[DeadLetter]:
        """Write inbox rows and apply effects, in one transaction; returns conflicting events as dead letters.

        Of two events with one id, also within a batch, the one that was recorded first is handled. The other one
        conflicts if it has other content; otherwise it is a duplicate.
        """
        if not valid:
            return []
        with begin() as connection, outbox.gathered(connection) as written:
            if self._lock_seconds is not None:
                # Not `begin(patience=...)`: it would also shorten the time that an effect may compute or call.
                limit = f"{self._lock_seconds * 1_000:.0f}ms"
                connection.execute(select(func.set_config("lock_timeout", limit, True)))
            new = self._insert(connection, [self._event_row(event, Outcome.handled) for event in valid])
            # These coordinates were not in the inbox, so their rows violate the other key: the event id is in use.
            repeated = [event for event in valid if event.message.coordinates not in new]
            handled = self._handled(connection, repeated) if repeated else {}
            pairs = [(event, handled.get((event.contract, event.event_id))) for event in repeated]
            duplicates = [event for event, first in pairs if not _is_conflict(event, first)]
            recorded = self._insert(connection, [self._event_row(event, Outcome.duplicate) for event in duplicates])
            for event in valid:
                if event.message.coordinates in new:
                    with outbox.tracing(trace_headers(event.message)):
                        self.effect(connection, event.message, *prepared)
        for route, ids in written.items():
            self.written.setdefault(route, []).extend(ids)
        self._count(Outcome.handled, (event.message for event in valid if event.message.coordinates in new))
        self._count(Outcome.duplicate, (e.message for e in duplicates if e.message.coordinates in recorded))
        return [_conflict(event.message, first) for event, first in pairs if _is_conflict(event, first)]

    def _settle(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Publish dead letters and write their inbox rows."""
        if not dead_letters:
            return
        refused = self.dead_letters.publish(dead_letters)
        with begin() as connection:
            new = self._insert(connection, [self._dead_letter_row(letter) for letter in dead_letters])
            # Only dead letters that this transaction recorded: of two concurrent tasks, only one uses the outbox.
            own_refused = [refusal for refusal in refused if refusal.dead_letter.message.coordinates in new]
            self.dead_letters.add_to_outbox(connection, own_refused)
            own = [letter for letter in dead_letters if letter.message.coordinates in new]
            alarm_conflicts(connection, self.consumer.name, own)
        self._count(Outcome.dead_letter, (letter.message for letter in own))
        for (topic, reason), number in Counter((letter.message.topic, letter.reason) for letter in own).items():
            metrics.DEAD_LETTERS.add(number, self.consumer.name, topic, reason)

    def _record_unwanted(self, messages: Sequence[Message]) -> None:
        """Record messages that no contract of their topic's union takes, so that each has an outcome."""
        if not messages:
            return
        rows = [
            {**self._coordinates_row(message, Outcome.not_wanted), **self._no_event(message)} for message in messages
        ]
        with begin() as connection:
            new = self._insert(connection, rows)
        self._count(Outcome.not_wanted, (message for message in messages if message.coordinates in new))

    def _count(self, outcome: Outcome, recorded: Iterable[Message]) -> None:
        """Count messages whose outcome is committed."""
        for topic, number in Counter(message.topic for message in recorded).items():
            self.counts[outcome] += number
            metrics.MESSAGES.add(number, self.consumer.name, topic, outcome)

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
        """Insert the rows that violate neither unique key; returns their coordinates."""
        if not rows:
            return set()
        # Sorted: two tasks that insert the same event ids in different orders would deadlock.
        rows = sorted(rows, key=lambda row: (row["event_id"] or "", row["offset"]))
        statement = insert(inbox).on_conflict_do_nothing().returning(*COORDINATES)
        return {tuple(row) for row in connection.execute(statement, rows)}  # type: ignore[misc]

    def _event_row(self, event: _ValidMessage, outcome: Outcome) -> dict[str, Any]:
        return {
            **self._coordinates_row(event.message, outcome),
            "contract": event.contract,
            "event_id": event.event_id,
            "digest": event.digest,
        }

    def _dead_letter_row(self, dead_letter: DeadLetter) -> dict[str, Any]:
        return {
            **self._coordinates_row(dead_letter.message, Outcome.dead_letter),
            **self._no_event(dead_letter.message),
            "reason": dead_letter.reason,
            "detail": dead_letter.detail,
        }

    def _no_event(self, message: Message) -> dict[str, Any]:
        # Also a message that was rejected has no event id here: the database may be unable to store that id.
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


def _is_conflict(event: _ValidMessage, first: Any) -> bool:
    """Whether the inbox row of the event that was handled first has other content.

    A row without a digest, from a release that wrote none, counts as no conflict.
    """
    if first is None or first.digest is None:
        return False
    # Another task may have handled this same message in the meantime.
    is_same_message = (first.topic_id, first.partition, first.offset) == event.message.coordinates
    return not is_same_message and differ(bytes(first.digest), event.digest)


def _conflict(message: Message, first: Any) -> DeadLetter:
    detail = f"the event of this id at partition {first.partition} offset {first.offset} has other content"
    return DeadLetter(message, Reason.conflict, detail)
