"""Whether a run of a lane has work. The sensor checks this at its start, and its trigger every few seconds.

The check blocks and has heavy imports: call it in a task, or in a thread of the triggerer.
"""

import logging
from collections.abc import Set
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from include.streams.contracts.objects import PlainObjects

log = logging.getLogger(__name__)

# How many offsets after the next ones a check for gaps covers. A gap further ahead stops no run yet, and each run makes
# its own check. The triggerer's other triggers wait while this one computes.
LOOK_AHEAD = 100_000


class Readiness(StrEnum):
    """The result of a check; the run continues only with `ready`."""

    ready = "ready"
    no_data = "no data"
    open_claim = "an earlier claim is open"
    no_table = "no landing table yet"
    stopped = "the log is not the one that was claimed before: a person must act"
    partly_stopped = "the logs of some partitions are not those that were claimed before: a person must act for them"
    unanswered = "the partitions with landed offsets do not answer"


@dataclass(frozen=True)
class Named:
    """A topic as a trigger knows it: its name and how it lands."""

    name: str
    landed: "bool | PlainObjects" = True


@dataclass(frozen=True)
class Lane:
    """The attributes of a run and its consumer that a check needs, as plain values, because a trigger is serialized."""

    name: str
    topic_name: str
    run_id: str
    conn_id: str
    landing_grace_seconds: float
    max_claim_age_seconds: float
    # A `PlainObjects` as JSON; None if the topic lands only in its table.
    objects: dict[str, Any] | None = None

    @property
    def topic(self) -> Named:
        if self.objects is None:
            return Named(self.topic_name)
        from include.streams.contracts.objects import PlainObjects

        return Named(self.topic_name, PlainObjects.of_json(self.objects))

    @property
    def landing_grace(self) -> timedelta:
        return timedelta(seconds=self.landing_grace_seconds)

    @property
    def max_claim_age(self) -> timedelta:
        return timedelta(seconds=self.max_claim_age_seconds)


def check_readiness(lane: Lane, *, verify_too: bool = True) -> Readiness:
    """Check whether a run of the lane has work now.

    It has work if it already has a claim (it was cleared), or if no other run's claim is open and the consumer's next
    offset of a partition has landed. Before the result is `ready`, Kafka is queried for whether a claim could take the
    offsets. Otherwise run after run would start and fail until a person acts. If the topic was recreated or its log
    truncated, the alarm about the stopped consumer is opened.

    Args:
        lane: The run and its consumer.
        verify_too: Whether to check for gaps too. A due gap then counts as work, because the run repairs it. Otherwise
            a lane whose last files were lost would wait forever. Also opens the alarm about a claim that is open for
            too long.

    Raises:
        Exception: A database, the store or Kafka is unavailable.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.kafka.claims import ConsumerStopped
    from include.streams.kafka.watch import watch_claims
    from include.streams.landing.positions import has_claim, open_claim_of_another_run, open_stopped_alarm
    from include.streams.landing.tables import load_landing_table
    from include.streams.operations.database import begin

    with begin() as connection:
        if has_claim(connection, lane, lane.run_id):
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
        return _check_table(lane, table, verify_too=verify_too)
    except ConsumerStopped as stopped:
        with begin() as connection:
            open_stopped_alarm(connection, lane, [str(stopped)])
        return Readiness.stopped


def _check_table(lane: Lane, table: "Table", *, verify_too: bool) -> Readiness:
    from include.streams.landing.stored import BrokenFiles

    logs = _Logs(lane, table)
    try:
        return _with_work(lane, table, logs, verify_too=verify_too)
    except BrokenFiles as broken:
        # The run removes them from the table, and continues with all partitions that answer.
        log.warning("lane=%s files cannot be read: %s", lane.name, broken)
        return Readiness.ready if logs.claimable else logs.why_not({file.partition for file in broken.files})


def _with_work(lane: Lane, table: "Table", logs: "_Logs", *, verify_too: bool) -> Readiness:
    from include.streams.landing import gaps
    from include.streams.landing.positions import next_offsets
    from include.streams.landing.sources import landed_index
    from include.streams.landing.tables import start_offsets, topic_id
    from include.streams.landing.verification import open_gap_alarm, verify
    from include.streams.operations.database import begin

    landed = landed_index(lane.topic, table)
    with begin() as connection:
        begins = dict.fromkeys(landed.partitions, 0) | start_offsets(table)
        starts = begins | next_offsets(connection, lane, topic_id(table))
        ends = {partition: start + 1 for partition, start in starts.items()}
        settled = gaps.settled(connection, topic_id(table), starts, ends)
    waiting: set[int] = set()
    for partition in landed.partitions:
        # Only the next offset of each partition is checked, because a lane that is behind has thousands of files.
        if partition in settled or landed.covered(partition, starts[partition], ends[partition]):
            if partition in logs.claimable:
                return Readiness.ready
            waiting.add(partition)
    if verify_too:
        verified = verify(
            lane.topic, starts, conn_id=lane.conn_id, grace=lane.landing_grace, max_offsets=LOOK_AHEAD, repairs=True
        )
        due = {gap.offsets.partition for gap in verified.due}
        # A run repairs gaps only in claimable partitions.
        if due and due & logs.claimable:
            return Readiness.ready
        if due:
            with begin() as connection:
                open_gap_alarm(connection, lane.topic, verified.due)
        # Includes partitions with a lost log even if the lane is idle: the sink reads their offsets again, and no run
        # would check them before that.
        waiting |= due | {partition.number for partition in verified.snapshot.lost}
    return logs.why_not(waiting) if waiting else Readiness.no_data


class _Logs:
    """The state of the logs in Kafka for a claim. Kafka is queried once, and only if there seems to be work."""

    def __init__(self, lane: Lane, table: "Table") -> None:
        self._lane, self._table = lane, table

    @property
    def claimable(self) -> Set[int]:
        """The partitions that answer, and whose log is the one that has landed and that was claimed before.

        Raises:
            ConsumerStopped: The topic is not the one that landed.
            KafkaException: The broker is unavailable or refuses.
        """
        return self._comparison[0]

    def why_not(self, partitions: Set[int]) -> Readiness:
        """Why a run could not claim these partitions; opens the alarm if only a person can change this."""
        from include.streams.landing.positions import open_stopped_alarm
        from include.streams.operations.database import begin

        stopped = {number: why for number, why in self._comparison[1].items() if number in partitions}
        if not stopped:
            return Readiness.unanswered
        with begin() as connection:
            open_stopped_alarm(connection, self._lane, stopped.values())
        # The other partitions must not wait for a person.
        return Readiness.partly_stopped if self.claimable else Readiness.stopped

    @cached_property
    def _comparison(self) -> tuple[set[int], dict[int, str]]:
        """(the claimable partitions, {partition: why it is stopped}); partitions that do not answer are in neither."""
        from sqlalchemy import select

        from include.streams.kafka.claims import find_changed_logs
        from include.streams.kafka.offsets import GroupOffsets, Partition
        from include.streams.kafka.reading import CONSUMER_SETTINGS
        from include.streams.landing import log_ends
        from include.streams.landing.positions import check_same_topic
        from include.streams.landing.sources import landed_index
        from include.streams.landing.tables import topic_id
        from include.streams.operations.database import begin
        from include.streams.operations.tables import positions

        lane = self._lane
        with GroupOffsets(lane.name, lane.conn_id, **CONSUMER_SETTINGS) as group:
            kafka = group.fetch_offsets_sync([lane.topic_name], needs_committed=False)
            check_same_topic(lane.topic, topic_id(self._table), kafka)
            index = landed_index(lane.topic, self._table)
            landed = log_ends.compare(lane.topic, self._table, index, kafka, group)
            own_positions = select(positions).where(
                positions.c.consumer == lane.name, positions.c.topic == lane.topic_name
            )
            with begin() as connection:
                known = {Partition(row.topic, row.partition): row for row in connection.execute(own_positions)}
            claimed = find_changed_logs(lane.name, known, kafka, group.find_truncated_logs)
        stopped, unanswered = {**landed.lost, **claimed[0]}, landed.unanswered | claimed[1]
        claimable = {p.number for p in kafka if p not in stopped and p not in unanswered}
        return claimable, {partition.number: why for partition, why in stopped.items()}
