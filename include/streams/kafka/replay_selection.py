"""The parameters of a replay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property

from pydantic import AwareDatetime, BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from include.streams.contracts import Reason
from include.streams.kafka.dead_letter_records import DeadLetterRecord, RecordHeaders

_PLACE = re.compile(r"[0-9]{1,9}@[0-9]{1,18}")


class Selection(BaseModel):
    """The parameters of a run: which dead letters to process, and how.

    The window of times and the window of offsets exclude their ends. If a window is given, a dead letter without the
    time or the coordinates is outside of it.

    Attributes:
        topic: The topic whose dead letters are replayed.
        reason: Only dead letters with this reason; None for all.
        since: Only messages that became dead letters at this time or later.
        until: Only messages that became dead letters before this time.
        partition: Only messages that had this partition on their own topic, as logs and the inbox show it.
        from_offset: Only messages at this offset of that partition or later.
        until_offset: Only messages before this offset of that partition.
        letters: Only these dead letters, each "partition@offset" in the dead-letter topic; empty for all.
        limit: The most messages to send. Messages that still fail do not count: otherwise they alone could use up the
            limit.
        again: Also replay messages that became dead letters again after a replay.
        dry_run: Report the outcomes, but send and record nothing.
        why: Why the messages are replayed; for the record.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str
    reason: Reason | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    partition: NonNegativeInt | None = None
    from_offset: NonNegativeInt | None = None
    until_offset: NonNegativeInt | None = None
    letters: tuple[str, ...] = ()
    limit: PositiveInt = 100
    again: bool = False
    dry_run: bool = True
    why: str = ""

    @model_validator(mode="after")
    def _windows_are_not_empty(self) -> Selection:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("the window of time is empty: since must lie before until")
        if self.until_offset is not None and (self.from_offset or 0) >= self.until_offset:
            raise ValueError("the window of offsets is empty: from_offset must be below until_offset")
        if self.partition is None and (self.from_offset, self.until_offset) != (None, None):
            raise ValueError("a window of offsets needs a partition")
        if wrong := [letter for letter in self.letters if not _PLACE.fullmatch(letter)]:
            raise ValueError(f"{wrong[0][:40]!r} is no dead letter: write partition@offset, such as 0@42")
        return self

    @cached_property
    def places(self) -> frozenset[tuple[int, int]] | None:
        """(partition, offset) in the dead-letter topic of the named dead letters; None if none is named."""
        places = (letter.split("@") for letter in self.letters)
        return frozenset((int(partition), int(offset)) for partition, offset in places) or None

    def of(self, letters: Iterable[DeadLetterRecord]) -> list[DeadLetterRecord]:
        """The selected dead letters.

        Args:
            letters: Dead letters.
        """
        return [
            letter
            for letter in letters
            if (self.places is None or (letter.record.partition, letter.record.offset) in self.places)
            and self.takes(letter.record.timestamp, letter.origin)
        ]

    def takes(self, at: datetime | None, origin: RecordHeaders | None) -> bool:
        """Whether a dead letter is in the windows and has the selected reason.

        Args:
            at: The time of the dead-letter record; None when it has none.
            origin: Its `dlq.` headers; None when they cannot be read.
        """
        if self.since and (at is None or at < self.since):
            return False
        if self.until and (at is None or at >= self.until):
            return False
        if origin is None:
            return self.reason is None and self.partition is None
        return (
            self.reason in (None, origin.reason)
            and self.partition in (None, origin.partition)
            and (self.from_offset is None or origin.offset >= self.from_offset)
            and (self.until_offset is None or origin.offset < self.until_offset)
        )
