"""A message as effects see it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import confluent_kafka

    from include.contracts import Contract


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rejected(Exception):
    """Raised by an effect: this message can never be handled. It goes to the dead-letter topic with this text.

    For what a retry could mend (a service that is away), raise anything else.
    """


@dataclass(frozen=True)
class Message:
    """One record: its coordinates, what it carried, and the event when it kept its contract.

    `timestamp` is the record's: when the producer made it, or the broker took it (the topic decides); None when the
    record has none, or one outside the years 1 to 9999 (a producer that writes microseconds). `timestamp_ms` is the
    number that the record holds. `unreadable` names, for people, what could not be read; the headers are empty then.
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
        """The message in a record of the client's.

        Args:
            record: a record without an error, as `Consumer.poll` returns it.
            topic_id: the identity of the log that it was read from.

        Returns:
            The message, for every record that a broker accepts: an exception here would stop its whole claim, at
            every retry. What cannot be read is named in `unreadable`.
        """
        kind, milliseconds = record.timestamp()
        # 0 is TIMESTAMP_NOT_AVAILABLE; -1 is how Kafka itself writes "no timestamp".
        timestamp_ms = milliseconds if kind and milliseconds != -1 else None
        timestamp = None if timestamp_ms is None else _time(timestamp_ms)
        # The client types these as optional, for records that were never produced.
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
        """The same message, with the event that its value holds."""
        return replace(self, event=event)

    @property
    def size_bytes(self) -> int:
        """What the record takes in memory, without the client's own structures."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    @property
    def coordinates(self) -> tuple[str, int, int]:
        """(topic id, partition, offset): what no other record ever has."""
        return self.topic_id, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}@{self.offset}"


def _time(milliseconds: int) -> datetime | None:
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def _headers(record: "confluent_kafka.Message") -> tuple[tuple[str, bytes | None], ...] | None:
    """None when they cannot be read.

    For a name that is not UTF-8 the client returns a list with a hole AND leaves an exception behind. A call that
    Python has specialised does not notice; the exception then comes up anywhere later. `partial` notices.
    """
    try:
        return tuple(partial(record.headers)() or ())  # type: ignore[arg-type]
    except Exception:
        return None
