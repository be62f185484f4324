"""Dead-letter records: messages that break their contract, written to `<topic>.dlq`.

A dead-letter record is the original record (key, value and headers unchanged) plus headers with the reason and the
origin of the message. A crash can publish a dead letter twice; both copies have the same topic, partition and offset.

A dead-letter topic that refuses a record delays no other message. A record that is too large is written as a stub. A
record that cannot be written at all waits in the outbox, and an alarm names the topic.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from include.streams.contracts import Reason
from include.streams.contracts.topics import DEAD_LETTER_SUFFIX
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import AcknowledgedProducer, Headers, OutgoingRecord, Refusal
from include.streams.operations import outbox, outbox_delivery
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.operations.tables import alarms
from include.streams.operations.tables import outbox as outbox_table

log = logging.getLogger(__name__)

PREFIX = "dlq."
# An error text of a library can be long, and headers count towards the topic's maximum message size.
MAX_DETAIL_CHARACTERS = 1_000
# How long a valid message may wait for a dead-letter topic that does not answer. After that time, dead-letter records
# for this topic go through the outbox, until the outbox has delivered the last of them.
ANSWER_SECONDS = 5.0
# Limits of a stub: the first bytes of the value, and the largest key and the largest headers that a stub keeps.
HEAD_BYTES, MAX_KEY_BYTES, MAX_HEADER_BYTES = 4 * 1024, 1024, 16 * 1024
# A larger record waits in the outbox as a stub: the original record is in Kafka.
MAX_WAITING_BYTES = 1_000_000
# The most consumers that an alarm's text names.
MAX_NAMED = 10

_REMEDIES = {
    "UNKNOWN_TOPIC_OR_PART": "run the Dag prepare_services, which creates it",
    "_UNKNOWN_TOPIC": "run the Dag prepare_services, which creates it",
    "TOPIC_AUTHORIZATION_FAILED": "grant WRITE and DESCRIBE on the topic to the user of {connection}",
    "MSG_SIZE_TOO_LARGE": "raise max.message.bytes of the topic",
}
_OTHER_REMEDY = "check the topic's replicas and settings"
_THEY_WAIT = "They wait in the outbox and are sent once that is done; no other message is delayed"


@dataclass(frozen=True)
class DeadLetter:
    """A message and the reason why it cannot be handled.

    Attributes:
        message: The message.
        reason: A value of `contracts.Reason`.
        detail: A text that names fields, not values; truncated to MAX_DETAIL_CHARACTERS.
        landed_text: True when retention had removed the record. The value is then the text from the landing table,
            without key and headers.
    """

    message: Message
    reason: str
    detail: str
    landed_text: bool = False

    def __post_init__(self) -> None:
        # The text may come from an effect. Characters that a header or the database refuses would stop the whole batch.
        storable = self.detail.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
        object.__setattr__(self, "detail", storable[:MAX_DETAIL_CHARACTERS])


class RefusedDeadLetter(NamedTuple):
    """A dead letter that its topic refused, the record to send later, and the reason of the refusal."""

    dead_letter: DeadLetter
    record: OutgoingRecord
    refusal: Refusal


def added_headers(letter: DeadLetter, *, consumer: str, run_id: str) -> Headers:
    """Build the headers that are added to a dead-letter record.

    Args:
        letter: The message and the reason.
        consumer: The name of the consumer that rejected the message.
        run_id: The run that rejected it.

    Returns:
        Names with the prefix `dlq.` and values as UTF-8 text.
    """
    message = letter.message
    added = {
        "reason": letter.reason,
        "detail": letter.detail,
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "timestamp": _timestamp(message),
        "consumer": consumer,
        "run_id": run_id,
        **({"landed_text": "true"} if letter.landed_text else {}),
        **({"unreadable": "; ".join(message.unreadable)} if message.unreadable else {}),
    }
    return [(PREFIX + name, value.encode()) for name, value in added.items()]


def _timestamp(message: Message) -> str:
    if message.timestamp is not None:
        return message.timestamp.isoformat()
    return "" if message.timestamp_ms is None else f"{message.timestamp_ms} ms"


class DeadLetterWriter:
    """Writes the dead letters of one consumer's run.

    Args:
        consumer: The consumer's name, for the headers and the outbox.
        run_id: The run, for the headers.
        producer: Sends the records.
    """

    def __init__(self, consumer: str, run_id: str, producer: AcknowledgedProducer) -> None:
        self._consumer = consumer
        self._run_id = run_id
        self._producer = producer
        # {topic: why it accepts no record now; None when it may accept records}. Only topics that were looked up.
        self._refusing: dict[str, Refusal | None] = {}

    def publish(self, letters: Sequence[DeadLetter]) -> list[RefusedDeadLetter]:
        """Write dead letters to their topics.

        Args:
            letters: Dead letters of any topics, in order.

        Returns:
            The dead letters that were not acknowledged. They are lost unless the caller passes them to `add_to_outbox`,
            in the transaction that records the outcomes of their messages. The others are safe.

        Raises:
            SQLAlchemyError: The database failed.
        """
        if not letters:
            return []
        for letter in letters:
            message = letter.message
            log.warning(
                "dead letter: topic=%s partition=%d offset=%d reason=%s detail=%s%s",
                message.topic,
                message.partition,
                message.offset,
                letter.reason,
                letter.detail,
                f" unreadable={message.unreadable}" if message.unreadable else "",
            )
        tried: list[DeadLetter] = []
        untried: list[tuple[DeadLetter, Refusal]] = []
        for letter in letters:
            refusal = self._why_refusing(letter.message.topic + DEAD_LETTER_SUFFIX)
            if refusal is None:
                tried.append(letter)
            else:
                untried.append((letter, refusal))
        first_tries = self._attempt(tried, [self._whole_record(letter) for letter in tried])
        refused = [each for each in first_tries if not each.refusal.is_size_error]
        too_large = [each.dead_letter for each in first_tries if each.refusal.is_size_error]
        refused += self._attempt(too_large, [self._stub(letter) for letter in too_large])
        for each in refused:
            self._refusing[each.record.topic] = each.refusal
        for letter, refusal in untried:
            refused.append(RefusedDeadLetter(letter, self._whole_record(letter), refusal))
        return [each if _size(each.record) <= MAX_WAITING_BYTES else self._with_stub(each) for each in refused]

    def _with_stub(self, refused: RefusedDeadLetter) -> RefusedDeadLetter:
        return RefusedDeadLetter(refused.dead_letter, self._stub(refused.dead_letter), refused.refusal)

    def _attempt(self, letters: Sequence[DeadLetter], records: Sequence[OutgoingRecord]) -> list[RefusedDeadLetter]:
        """Send records of dead letters; returns those that were not acknowledged."""
        if not letters:
            return []
        refusals = self._producer.try_sending(records, seconds=ANSWER_SECONDS)
        return [
            RefusedDeadLetter(letter, record, refusal)
            for letter, record, refusal in zip(letters, records, refusals, strict=True)
            if refusal is not None
        ]

    def _why_refusing(self, topic: str) -> Refusal | None:
        """Why a dead-letter topic accepts no record now; None when it may accept records.

        If records of earlier runs wait in the outbox, their topic counts as refusing, because each attempt to write to
        it takes seconds. Only the topic's own route is looked up: the consumer may have millions of other pending rows.
        """
        if topic not in self._refusing:
            pending = select(outbox_table.c.sequence).where(
                outbox_table.c.consumer == self._consumer,
                outbox_table.c.kind == "message",
                outbox_table.c.destination == topic,
                outbox_table.c.state == "pending",
            )
            with begin() as connection:
                has_pending = connection.execute(pending.limit(1)).first() is not None
            self._refusing[topic] = Refusal("", "earlier dead letters of this topic wait") if has_pending else None
        return self._refusing[topic]

    def _whole_record(self, letter: DeadLetter) -> OutgoingRecord:
        message = letter.message
        headers = [*message.headers, *added_headers(letter, consumer=self._consumer, run_id=self._run_id)]
        return OutgoingRecord(message.topic + DEAD_LETTER_SUFFIX, message.key, message.value, headers)

    def _stub(self, letter: DeadLetter) -> OutgoingRecord:
        """The stub of a record that is too large: the first bytes of its value, and headers with size and digest."""
        message = letter.message
        value = message.value or b""
        keeps_key = len(message.key or b"") <= MAX_KEY_BYTES
        keeps_headers = sum(len(n.encode()) + len(v or b"") for n, v in message.headers) <= MAX_HEADER_BYTES
        left_out = [name for name, kept in (("key", keeps_key), ("headers", keeps_headers)) if not kept]
        added = {
            "stub": "true",
            "size": str(message.size_bytes),
            "value_size": str(len(value)),
            "value_sha256": hashlib.sha256(value).hexdigest(),
            **({"left_out": ", ".join(left_out)} if left_out else {}),
        }
        headers = [
            *(message.headers if keeps_headers else ()),
            *added_headers(letter, consumer=self._consumer, run_id=self._run_id),
            *((PREFIX + name, text.encode()) for name, text in added.items()),
        ]
        head = None if message.value is None else value[:HEAD_BYTES]
        return OutgoingRecord(message.topic + DEAD_LETTER_SUFFIX, message.key if keeps_key else None, head, headers)

    def add_to_outbox(self, connection: Connection, refused: Iterable[RefusedDeadLetter]) -> None:
        """Add dead letters that their topic refused to the outbox, which delivers them later, and open an alarm.

        Args:
            connection: A connection in the transaction that records the outcomes of the messages.
            refused: The return value of `publish`.
        """
        topics: dict[str, tuple[int, Refusal]] = {}
        for each in refused:
            record = each.record
            outbox.add_record(
                connection,
                consumer=self._consumer,
                topic=record.topic,
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
            number, _ = topics.get(record.topic, (0, each.refusal))
            topics[record.topic] = (number + 1, each.refusal)
        for topic, (number, refusal) in topics.items():
            remedy = _REMEDIES.get(refusal.code, _OTHER_REMEDY)
            remedy = remedy.format(connection=f"connection {self._producer.conn_id}")
            text = (
                f"{number} or more dead letters of consumer {self._consumer} cannot be written to {topic} "
                f"({refusal.code} {refusal.text}): {remedy}. {_THEY_WAIT}"
            )
            open_alarm(connection, topic, AlarmKind.dead_letters_wait, text)


def alarm_conflicts(connection: Connection, source: str, letters: Iterable[DeadLetter]) -> None:
    """Open the alarm about conflicting events if any of these dead letters has the id of another event.

    Args:
        connection: A connection in the transaction that records the dead letters.
        source: The consumer's name.
        letters: The dead letters that this transaction has recorded for the first time.
    """
    conflicts = [letter for letter in letters if letter.reason == Reason.conflict]
    if conflicts:
        first = conflicts[0]
        text = (
            f"{len(conflicts)} or more events have the id of a handled event, but other content; the first is "
            f"{first.message} ({first.detail}). The handled event stays in effect; the others are dead letters. Find "
            "out which event is right and who produces to the topic, then close this alarm"
        )
        open_alarm(connection, source, AlarmKind.conflicting_events, text)


def watch_waiting_dead_letters(connection: Connection) -> None:
    """Open the alarm of each dead-letter topic with pending or failed rows in the outbox; close it for the others.

    `DeadLetterWriter.add_to_outbox` opens the alarm too, but only when it adds a dead letter. The alarm may have been
    closed since: by a person, or by this check, which does not see the rows of a transaction that is not committed yet.

    Args:
        connection: A connection to the operational database, in a transaction.
    """
    is_open = (alarms.c.kind == AlarmKind.dead_letters_wait, alarms.c.closed_at.is_(None))
    known = set(connection.execute(select(alarms.c.source).where(*is_open)).scalars())
    undelivered = outbox_delivery.undelivered_messages(connection, DEAD_LETTER_SUFFIX)
    for topic in sorted(undelivered.keys() - known):
        text = _waiting_text(connection, topic, undelivered[topic])
        open_alarm(connection, topic, AlarmKind.dead_letters_wait, text)
    for topic in sorted(known - undelivered.keys()):
        close_alarm(connection, topic, AlarmKind.dead_letters_wait)


def _waiting_text(connection: Connection, topic: str, consumers: Sequence[str]) -> str:
    errors = []
    # A statement for each state: each state has its own partial index, and a statement for both reads the whole table.
    for state in ("pending", "failed"):
        last_error = select(func.max(outbox_table.c.last_error)).where(
            outbox_table.c.consumer.in_(consumers),
            outbox_table.c.kind == "message",
            outbox_table.c.destination == topic,
            outbox_table.c.state == state,
        )
        errors.append(connection.scalar(last_error))
    error = next(filter(None, errors), "their delivery was not tried yet")
    remedy = next((remedy for code, remedy in _REMEDIES.items() if code in error.split()), _OTHER_REMEDY)
    remedy = remedy.format(connection=f"the connection of consumer {consumers[0]}")
    if not errors[0] and errors[1]:
        remedy += ", then set the failed rows to pending (docs/runbooks/outbox-failed.md)"
    named = ", ".join(consumers[:MAX_NAMED])
    return f"dead letters of consumer {named} cannot be written to {topic} ({error}): {remedy}. {_THEY_WAIT}"


def _size(record: OutgoingRecord) -> int:
    return len(record.key or b"") + len(record.value or b"") + sum(len(n) + len(v or b"") for n, v in record.headers)
