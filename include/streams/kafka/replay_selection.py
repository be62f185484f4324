"""The parameters of a replay."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from include.streams.contracts import Reason
from include.streams.kafka.dead_letter_records import RecordHeaders


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
        limit: The most messages to send. Messages that still fail do not count: otherwise they alone could use up the
            limit.
        again: Also replay messages that became dead letters again after a replay.
        dry_run: Report the outcomes, but send and record nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str
    reason: Reason | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    partition: NonNegativeInt | None = None
    from_offset: NonNegativeInt | None = None
    until_offset: NonNegativeInt | None = None
    limit: PositiveInt = 100
    again: bool = False
    dry_run: bool = True

    @model_validator(mode="after")
    def _windows_are_not_empty(self) -> Selection:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("the window of time is empty: since must lie before until")
        if self.until_offset is not None and (self.from_offset or 0) >= self.until_offset:
            raise ValueError("the window of offsets is empty: from_offset must be below until_offset")
        if self.partition is None and (self.from_offset, self.until_offset) != (None, None):
            raise ValueError("a window of offsets needs a partition")
        return self

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
