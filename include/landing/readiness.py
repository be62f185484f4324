"""Whether a run of a lane has something to do. The sensor checks it at its start, its trigger every few seconds.

It blocks and has heavy imports: call it in a task, or in a thread of the triggerer.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# How many offsets beyond the next ones a check for gaps covers. A gap further ahead holds up no run yet, and the run
# looks for itself. The triggerer's other triggers wait while this one computes.
LOOK_AHEAD = 100_000


class Readiness(StrEnum):
    """The result of a check; the run continues only with `ready`."""

    ready = "ready"
    no_data = "no data"
    open_claim = "an earlier claim is open"
    no_table = "no landing table yet"


@dataclass(frozen=True)
class Named:
    """A topic as a trigger knows it: only by name."""

    name: str


@dataclass(frozen=True)
class Lane:
    """What a check needs to know of a run and its `LandingConsumer`: plain values, because a trigger is serialized."""

    name: str
    topic_name: str
    run_id: str
    conn_id: str
    landing_grace_seconds: float
    max_claim_age_seconds: float

    @property
    def topic(self) -> Named:
        return Named(self.topic_name)

    @property
    def landing_grace(self) -> timedelta:
        return timedelta(seconds=self.landing_grace_seconds)

    @property
    def max_claim_age(self) -> timedelta:
        return timedelta(seconds=self.max_claim_age_seconds)


def look(lane: Lane, *, verify_too: bool = True) -> Readiness:
    """Whether a run of the lane should continue now.

    It should if it already has a claim (it was cleared), or if no other run's claim is open and offsets from the
    consumer's next one on have landed without a gap.

    Args:
        lane: The run and its consumer.
        verify_too: Query Kafka as well. A gap that is due then counts as something to do, because the run repairs it:
            otherwise a lane whose last files were lost would wait forever. Also raises the alarm about a claim that is
            open for too long.

    Raises:
        Exception: What the databases, the store and Kafka raise.
    """
    from pyiceberg.exceptions import NoSuchTableError
    from sqlalchemy import select

    from include.kafka.watch import watch_claims
    from include.landing.planning import open_claim_of_another_run
    from include.landing.stored import BrokenFiles
    from include.landing.tables import load_landing_table
    from include.operations.database import begin
    from include.operations.tables import claims

    with begin() as connection:
        mine = select(claims.c.id).where(claims.c.consumer == lane.name, claims.c.run_id == lane.run_id)
        if connection.scalar(mine) is not None:
            return Readiness.ready
        if verify_too:
            watch_claims(connection, lane)  # type: ignore[arg-type]
        if open_claim_of_another_run(connection, lane.name, lane.run_id):
            return Readiness.open_claim
    try:
        table = load_landing_table(lane.topic)
    except NoSuchTableError:
        return Readiness.no_table
    try:
        return _look_at(lane, table, verify_too=verify_too)
    except BrokenFiles as broken:
        # The run takes them out of the table.
        log.warning("lane=%s files cannot be read: %s", lane.name, broken)
        return Readiness.ready


def _look_at(lane: Lane, table: "Table", *, verify_too: bool) -> Readiness:
    from include.landing import gaps
    from include.landing.landed import Landed
    from include.landing.planning import next_offsets
    from include.landing.tables import start_offsets, topic_id
    from include.landing.verification import open_gap_alarm, verify
    from include.operations.database import begin

    landed = Landed(table)
    with begin() as connection:
        begins = dict.fromkeys(landed.partitions, 0) | start_offsets(table)
        starts = begins | next_offsets(connection, lane, topic_id(table))
        ends = {partition: start + 1 for partition, start in starts.items()}
        settled = gaps.settled(connection, topic_id(table), starts, ends)
    # Only the next offset of each partition: a lane that is behind has thousands of files.
    if any(p in settled or landed.covered(p, starts[p], ends[p]) for p in landed.partitions):
        return Readiness.ready
    if not verify_too:
        return Readiness.no_data
    found = verify(lane.topic, starts, conn_id=lane.conn_id, grace=lane.landing_grace, most=LOOK_AHEAD, repairs=True)
    # Not for the gaps of a partition that does not answer: runs would start one after the other, and repair nothing.
    answering = {partition.number for partition in found.kafka}
    if any(gap.offsets.partition in answering for gap in found.due):
        return Readiness.ready
    if found.due:
        with begin() as connection:
            open_gap_alarm(connection, lane.topic, found.due)
    return Readiness.no_data
