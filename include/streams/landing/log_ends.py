"""Detect logs that have lost records that have already landed.

A log can lose its last records after an unclean leader election, or when a broker loses its disk. The landing table
still has these records. When the log is filled again, other records have the same offsets. They would count as landed
and never be read. Or the sink lands them too, and one of two different records with the same offset is dropped as
repeated.

While the log ends before the highest landed offset, its end shows the loss. After that, the leader epoch shows the
loss. The table `positions` stores the epoch with the highest landed offset that was compared, under a name of its own.
Records that have landed since the last comparison are not protected once the log has grown beyond them.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection, select

from include.streams.kafka.claims import lock_consumer, write_positions
from include.streams.kafka.offsets import GroupOffsets, Partition, PartitionOffsets
from include.streams.landing.index import OffsetIndex
from include.streams.landing.tables import LandedTopic, raw_table
from include.streams.operations.database import begin
from include.streams.operations.tables import positions

if TYPE_CHECKING:
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# {partition: (highest offset that had landed, plus one; the epoch of the leader that had it)}.
Seen = dict[Partition, tuple[int, int]]


class LogEnds(NamedTuple):
    """The result of a comparison.

    Attributes:
        lost: {partition: what happened} where the log has lost landed records. The text is the same in every check,
            because an alarm reports each text once.
        unanswered: The partitions whose log could not be compared.
    """

    lost: dict[Partition, str]
    unanswered: set[Partition]


def compare(
    topic: LandedTopic,
    table: "Table",
    landed: OffsetIndex,
    kafka: Mapping[Partition, PartitionOffsets],
    group: GroupOffsets,
) -> LogEnds:
    """Find partitions whose log has lost landed records, and record the ends and leader epochs of the others.

    If the process is killed before they are recorded, the next comparison begins with the earlier ones.

    Args:
        topic: The landed topic.
        table: Its landing table. Ends recorded for an earlier table of this name are ignored, because a person has
            created this table for the present log.
        landed: The table's files.
        kafka: The offsets of the topic's partitions. They must be fetched after the table was loaded, so that a healthy
            log ends after the landed offsets.
        group: A client with CONSUMER_SETTINGS; its assignment is removed.

    Raises:
        KafkaException: The client refuses a position.
    """
    of_table = str(table.metadata.table_uuid)
    with begin() as connection:
        seen = _seen(connection, topic, of_table)
    lost: dict[Partition, str] = {}
    doubtful: Seen = {}
    ends_now: Seen = {}
    for partition, offsets in sorted(kafka.items()):
        recorded, epoch = seen.get(partition), offsets.leader_epoch
        # The recorded end counts too, because files may have been removed from the table.
        if not (end := max(landed.end(partition.number), recorded[0] if recorded else 0)):
            continue
        if offsets.end < end:
            lost[partition] = (
                f"the log of topic {topic.name} was truncated (offsets up to {end} of partition {partition.number} "
                f"are in landing table {raw_table(topic)}, but the log now ends before)"
            )
            if epoch and (recorded is None or recorded[0] < end):
                # A log loses records only with a new leader, so the records came from an earlier leader. After the log
                # is filled again, this epoch still shows where the records of the earlier leader end.
                ends_now[partition] = (end, epoch - 1)
        elif epoch is not None:
            ends_now[partition] = (end, epoch)
            if recorded is not None and recorded[1] != epoch:
                doubtful[partition] = recorded
    compared = group.find_truncated_logs(doubtful) if doubtful else None
    for partition in sorted(compared.truncated if compared else ()):
        end, epoch = doubtful[partition]
        lost[partition] = (
            f"the log of topic {topic.name} was truncated and filled again (offsets up to {end} of partition "
            f"{partition.number} had landed in {raw_table(topic)} by leader epoch {epoch}; other records have taken "
            "their place)"
        )
    unanswered = compared.unanswered if compared else set()
    # A lost partition stays lost until the table is created again, so nothing is recorded for it.
    unproved = unanswered | (compared.truncated if compared else set())
    changed = {p: place for p, place in ends_now.items() if p not in unproved and place != seen.get(p)}
    if changed:
        _record_ends(topic, of_table, changed, seen)
    return LogEnds(lost, unanswered)


def _name(topic: LandedTopic) -> str:
    """The name for landed ends in `positions`; the nightly check uses the table's own name."""
    return f"landed {raw_table(topic)}"


def _seen(connection: Connection, topic: LandedTopic, of_table: str) -> Seen:
    recorded = select(positions).where(positions.c.consumer == _name(topic), positions.c.topic_id == of_table)
    rows = connection.execute(recorded).all()
    return {Partition(r.topic, r.partition): (r.next_offset, r.leader_epoch) for r in rows}


def _record_ends(topic: LandedTopic, of_table: str, changed: Seen, seen: Seen) -> None:
    with begin() as connection:
        lock_consumer(connection, _name(topic))
        fresh = _seen(connection, topic, of_table)
        # Another check may have recorded a newer end in the meantime.
        rows = [(*p, of_table, *place) for p, place in sorted(changed.items()) if fresh.get(p) == seen.get(p)]
        write_positions(connection, _name(topic), rows)
