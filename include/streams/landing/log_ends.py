"""Compare what has landed with Kafka's log: has the log lost the end of it?

A landing table keeps the records that a log has lost (an unclean leader election, a broker that lost its disk). When
the log is filled again, other records have the same offsets. They would count as landed, and never be read; or the sink
lands them too, and one of two different records with one offset is dropped as repeated.

While the log ends before what has landed, its end shows the loss. Afterwards, the leader epoch shows it, which is kept
with the highest landed offset that was found in the log (in `positions`, under a name of its own). Records that had
landed since the last comparison are not protected once the log has grown beyond them.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection, select

from include.streams.kafka.claims import lock_consumer, write_positions
from include.streams.kafka.offsets import GroupOffsets, Partition, PartitionOffsets
from include.streams.landing.landed import Landed
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
        lost: {partition: what happened} where the log has lost records that have landed; in the same words at every
            check, because an alarm reports each text once.
        unanswered: The partitions whose log could not be compared.
    """

    lost: dict[Partition, str]
    unanswered: set[Partition]


def compare(
    topic: LandedTopic,
    table: "Table",
    landed: Landed,
    kafka: Mapping[Partition, PartitionOffsets],
    group: GroupOffsets,
) -> LogEnds:
    """Find partitions whose log has lost records that have landed, and remember the others' ends and leader epochs.

    If the process is killed before the ends are remembered, the next comparison begins with the earlier ones.

    Args:
        topic: The landed topic.
        table: Its landing table. Another table of this name is compared anew: a person has made it for the log of now.
        landed: The table's files.
        kafka: The offsets of the topic's partitions, asked for after the table was loaded: the log always ends behind
            what has landed then.
        group: A client with CONSUMER_SETTINGS; it has no assignment afterwards.

    Raises:
        KafkaException: The client refuses a position.
    """
    of_table = str(table.metadata.table_uuid)
    with begin() as connection:
        seen = _seen(connection, topic, of_table)
    lost: dict[Partition, str] = {}
    doubtful: Seen = {}
    now: Seen = {}
    for partition, offsets in sorted(kafka.items()):
        before, epoch = seen.get(partition), offsets.leader_epoch
        # Files may be taken out of the table again.
        if not (end := max(landed.end(partition.number), before[0] if before else 0)):
            continue
        if offsets.end < end:
            lost[partition] = (
                f"topic {topic.name} has lost the end of its log (offsets up to {end} of partition {partition.number} "
                f"are in landing table {raw_table(topic)}, and it ends before)"
            )
            if epoch and (before is None or before[0] < end):
                # A log loses records only with a new leader. So they came from an earlier one, and once the log is
                # filled again, this epoch still shows where that one's records end.
                now[partition] = (end, epoch - 1)
        elif epoch is not None:
            now[partition] = (end, epoch)
            if before is not None and before[1] != epoch:
                doubtful[partition] = before
    compared = group.find_truncated_logs(doubtful) if doubtful else None
    for partition in sorted(compared.truncated if compared else ()):
        end, epoch = doubtful[partition]
        lost[partition] = (
            f"topic {topic.name} has lost the end of its log and was filled again (offsets up to {end} of partition "
            f"{partition.number} had landed in {raw_table(topic)} by leader epoch {epoch}; other records have taken "
            "their place)"
        )
    unanswered = compared.unanswered if compared else set()
    # What was found lost stays so, until the table is made again.
    unproved = unanswered | (compared.truncated if compared else set())
    changed = {p: place for p, place in now.items() if p not in unproved and place != seen.get(p)}
    if changed:
        _remember(topic, of_table, changed, seen)
    return LogEnds(lost, unanswered)


def _name(topic: LandedTopic) -> str:
    """Under which `positions` has the landed ends; the table's own name has the nightly check's."""
    return f"landed {raw_table(topic)}"


def _seen(connection: Connection, topic: LandedTopic, of_table: str) -> Seen:
    mine = select(positions).where(positions.c.consumer == _name(topic), positions.c.topic_id == of_table)
    rows = connection.execute(mine).all()
    return {Partition(r.topic, r.partition): (r.next_offset, r.leader_epoch) for r in rows}


def _remember(topic: LandedTopic, of_table: str, changed: Seen, seen: Seen) -> None:
    with begin() as connection:
        lock_consumer(connection, _name(topic))
        fresh = _seen(connection, topic, of_table)
        # Another check may have been faster, and may have found more.
        rows = [(*p, of_table, *place) for p, place in sorted(changed.items()) if fresh.get(p) == seen.get(p)]
        write_positions(connection, _name(topic), rows)
