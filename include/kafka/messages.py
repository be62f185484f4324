"""A message as effects see it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import confluent_kafka

    from include.contracts import Contract


class Rejected(Exception):
    """Raised by an effect: this message can never be handled. It goes to the dead-letter topic with this text.

    For what a retry could mend (a service that is away), raise anything else.
    """


@dataclass(frozen=True)
class Message:
    """One record: its coordinates, what it carried, and the event when it kept its contract.

    `timestamp` is the record's: when the producer made it, or the broker took it (the topic decides); None when the
    record has none.
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

    @classmethod
    def of(cls, record: "confluent_kafka.Message", topic_id: str) -> "Message":
        kind, milliseconds = record.timestamp()
        # The client types these as optional, for records that were never produced.
        topic, partition, offset = cast(Any, (record.topic(), record.partition(), record.offset()))
        headers = cast(Any, record.headers())
        return cls(
            topic=topic,
            topic_id=topic_id,
            partition=partition,
            offset=offset,
            # 0 is TIMESTAMP_NOT_AVAILABLE.
            timestamp=datetime.fromtimestamp(milliseconds / 1000, UTC) if kind else None,
            key=record.key(),
            value=record.value(),
            headers=tuple(headers or ()),
        )

    def with_event(self, event: "Contract") -> "Message":
        """The same message, with the event that its value holds."""
        return replace(self, event=event)

    @property
    def coordinates(self) -> tuple[str, int, int]:
        """(topic id, partition, offset): what no other record ever has."""
        return self.topic_id, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}@{self.offset}"
