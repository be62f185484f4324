"""Claim landed offsets for a run, and plan the units of work for its mapped tasks.

The claims are those of the event lane (`include/streams/kafka/claims.py`). Here, a partition can be claimed up to its
first gap; in the event lane, up to the end of its log. A run is an immutable set of offset ranges.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection

from include.streams.kafka.claims import Claimed, ConsumerStopped, claim, mark_handled
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.kafka.watch import OffsetCommitter, watch_claims
from include.streams.landing import gaps, intervals, staging
from include.streams.landing.broken_files import close_if_whole, read_with_repair
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import RUNBOOK, Gap, State
from include.streams.landing.intervals import Ranges
from include.streams.landing.positions import (
    has_claim,
    next_offsets,
    open_claim_of_another_run,
    open_stopped_alarm,
    stopped_failure,
)
from include.streams.landing.repair import repair
from include.streams.landing.snapshot import LandingSnapshot
from include.streams.landing.sources import landed_index
from include.streams.landing.tables import load_landing_table, raw_table, topic_id
from include.streams.landing.units import FileSlice, NotLanded, batches, offset_ranges, work_unit
from include.streams.landing.xcom import WorkUnit
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import add_to_alarm, close_others, open_alarm
from include.streams.operations.database import begin

log = logging.getLogger(__name__)


def claim_landed(consumer: LandingConsumer, run_id: str) -> list[WorkUnit]:
    """Claim this run's offsets and return its units of work.

    Each partition is claimed up to its first gap. `repair_gaps` has closed the due gaps; other gaps are left to a later
    run. A run that is retried or cleared gets the same ranges again. While a claim of another run of this consumer is
    open, a run gets no new range, because the failed run must not be skipped.

    If the process is killed before the claim, nothing has changed. If it is killed afterwards, the retry gets the same
    ranges.

    Args:
        consumer: The landing consumer.
        run_id: The Dag run.

    Returns:
        The units, one for each mapped task; empty when there is no work.

    Raises:
        AirflowFailException: The topic was recreated, or its log was truncated. Other exceptions are for Airflow's
            retries.
    """
    with begin() as connection:
        has_ranges = has_claim(connection, consumer, run_id)
    try:
        snapshot = None
        if not has_ranges:
            snapshot = read_with_repair(
                consumer.topic, lambda: LandingSnapshot.load(consumer), conn_id=consumer.conn_id
            )
        claimed = _claim(consumer, run_id, snapshot)
        units = read_with_repair(consumer.topic, lambda: _plan(consumer, claimed, snapshot), conn_id=consumer.conn_id)
    except ConsumerStopped as stopped:
        raise stopped_failure(consumer, stopped) from stopped
    log.info(
        "claimed: consumer=%s run_id=%s claim=%d ranges=%s units=%d files=%d",
        consumer.name,
        run_id,
        claimed.id,
        [str(r) for r in claimed.ranges],
        len(units),
        sum(len(unit["files"]) for unit in units),
    )
    return units


def plan_again(consumer: LandingConsumer, old: WorkUnit) -> WorkUnit:
    """Plan a unit again with the files that hold its offsets now, because files were removed since the first plan.

    Args:
        consumer: The landing consumer.
        old: The unit as it was planned.

    Returns:
        A unit with the same claim, number and ranges.
    """
    snapshot, slices = _find_slices(consumer, old["claim_id"], offset_ranges(consumer.topic, old))
    pieces = [piece for whole in slices.values() for piece in whole]
    unit = _unit(consumer, old["claim_id"], old["unit"], pieces, snapshot, list(slices))
    # The old ranges stay, even if some of them now hold no record: the unit counts their offsets as without a record.
    unit["ranges"] = old["ranges"]
    return unit


def without_record(
    consumer: LandingConsumer, ranges: Sequence[OffsetRange], states: Sequence[State] = gaps.SETTLED
) -> dict[int, Ranges]:
    """The offsets of a claim that a run cannot read: recorded as lost or as holding no record, and in no file.

    Such offsets may land later, when the sink's coordinator commits an old file. Then they are not returned here,
    because a run reads all offsets that are in files.

    Args:
        consumer: The landing consumer.
        ranges: The claim's ranges, one for each partition.
        states: Only offsets with these outcomes.

    Returns:
        {partition: offsets}, without partitions that have none.
    """
    table = load_landing_table(consumer.topic)
    with begin() as connection:
        # Gaps are recorded under the table's own id. A claim may have the id of a later generation of the log.
        starts, ends = {part.partition: part.start for part in ranges}, {part.partition: part.end for part in ranges}
        settled = gaps.settled(connection, topic_id(table), starts, ends, states)
    by_partition: dict[int, Ranges] = {}
    landed = None
    for part in ranges:
        if in_range := intervals.intersect(settled.get(part.partition, []), [(part.start, part.end)]):
            landed = landed or landed_index(consumer.topic, table)
            by_partition[part.partition] = intervals.subtract(
                in_range, landed.covered(part.partition, part.start, part.end)
            )
    return {partition: offsets for partition, offsets in by_partition.items() if offsets}


def _claim(consumer: LandingConsumer, run_id: str, snapshot: LandingSnapshot | None) -> Claimed:
    """Claim the offsets that the snapshot makes available; without a snapshot, return the run's existing claim."""

    def available() -> Mapping[Partition, PartitionOffsets]:
        # On a separate connection. The claim holds a lock, so no other process claims in the meantime.
        with begin() as connection:
            if other := open_claim_of_another_run(connection, consumer.name, run_id):
                log.warning("nothing is claimed while the claim of run %s is open: clear that run", other)
                return {}
            assert snapshot is not None
            return snapshot.available(next_offsets(connection, consumer, snapshot.topic_id))

    with GroupOffsets(consumer.group, consumer.conn_id, **CONSUMER_SETTINGS) as group:
        committer = OffsetCommitter(group)
        claimed = claim(
            consumer.name,
            run_id,
            available,
            # Committed as in the event lane, never backwards, so that Kafka's own tools show this lane's lag.
            lambda positions: committer.commit(positions, None),
            max_messages=consumer.max_messages_per_claim,
            compare_logs=group.find_truncated_logs,
            stopped=snapshot.lost if snapshot is not None else {},
            on_new=lambda connection, new: _watch_claim(
                connection, consumer, run_id, new, is_whole=not group.left_out and _is_whole(consumer, snapshot)
            ),
        )
        with begin() as connection:
            committer.update_alarm(connection, consumer.name)
    return claimed


def _is_whole(consumer: LandingConsumer, snapshot: LandingSnapshot | None) -> bool:
    """Whether every partition that has a landed offset was found in Kafka."""
    return snapshot is not None and all(Partition(consumer.topic.name, n) in snapshot.kafka for n in snapshot.checked)


def _watch_claim(
    connection: Connection, consumer: LandingConsumer, run_id: str, claimed: Claimed, *, is_whole: bool
) -> None:
    if claimed.lost:
        gone = ", ".join(str(r) for r in claimed.lost)
        text = f"removed from {raw_table(consumer.topic)} before they were claimed (run {run_id}): {gone}"
        add_to_alarm(connection, consumer.name, AlarmKind.messages_lost, text)
    if claimed.stopped:
        open_stopped_alarm(connection, consumer, claimed.stopped.values())
    elif claimed.behind and is_whole:
        # Close the alarm only after a check of all logs, which shows that they are the same as before: a partition that
        # does not answer may be the stopped one. `behind` is empty while a claim is open, because the logs are not
        # checked then.
        close_others(connection, consumer.name, AlarmKind.consumer_stopped)
    # The lag is not checked here, because a claim checks only the offsets that it can take. `watch.py` checks the lag.
    watch_claims(connection, consumer)


def _plan(consumer: LandingConsumer, claimed: Claimed, snapshot: LandingSnapshot | None) -> list[WorkUnit]:
    if not claimed.ranges:
        return []
    if snapshot is None or claimed.behind is None:
        # The run already had this claim, so the snapshot was not read for its ranges.
        snapshot, slices = _find_slices(consumer, claimed.id, claimed.ranges)
    else:
        slices = snapshot.slices(claimed.ranges)
    for whole, pieces in slices.items():
        if not pieces:
            # No offset of the range holds a record: no task is needed.
            with begin() as connection:
                mark_handled(connection, claimed.id, whole)
    ordered = [piece for pieces in slices.values() for piece in pieces]
    return [
        _unit(consumer, claimed.id, number, pieces, snapshot, claimed.ranges)
        for number, pieces in enumerate(batches(consumer, ordered))
    ]


def _unit(
    consumer: LandingConsumer,
    claim_id: int,
    number: int,
    pieces: Sequence[FileSlice],
    snapshot: LandingSnapshot,
    ranges: Sequence[OffsetRange],
) -> WorkUnit:
    return work_unit(
        claim_id,
        number,
        pieces,
        # Each partition of a claim has one log.
        logs={part.partition: part.topic_id for part in ranges},
        staging=staging.folder(consumer, claim_id, snapshot.location),
        columns=snapshot.columns,
    )


def _find_slices(
    consumer: LandingConsumer, claim_id: int, ranges: Sequence[OffsetRange]
) -> tuple[LandingSnapshot, dict[OffsetRange, list[FileSlice]]]:
    """The snapshot and slices for the ranges of a claim; offsets in removed files are first read from Kafka again."""

    def find_slices() -> tuple[LandingSnapshot, dict[OffsetRange, list[FileSlice]]]:
        snapshot = LandingSnapshot.of_ranges(consumer.topic, ranges)
        _check_same_log(consumer, snapshot, ranges)
        return snapshot, snapshot.slices(ranges)

    try:
        return find_slices()
    except NotLanded as missing:
        # The offsets had landed when they were claimed, and their files were removed afterwards.
        text = f"claim {claim_id}: {missing}: files were removed; the offsets are read from Kafka again ({RUNBOOK})"
        landing_id = topic_id(load_landing_table(consumer.topic))
        with begin() as connection:
            open_alarm(connection, raw_table(consumer.topic), AlarmKind.landing_gap, text)
        gone = [Gap(replace(part, topic_id=landing_id), timedelta()) for part in ranges]
        repair(consumer.topic, gone, conn_id=consumer.conn_id)
        repaired = find_slices()
        with begin() as connection:
            close_if_whole(connection, consumer.topic, landing_id)
        return repaired


def _check_same_log(consumer: LandingConsumer, snapshot: LandingSnapshot, ranges: Sequence[OffsetRange]) -> None:
    """Raise ConsumerStopped if the landing table holds another log than the one that was claimed."""
    for wanted in ranges:
        if not is_same_topic(wanted.topic_id, snapshot.topic_id):
            why = (
                f"consumer {consumer.name}: {wanted} was claimed from the topic with id {wanted.topic_id}, and landing "
                f"table {raw_table(consumer.topic)} holds the topic with id {snapshot.topic_id}"
            )
            raise ConsumerStopped({wanted.topic: why})
