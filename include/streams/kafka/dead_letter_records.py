"""Records of a dead-letter topic, split into the original record and the `dlq.` headers that were added to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from include.streams.contracts import Reason
from include.streams.kafka.dead_letters import PREFIX
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import Headers

OF, COUNT, RUN_ID = "replay.of", "replay.count", "replay.run_id"
IDEMPOTENCY_KEY = "idempotency-key"

# The longest consumer name or timestamp text; headers with a longer text were not written by this project.
_MAX_CHARACTERS = 255


@dataclass(frozen=True)
class RecordHeaders:
    """The `dlq.` headers of a dead-letter record: why the message was rejected, by whom, and where it was.

    Attributes:
        reason: Why the message was rejected.
        partition: Its partition on its own topic; -1 when it never was in Kafka (a record of a source that could not be
            converted to a message).
        offset: Its offset in that partition; -1 as for `partition`.
        timestamp: Its timestamp as text; empty when it has none.
        consumer: The consumer that rejected it.
        stub_of: The SHA-256 in hex of the complete value, if the record has only its first bytes (a stub).
        landed_text: The record has only the text from the landing table, without the original's key and headers.
    """

    reason: Reason
    partition: int
    offset: int
    timestamp: str
    consumer: str
    stub_of: str | None = None
    landed_text: bool = False

    @property
    def was_on_the_topic(self) -> bool:
        """Whether the message was in Kafka before it became a dead letter."""
        return self.partition >= 0 and self.offset >= 0

    @property
    def source(self) -> tuple[int, int, str, str] | None:
        """(partition, offset, timestamp, consumer): the same for all dead letters of one message (after a crash).

        None if the message was never on the topic. The timestamp is included because a recreated topic uses the same
        offsets again. The consumer is included because a message that two consumers rejected, at different times and
        for different reasons, is replayed for each.
        """
        return (self.partition, self.offset, self.timestamp, self.consumer) if self.was_on_the_topic else None


@dataclass(frozen=True)
class DeadLetterRecord:
    """A record of a dead-letter topic.

    Attributes:
        record: The record as it is on the dead-letter topic.
        origin: Its `dlq.` headers; None when they are missing, or are not as `dead_letters` writes them.
        headers: The headers of the original message.
    """

    record: Message
    origin: RecordHeaders | None
    headers: tuple[tuple[str, bytes | None], ...]

    @classmethod
    def of(cls, record: Message, topic: str) -> DeadLetterRecord:
        """Split a record of a dead-letter topic.

        Args:
            record: The record.
            topic: The topic that the dead-letter topic belongs to. A dead letter of another topic has no `origin`.
        """
        # The added headers begin at the last `dlq.reason`. If a dead letter was copied to the topic and became a dead
        # letter again, its own headers also contain `dlq.` headers.
        starts = [n for n, (name, _) in enumerate(record.headers) if name == PREFIX + "reason"]
        start = starts[-1] if starts else len(record.headers)
        added = {name.removeprefix(PREFIX): v for name, v in record.headers[start:] if name.startswith(PREFIX)}
        # A dead letter that has waited in the outbox also has the outbox's idempotency key.
        others = [(n, v) for n, v in record.headers[start:] if not n.startswith(PREFIX) and n != IDEMPOTENCY_KEY]
        return cls(record, _origin(added, topic), (*record.headers[:start], *others))

    @property
    def replays(self) -> int:
        """How often the message was replayed before it became this dead letter."""
        counts = [value or b"" for name, value in self.headers if name == COUNT]
        if not counts:
            return 0
        # A replay writes a number here. Any other content still means at least one replay.
        return max(1, int(counts[-1])) if re.fullmatch(rb"[0-9]{1,9}", counts[-1]) else 1

    def headers_for_replay(self, topic: str, run_id: str) -> Headers:
        """The original headers plus `replay.of`, `replay.count` and `replay.run_id`.

        Args:
            topic: The topic to which the message is sent.
            run_id: The run that replays it.
        """
        origin = self.origin
        # A message that was never on the topic is named by the coordinates of its dead letter.
        if origin is not None and origin.was_on_the_topic:
            source = f"{topic}-{origin.partition}@{origin.offset}"
        else:
            source = str(self.record)
        added = {OF: source, COUNT: str(self.replays + 1), RUN_ID: run_id}
        kept = [header for header in self.headers if header[0] not in added]
        return kept + [(name, value.encode()) for name, value in added.items()]


def _origin(added: Mapping[str, bytes | None], topic: str) -> RecordHeaders | None:
    """The headers as `dead_letters` writes them, or None: other producers may write to the dead-letter topic too."""
    try:
        if _text(added["topic"]) != topic:
            return None
        return RecordHeaders(
            reason=Reason(_text(added["reason"])),
            partition=_number(added["partition"]),
            offset=_number(added["offset"]),
            timestamp=_text(added["timestamp"]),
            consumer=_text(added["consumer"]),
            stub_of=_text(added["value_sha256"]) if "stub" in added else None,
            landed_text="landed_text" in added,
        )
    except (KeyError, ValueError):
        return None


def _text(value: bytes | None) -> str:
    """Raises ValueError for a text that cannot be stored, or could be harmful in a terminal (control characters)."""
    if value is None or len(text := value.decode()) > _MAX_CHARACTERS or not text.isprintable():
        raise ValueError("not a text of this project")
    return text


def _number(value: bytes | None) -> int:
    if not re.fullmatch(rb"-1|[0-9]{1,18}", value or b""):
        raise ValueError("not an offset")
    return int(value or b"")
