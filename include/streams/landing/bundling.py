"""Bundle the small files of a sink: thousands of files per day become one file per million offsets.

If files are replaced after a run was planned with them, the run looks up its offsets again (`validation.py`). The
replaced files themselves stay for another day.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from include.streams.contracts import Topic
from include.streams.kafka.offsets import is_same_topic
from include.streams.lake import maintenance
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.index import file_range
from include.streams.landing.positions import next_offsets
from include.streams.landing.stored import BrokenFiles, DataFileRange, find_broken
from include.streams.landing.tables import topic_id
from include.streams.operations.database import begin
from include.streams.operations.tables import claim_ranges, claims

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# Limits of a bundle. They exist because a task that needs a part of a file reads the whole file.
MAX_RECORDS = 1_000_000
MAX_BYTES = 128 * 1024 * 1024


def bundle(table: Table, topic: Topic, lanes: Iterable[LandingConsumer], *, seconds: float) -> int:
    """Rewrite sequences of small files whose offsets all lanes have finished.

    Only files are bundled that hold each of their offsets once and that do not overlap. Otherwise, a bundle with a
    repeated and a missing offset would have as many rows as its bounds span, and no check would find the gap.

    Args:
        table: The topic's landing table.
        topic: The topic.
        lanes: All consumers of landing tables. If none of them consumes this topic, all its files may be bundled.
        seconds: After about this time, the rest is left for the next call.

    Returns:
        How many files were replaced.

    Raises:
        BrokenFiles: The store has lost or truncated some of the files; bundles without them are committed.
    """
    own_lanes = [lane for lane in lanes if lane.topic.name == topic.name]
    limits = [_done_below(lane, topic_id(table)) for lane in own_lanes]

    def group(files: list[DataFile]) -> Iterable[list[DataFile]]:
        pieces = sorted(((file_range(table, file), file) for file in files), key=lambda pair: pair[0].start)
        bundles: list[list[DataFile]] = [[]]
        end = records = size = 0
        for piece, file in pieces:
            if any(piece.end > limit.get(piece.partition, 0) for limit in limits):
                break
            fits = records + piece.records <= MAX_RECORDS and size + file.file_size_in_bytes <= MAX_BYTES
            if bundles[-1] and (piece.start < end or not fits):
                bundles.append([])
                records = size = 0
            if piece.records <= piece.end - piece.start:
                bundles[-1].append(file)
                records, size = records + piece.records, size + file.file_size_in_bytes
            end = max(end, piece.end)
        return bundles

    broken: dict[DataFileRange, str] = {}

    def are_broken(files: list[DataFile]) -> bool:
        broken_here = find_broken(table.io, [file_range(table, file) for file in files])
        broken.update(broken_here)
        return bool(broken_here)

    replaced = maintenance.bundle_small_files(
        table, group=group, order_by="offset", unique=("partition", "offset"), leave_out=are_broken, seconds=seconds
    )
    if broken:
        # At the end, so that broken files do not prevent other bundles.
        raise BrokenFiles(broken)
    return replaced


def _done_below(lane: LandingConsumer, of_topic: str) -> dict[int, int]:
    """{partition: the offset below which the lane has claimed every offset, in claims that are closed}.

    Positions and claims of every generation of the log count, as in `next_offsets`, because the lane does not claim
    these offsets in this table again. If a reset moves the lane back, it finds the offsets in the bundles.
    """
    still_open = (
        select(claim_ranges.c.partition, claim_ranges.c.topic_id, func.min(claim_ranges.c.start_offset))
        .join(claims, claims.c.id == claim_ranges.c.claim_id)
        .where(claims.c.consumer == lane.name, claims.c.closed_at.is_(None), claim_ranges.c.topic == lane.topic.name)
        .group_by(claim_ranges.c.partition, claim_ranges.c.topic_id)
    )
    with begin() as connection:
        limits = next_offsets(connection, lane, of_topic)
        for partition, identity, start in connection.execute(still_open):
            if is_same_topic(identity, of_topic):
                limits[partition] = min(start, limits.get(partition, start))
    return limits
