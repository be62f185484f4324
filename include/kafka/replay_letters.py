"""A dead letter as a replay sees it: the original record again, and what its envelope says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from include.contracts import Reason
from include.kafka.dead_letters import PREFIX
from include.kafka.messages import Message
from include.kafka.producer import Headers

REPLAY_PREFIX = "replay."
IDEMPOTENCY_KEY = "idempotency-key"
OF, COUNT, RUN_ID = (REPLAY_PREFIX + name for name in ("of", "count", "run_id"))

_INTEGER = re.compile(r"-1|[0-9]{1,18}")
# The longest name of a consumer or text of a time; more is no envelope of ours.
_MAX_CHARACTERS = 255


class Look(StrEnum):
    """What a replay made of a dead letter."""

    replayed = "replayed"
    would_replay = "would_replay"
    # Breaks its contract after all repairs: kept, and tried again by every later run, for the code may have changed.
    failing = "failing"
    # It came back as a dead letter after a replay: kept, until a run is asked to replay it again.
    failed_again = "failed_again"
    # No envelope, or not one of ours: kept.
    unreadable = "unreadable"
    # Another dead letter of the same message was replayed.
    duplicate = "duplicate"
    # By an earlier run.
    replayed_before = "replayed_before"
    # It passes, and the run has replayed as many as it may.
    over_limit = "over_limit"


@dataclass(frozen=True)
class Envelope:
    """Why a message became a dead letter, where it was, and whose.

    partition and offset are -1 for what never was in Kafka: a source's record that could not be made a message.
    """

    reason: Reason
    partition: int
    offset: int
    timestamp: str
    consumer: str
    # Of a stub, the SHA-256 of the value that was too large to be kept: the letter holds its beginning only.
    stub_of: str | None = None

    @property
    def was_on_the_topic(self) -> bool:
        return self.partition >= 0 and self.offset >= 0

    @property
    def source(self) -> tuple[int, int, str, str] | None:
        """What two dead letters of one message have in common, as after a crash; None when nothing tells.

        With the timestamp, because a topic that was made again has the same offsets once more, and with the consumer:
        what two of them rejected, at different times and for different reasons, is replayed for each.
        """
        if not self.was_on_the_topic:
            return None
        return self.partition, self.offset, self.timestamp, self.consumer


@dataclass(frozen=True)
class Letter:
    """A record of a dead-letter topic; `envelope` is None when it has none that can be read."""

    record: Message
    envelope: Envelope | None
    # The original's, without the envelope.
    headers: tuple[tuple[str, bytes | None], ...]

    @classmethod
    def of(cls, record: Message, topic: str) -> Letter:
        """`topic` is the topic whose dead letters these are: a letter of another one is unreadable here."""
        # Added behind the original's own headers, which may have such names too: those of a copied dead letter.
        starts = [n for n, (name, _) in enumerate(record.headers) if name == PREFIX + "reason"]
        start = starts[-1] if starts else len(record.headers)
        added = {name: value for name, value in record.headers[start:] if name.startswith(PREFIX)}
        # A letter that has waited in the outbox carries its key.
        behind = tuple(
            (name, value)
            for name, value in record.headers[start:]
            if not name.startswith(PREFIX) and name != IDEMPOTENCY_KEY
        )
        return cls(record, _envelope(added, topic), record.headers[:start] + behind)

    @property
    def replays(self) -> int:
        """How often the message had been replayed when it became this dead letter."""
        counts = [value or b"" for name, value in self.headers if name == COUNT]
        if not counts:
            return 0
        # Written by a replay, so a number; whatever else it is, it is not zero.
        return max(1, int(counts[-1])) if re.fullmatch(rb"[0-9]{1,9}", counts[-1]) else 1

    def headers_for_replay(self, topic: str, run_id: str) -> Headers:
        """The original headers, and those that say that this is a replay, of what, and which one."""
        envelope = self.envelope
        # What never was on the topic is known by its dead letter.
        was_there = envelope and envelope.was_on_the_topic
        of = f"{topic}-{envelope.partition}@{envelope.offset}" if envelope and was_there else str(self.record)
        added = {OF: of, COUNT: str(self.replays + 1), RUN_ID: run_id}
        kept = [header for header in self.headers if header[0] not in added]
        return kept + [(name, value.encode()) for name, value in added.items()]


def _envelope(added: dict[str, bytes | None], topic: str) -> Envelope | None:
    """None when something is missing or is not what `dead_letters` writes: others may produce to the topic too."""
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
    return Envelope(Reason(reason), int(partition), int(offset), timestamp, consumer, stub_of)


def _text(value: bytes | None) -> str | None:
    """None for what could not be stored, or would do harm in a terminal."""
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if value is not None and text.isprintable() and len(text) <= _MAX_CHARACTERS else None


def size_bytes(key: bytes | None, value: bytes, headers: Headers) -> int:
    """What a record takes in a batch, at most."""
    # A header has two lengths of up to five bytes each; the batch's own head takes 61 bytes, a record's at most 32.
    in_headers = sum(len(name.encode()) + len(content or b"") + 10 for name, content in headers)
    return len(key or b"") + len(value) + in_headers + 100
