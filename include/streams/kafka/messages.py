"""The message that an effect receives."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import confluent_kafka

    from include.streams.contracts import Contract


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rejected(Exception):
    """Raised by an effect: this message can never be handled. It goes to the dead-letter topic with this text.

    For a failure that a retry may fix (such as a service that is down), raise any other exception.
    """


@dataclass(frozen=True)
class Message:
    """One record: its coordinates, its content, and its event if it meets its contract.

    Attributes:
        topic: The topic's name.
        topic_id: The identity of the log that the record was read from.
        partition: The partition's number.
        offset: The record's offset in the partition.
        timestamp: The record's timestamp in UTC: create time or log append time, as the topic is configured. None when
            the record has no timestamp, or one outside the years 1 to 9999 (a producer that writes microseconds).
        key: The record's key.
        value: The record's value.
        headers: Names and values in the record's order; empty when they cannot be read.
        event: The event that the value holds; None until the value is parsed.
        timestamp_ms: The timestamp as the record holds it, in milliseconds since 1970; None when it has none.
        unreadable: A text for people about each part that could not be read (headers, timestamp).
    """

    topic: str
    topic_id: str
    partition: int
    offset: int
    timestamp: datetime | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    event: "Contract | Any" = None
    timestamp_ms: int | None = None
    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: "confluent_kafka.Message", topic_id: str) -> "Message":
        """Convert a record of the Kafka client to a message.

        Args:
            record: A record without an error, as `Consumer.poll` returns it.
            topic_id: The identity of the log that it was read from.

        Returns:
            A message for every record that a broker accepts. An exception here would stop the whole claim at every
            retry, so parts that cannot be read are named in `unreadable`.
        """
        kind, milliseconds = record.timestamp()
        # 0 is TIMESTAMP_NOT_AVAILABLE; -1 is the value for "no timestamp" in Kafka's record format.
        timestamp_ms = milliseconds if kind and milliseconds != -1 else None
        timestamp = None if timestamp_ms is None else _time(timestamp_ms)
        # The client declares these as optional: a record that was not produced yet has no partition and no offset.
        topic, partition, offset = cast(Any, (record.topic(), record.partition(), record.offset()))
        headers = _headers(record)
        unreadable = []
        if headers is None:
            unreadable.append("headers: the name of one is not UTF-8")
        if timestamp is None and timestamp_ms is not None:
            unreadable.append(f"timestamp: {timestamp_ms} ms is outside the years 1 to 9999")
        return cls(
            topic=topic,
            topic_id=topic_id,
            partition=partition,
            offset=offset,
            timestamp=timestamp,
            key=record.key(),
            value=record.value(),
            headers=headers or (),
            timestamp_ms=timestamp_ms,
            unreadable=tuple(unreadable),
        )

    def with_event(self, event: "Contract") -> "Message":
        """A copy of the message with the event that its value holds.

        Args:
            event: The event, from `Topic.parse`.

        Returns:
            The copy.
        """
        return replace(self, event=event)

    @property
    def size_bytes(self) -> int:
        """The bytes of key, value and headers, without the client's own structures."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    @property
    def coordinates(self) -> tuple[str, int, int]:
        """(topic id, partition, offset), unique among all records."""
        return self.topic_id, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}@{self.offset}"


def _time(milliseconds: int) -> datetime | None:
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def _headers(record: "confluent_kafka.Message") -> tuple[tuple[str, bytes | None], ...] | None:
    """The record's headers, or None when they cannot be read.

    If a header name is not UTF-8, the client returns a list with a NULL entry AND leaves a Python exception set. A call
    that the interpreter has specialized does not check for this exception, so it appears later at an unrelated line. A
    call through `partial` checks for it.
    """
    try:
        return tuple(partial(record.headers)() or ())  # type: ignore[arg-type]
    except Exception:
        return None
