"""The values that pass through XCom between tasks of the event lane. All are JSON; ends of ranges are exclusive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from include.streams.kafka.offsets import OffsetRange


class TopicRange(TypedDict):
    """Offsets [start, end) of a partition: the fields of an `OffsetRange`."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int


class Chunk(TypedDict):
    """A part of a claim, which one mapped task handles."""

    claim_id: int
    ranges: list[TopicRange]


def as_chunk(claim_id: int, ranges: Iterable[OffsetRange]) -> Chunk:
    """The ranges of a claim as a chunk.

    Args:
        claim_id: The claim.
        ranges: Ranges of the claim.
    """
    return {"claim_id": claim_id, "ranges": [as_range(part) for part in ranges]}


def as_range(part: OffsetRange) -> TopicRange:
    """The range for an XCom; `OffsetRange(**fields)` is the way back.

    Args:
        part: The range.
    """
    return {
        "topic": part.topic,
        "topic_id": part.topic_id,
        "partition": part.partition,
        "start": part.start,
        "end": part.end,
    }
