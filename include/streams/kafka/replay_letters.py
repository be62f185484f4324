"""A dead letter record split into the original record and its envelope, the `dlq.` headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from include.streams.contracts import Reason
from include.streams.kafka.dead_letters import PREFIX
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import Headers

REPLAY_PREFIX = "replay."
IDEMPOTENCY_KEY = "idempotency-key"
OF, COUNT, RUN_ID = (REPLAY_PREFIX + name for name in ("of", "count", "run_id"))

_INTEGER = re.compile(r"-1|[0-9]{1,18}")
# The longest consumer name or timestamp text; an envelope with a longer text was not written by this project.
_MAX_CHARACTERS = 255


class Look(StrEnum):
    """The outcome of a dead letter in a replay."""

    replayed = "replayed"
    would_replay = "would_replay"
    # Breaks its contract after all repairs. Kept; every later run tries it again, because the code may have changed.
    failing = "failing"
    # The message became a dead letter again after a replay. Kept until a run has the parameter `again`.
    failed_again = "failed_again"
    # No envelope, or an envelope that this project did not write. Kept.
    unreadable = "unreadable"
    # Another dead letter of the same message was replayed.
    duplicate = "duplicate"
    # An earlier run has replayed it.
    replayed_before = "replayed_before"
    # The message passes its contract, but the run has reached its limit.
    over_limit = "over_limit"


@dataclass(frozen=True)
class Envelope:
    """Why a message became a dead letter, its coordinates, and the consumer that rejected it.

    Attributes:
        reason: Why the message was rejected.
        partition: Its partition on its own topic; -1 when it never was in Kafka (a record of a source that could not be
            converted to a message).
        offset: Its offset there; -1 as for `partition`.
        timestamp: Its timestamp as text; empty when it has none.
        consumer: The consumer's name.
        stub_of: For a stub, the SHA-256 in hex of the complete value.
        landed_text: Whether the letter has the text from the landing table only, without the original's key and
            headers.
    """

    reason: Reason
    partition: int
    offset: int
    timestamp: str
    consumer: str
    # Set for a stub: the value was too large for the dead-letter topic, which holds only its first bytes.
    stub_of: str | None = None
    landed_text: bool = False

    @property
    def was_on_the_topic(self) -> bool:
        return self.partition >= 0 and self.offset >= 0

    @property
    def source(self) -> tuple[int, int, str, str] | None:
        """The identity that two dead letters of one message share, such as after a crash; None without coordinates.

        It includes the timestamp, because a recreated topic uses the same offsets again. It includes the consumer: a
        message that two consumers rejected, at different times and for different reasons, is replayed for each.
        """
        if not self.was_on_the_topic:
            return None
        return self.partition, self.offset, self.timestamp, self.consumer


@dataclass(frozen=True)
class Letter:
    """A record of a dead-letter topic.

    Attributes:
        record: The record as it is on the dead-letter topic.
        envelope: Its envelope; None when it is missing or cannot be read.
        headers: The headers of the original message.
    """

    record: Message
    envelope: Envelope | None
    # Without the envelope and the outbox's idempotency key.
    headers: tuple[tuple[str, bytes | None], ...]

    @classmethod
    def of(cls, record: Message, topic: str) -> Letter:
        """Split a record of a dead-letter topic.

        Args:
            record: The record.
            topic: The name of the topic whose dead letters are replayed. A dead letter of another topic is unreadable.
        """
        # The envelope comes after the original's headers, which may have the same names if it is a copied dead letter.
        starts = [n for n, (name, _) in enumerate(record.headers) if name == PREFIX + "reason"]
        start = starts[-1] if starts else len(record.headers)
        added = {name: value for name, value in record.headers[start:] if name.startswith(PREFIX)}
        # A dead letter that has waited in the outbox also carries the outbox's idempotency key.
        behind = tuple(
            (name, value)
            for name, value in record.headers[start:]
            if not name.startswith(PREFIX) and name != IDEMPOTENCY_KEY
        )
        return cls(record, _envelope(added, topic), record.headers[:start] + behind)

    @property
    def replays(self) -> int:
        """The number of replays of the message before it became this dead letter."""
        counts = [value or b"" for name, value in self.headers if name == COUNT]
        if not counts:
            return 0
        # A replay writes a number here. Any other content still means at least one replay.
        return max(1, int(counts[-1])) if re.fullmatch(rb"[0-9]{1,9}", counts[-1]) else 1

    def headers_for_replay(self, topic: str, run_id: str) -> Headers:
        """The original headers plus `replay.of`, `replay.count` and `replay.run_id`.

        Args:
            topic: The name of the topic that the message goes back to.
            run_id: The run that replays it.
        """
        envelope = self.envelope
        # A message that never was on the topic is named by the coordinates of its dead letter.
        was_there = envelope and envelope.was_on_the_topic
        of = f"{topic}-{envelope.partition}@{envelope.offset}" if envelope and was_there else str(self.record)
        added = {OF: of, COUNT: str(self.replays + 1), RUN_ID: run_id}
        kept = [header for header in self.headers if header[0] not in added]
        return kept + [(name, value.encode()) for name, value in added.items()]


def _envelope(added: dict[str, bytes | None], topic: str) -> Envelope | None:
    """The envelope, or None when a header is missing or differs from the format that `dead_letters` writes.

    Other producers may write to the dead-letter topic too.
    """
    names = ("reason", "topic", "partition", "offset", "timestamp", "consumer")
    texts = [_text(added.get(PREFIX + name)) for name in names]
    if any(text is None for text in texts):
        return None
    reason, found_topic, partition, offset, timestamp, consumer = (text or "" for text in texts)
    if reason not in set(Reason) or found_topic != topic:
        return None
    if not _INTEGER.fullmatch(partition) or not _INTEGER.fullmatch(offset):
        return None
    stub_of = None
    if PREFIX + "stub" in added:
        stub_of = _text(added.get(PREFIX + "value_sha256"))
        if stub_of is None:
            return None
    landed_text = PREFIX + "landed_text" in added
    return Envelope(Reason(reason), int(partition), int(offset), timestamp, consumer, stub_of, landed_text)


def _text(value: bytes | None) -> str | None:
    """The text, or None when it cannot be stored or could be harmful in a terminal (control characters)."""
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if value is not None and text.isprintable() and len(text) <= _MAX_CHARACTERS else None


def size_bytes(key: bytes | None, value: bytes, headers: Headers) -> int:
    """The maximum number of bytes of a record in a batch of its own."""
    # A header has two lengths of up to five bytes each. The header of a batch takes 61 bytes, a record's at most 32.
    in_headers = sum(len(name.encode()) + len(content or b"") + 10 for name, content in headers)
    return len(key or b"") + len(value) + in_headers + 100
