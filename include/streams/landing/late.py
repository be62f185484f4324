"""Report offsets that landed after they were recorded as lost, because the sink's coordinator committed an old file.

Later claims do not include these offsets, so only the runs that claimed them can process them. No other check reports
such offsets.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import Connection, select

from include.streams.kafka.offsets import is_same_topic
from include.streams.landing import gaps, intervals
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import RUNBOOK, State
from include.streams.landing.index import OffsetIndex
from include.streams.landing.intervals import Ranges
from include.streams.landing.sources import landed_index
from include.streams.landing.tables import LandedTopic, load_landing_table, raw_table, topic_id
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm
from include.streams.operations.database import begin
from include.streams.operations.tables import claim_ranges, claims

log = logging.getLogger(__name__)

# Ranges in one message of the alarm. Every range is in a message, because its record is then deleted.
RANGES_A_MESSAGE = 20
# Runs that a message names. The log names all.
RUNS_A_MESSAGE = 20


def report_late(topic: LandedTopic, lanes: Iterable[LandingConsumer]) -> int:
    """Add the runs that must be cleared to the alarm `messages_lost`, and delete the offsets from the recorded losses.

    Both happen in one transaction, so each offset is reported once, even if the process is killed. Offsets that hold no
    record are not checked: there may be millions, and only a compacted record could land late.

    Args:
        topic: The landed topic; it has a table.
        lanes: Consumers of landing tables; those of other topics are ignored.

    Returns:
        How many offsets had landed.
    """
    table = load_landing_table(topic)
    landing_id, landed = topic_id(table), landed_index(topic, table)
    lost: dict[int, list[tuple[int, int]]] = {}
    for gap in gaps.history(landing_id, [State.lost]):
        lost.setdefault(gap.partition, []).append((gap.start_offset, gap.end_offset))
    names = [lane.name for lane in lanes if lane.topic.name == topic.name]
    total = 0
    for partition, ranges in sorted(lost.items()):
        late = _late(landed, partition, intervals.union(ranges))
        for first in range(0, len(late), RANGES_A_MESSAGE):
            with begin() as connection:
                reported = gaps.delete_outcome(
                    connection, landing_id, partition, State.lost, late[first : first + RANGES_A_MESSAGE]
                )
                if reported:
                    runs = _runs(connection, names, topic.name, landing_id, partition, reported)
                    text = _text(topic.name, partition, reported, runs)
                    add_to_alarm(connection, raw_table(topic), AlarmKind.messages_lost, text)
                    log.warning("landed after all: %s-%d %s runs=%s", topic.name, partition, reported, runs)
            total += intervals.total(reported)
    return total


def _late(landed: OffsetIndex, partition: int, lost: Ranges) -> Ranges:
    """The offsets recorded as lost that are in files."""
    files = landed.files(partition, lost[0][0], lost[-1][1])
    files = [file for file in files if intervals.between(lost, file.start, file.end)]
    landed.read_ahead(files)
    return intervals.union(
        part
        for file in files
        for part in intervals.intersect(intervals.between(lost, file.start, file.end), landed.offsets(file))
    )


def _text(topic: str, partition: int, late: Ranges, runs: list[str]) -> str:
    text = (
        f"{intervals.total(late)} offsets of {topic}-{partition} that were recorded as lost have landed after all: "
        f"{intervals.text(late)}."
    )
    if not runs:
        return f"{text} No recorded run had claimed them"
    more = f" and {len(runs) - RUNS_A_MESSAGE} more, which the log names" if len(runs) > RUNS_A_MESSAGE else ""
    named = ", ".join(runs[:RUNS_A_MESSAGE])
    return f"{text} To process them, clear the runs that had claimed them: {named}{more} ({RUNBOOK})"


def _runs(
    connection: Connection, consumers: list[str], topic: str, landing_id: str, partition: int, late: Ranges
) -> list[str]:
    """The runs that would read some of these offsets if they were cleared, the oldest claim first."""
    overlapping = (
        claims.c.consumer.in_(consumers),
        claim_ranges.c.topic == topic,
        claim_ranges.c.partition == partition,
        claim_ranges.c.readable_from < late[-1][1],
        claim_ranges.c.end_offset > late[0][0],
    )
    columns = (claims.c.consumer, claims.c.run_id, *claim_ranges.c)
    rows = connection.execute(
        select(*columns).join(claims, claims.c.id == claim_ranges.c.claim_id).where(*overlapping).order_by(claims.c.id)
    )
    return [
        f"{row.run_id} of {row.consumer}"
        for row in rows
        if is_same_topic(row.topic_id, landing_id) and intervals.between(late, row.readable_from, row.end_offset)
    ]
