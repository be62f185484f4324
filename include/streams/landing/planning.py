"""Claim landed offsets for a run, and plan the units of work for its mapped tasks.

The claims are those of the event lane (`include/streams/kafka/claims.py`). Here, what can be claimed of a partition
ends at its first hole; in the event lane it ends at the end of the log. A run is an immutable set of offset ranges.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection, select

from include.streams.kafka.claims import Claimed, ConsumerStopped, claim, mark_handled
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets, is_same_topic
from include.streams.kafka.reading import CONSUMER_SETTINGS
from include.streams.kafka.watch import STOPPED_ALARM, Committing, watch_claims
from include.streams.landing import gaps, intervals
from include.streams.landing.broken import close_if_whole, reading
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import GAP_ALARM, LOST_ALARM, RUNBOOK, Gap, State
from include.streams.landing.intervals import Ranges
from include.streams.landing.landed import Landed
from include.streams.landing.positions import next_offsets, open_claim_of_another_run, open_stopped_alarm
from include.streams.landing.repair import repair
from include.streams.landing.tables import load_landing_table, raw_table, start_offsets, topic_id
from include.streams.landing.units import NotLanded, Slice, Unit, bundles, slices, unit
from include.streams.landing.verification import Verified, verify
from include.streams.operations.alarms import add_to_alarm, close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.operations.tables import claim_ranges, claims

log = logging.getLogger(__name__)


def claim_landed(consumer: LandingConsumer, run_id: str) -> list[Unit]:
    """Claim this run's offsets and return its units of work.

    It first checks for gaps and repairs those that are due. A run that claims again, because it was retried or cleared,
    gets the same ranges. While a claim of another run of this consumer is open, a run gets no new range: that batch has
    failed, and must not be skipped.

    If the process is killed before the claim, nothing happened or a gap was closed. If it is killed afterwards, the
    retry gets the same ranges.

    Args:
        consumer: The landing consumer.
        run_id: The Dag run.

    Returns:
        The units, one for each mapped task; empty when there is nothing to do.

    Raises:
        AirflowFailException: The topic was recreated, or its log was truncated. Other exceptions are for Airflow's
            retries.
    """
    try:
        claimed = reading(consumer.topic, lambda: _claim(consumer, run_id), conn_id=consumer.conn_id)
        units = reading(consumer.topic, lambda: _plan(consumer, claimed), conn_id=consumer.conn_id)
    except ConsumerStopped as stopped:
        raise _stop(consumer, stopped) from stopped
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


def plan_again(consumer: LandingConsumer, old: Unit) -> Unit:
    """Plan the unit again with the files that hold its offsets now, for a task whose files were rewritten and removed.

    Args:
        consumer: The landing consumer.
        old: The unit as it was planned.

    Returns:
        A unit with the same claim, number and ranges.
    """
    with begin() as connection:
        of_claim = select(claim_ranges.c.partition, claim_ranges.c.topic_id)
        ids = dict(connection.execute(of_claim.where(claim_ranges.c.claim_id == old["claim_id"])).all())  # type: ignore[arg-type]
    wanted = [
        OffsetRange(consumer.topic.name, ids[r["partition"]], r["partition"], r["start"], r["end"])
        for r in old["ranges"]
    ]
    pieces = [piece for whole in _slices_repaired(consumer, old["claim_id"], wanted).values() for piece in whole]
    return {**unit(old["claim_id"], old["unit"], pieces), "ranges": old["ranges"]}


def without_record(
    consumer: LandingConsumer, ranges: Sequence[OffsetRange], states: Sequence[State] = gaps.SETTLED
) -> dict[int, Ranges]:
    """The offsets of a claim for which a run has nothing to read: on record as lost or as holding no record.

    Such offsets may land after all, when the sink's coordinator commits an old file late. They are left out here: a run
    reads what the files hold.

    Args:
        consumer: The landing consumer.
        ranges: The claim's ranges, one for each partition.
        states: Only offsets with these outcomes.

    Returns:
        {partition: offsets}, without partitions that have none.
    """
    table = load_landing_table(consumer.topic)
    with begin() as connection:
        # Gaps are recorded under the table's own id: a claim may be of a later generation of the log.
        starts, ends = {part.partition: part.start for part in ranges}, {part.partition: part.end for part in ranges}
        settled = gaps.settled(connection, topic_id(table), starts, ends, states)
    found: dict[int, Ranges] = {}
    landed = None
    for part in ranges:
        if mine := intervals.intersect(settled.get(part.partition, []), [(part.start, part.end)]):
            landed = landed or Landed(table)
            found[part.partition] = intervals.subtract(mine, landed.covered(part.partition, part.start, part.end))
    return {partition: offsets for partition, offsets in found.items() if offsets}


def verify_for(consumer: LandingConsumer) -> Verified:
    """Check for gaps in the offsets that this consumer's next claim can take. Raises what `verify` raises."""
    table = load_landing_table(consumer.topic)
    with begin() as connection:
        starts = {**start_offsets(table), **next_offsets(connection, consumer, topic_id(table))}
    most = consumer.max_messages_per_claim
    return verify(
        consumer.topic, starts, conn_id=consumer.conn_id, grace=consumer.landing_grace, most=most, repairs=True
    )


def _claim(consumer: LandingConsumer, run_id: str) -> Claimed:
    with begin() as connection:
        mine = select(claims.c.id).where(claims.c.consumer == consumer.name, claims.c.run_id == run_id)
        asks_again = connection.scalar(mine) is not None
    verified = None if asks_again else verify_for(consumer)
    if verified is not None and verified.due:
        repair(consumer.topic, verified.due, conn_id=consumer.conn_id)
        verified = verify_for(consumer)

    def available() -> Mapping[Partition, PartitionOffsets]:
        # On a connection of its own. The claim holds a lock that keeps others from claiming in the meantime.
        with begin() as connection:
            if other := open_claim_of_another_run(connection, consumer.name, run_id):
                log.warning("nothing is claimed while the claim of run %s is open: clear that run", other)
                return {}
            assert verified is not None
            return _available(next_offsets(connection, consumer, verified.topic_id), verified)

    with GroupOffsets(consumer.group, consumer.conn_id, **CONSUMER_SETTINGS) as group:
        committing = Committing(group)
        claimed = claim(
            consumer.name,
            run_id,
            available,
            # Committed forward as in the event lane, so that Kafka's own tools show what this lane has not claimed yet.
            lambda positions: committing.forward(positions, None),
            max_messages=consumer.max_messages_per_claim,
            compare_logs=group.without_their_end,
            stopped=verified.lost if verified is not None else {},
            on_new=lambda connection, new: _watch_claim(
                connection, consumer, run_id, new, is_whole=not group.left_out and _is_whole(consumer, verified)
            ),
        )
        with begin() as connection:
            committing.watch(connection, consumer.name)
    return claimed


def _is_whole(consumer: LandingConsumer, verified: Verified | None) -> bool:
    """Whether every partition that has a landed offset was found in Kafka."""
    return verified is not None and all(Partition(consumer.topic.name, n) in verified.kafka for n in verified.looked)


def _watch_claim(
    connection: Connection, consumer: LandingConsumer, run_id: str, claimed: Claimed, *, is_whole: bool
) -> None:
    if claimed.lost:
        gone = ", ".join(str(r) for r in claimed.lost)
        text = f"removed from {raw_table(consumer.topic)} before they were claimed (run {run_id}): {gone}"
        add_to_alarm(connection, consumer.name, LOST_ALARM, text)
    if claimed.stopped:
        open_stopped_alarm(connection, consumer, claimed.stopped.values())
    elif claimed.behind and is_whole:
        # Close the alarm only after a check of all logs, which shows that they are the same as before: a partition that
        # does not answer may be the stopped one. `behind` is empty while a claim is open, because the logs are not
        # checked then.
        close_alarm(connection, consumer.name, STOPPED_ALARM)
    # Not the lag: a claim looks only as far ahead as it takes. `watch.py` counts all that has landed.
    watch_claims(connection, consumer)


def _available(next_now: Mapping[int, int], verified: Verified) -> dict[Partition, PartitionOffsets]:
    """The offsets that can be claimed: each partition up to its first hole."""
    found: dict[Partition, PartitionOffsets] = {}
    for partition, offsets in verified.kafka.items():
        low = verified.begins.get(partition.number, 0)
        start = max(low, next_now.get(partition.number, low))
        # Another run may have claimed since the check, so end < start is normal and does not mean a truncated log. If
        # the log itself ends before the claimed offsets, it was truncated, and the claim stops the consumer.
        end = max(start, verified.end(partition.number, start)) if offsets.end >= start else offsets.end
        found[partition] = PartitionOffsets(offsets.topic_id, low, end, leader_epoch=offsets.leader_epoch)
    return found


def _plan(consumer: LandingConsumer, claimed: Claimed) -> list[Unit]:
    if not claimed.ranges:
        return []
    found = _slices_repaired(consumer, claimed.id, claimed.ranges)
    for whole, pieces in found.items():
        if not pieces:
            # No offset of the range holds a record: no task is needed.
            with begin() as connection:
                mark_handled(connection, claimed.id, whole)
    ordered = [piece for pieces in found.values() for piece in pieces]
    return [unit(claimed.id, number, bundle) for number, bundle in enumerate(bundles(consumer, ordered))]


def _slices_repaired(
    consumer: LandingConsumer, claim_id: int, ranges: Sequence[OffsetRange]
) -> dict[OffsetRange, list[Slice]]:
    """`_slices`; offsets whose files were removed are read from Kafka again first."""
    try:
        return _slices(consumer, ranges)
    except NotLanded as missing:
        # The offsets had landed when they were claimed, and their files were removed afterwards.
        text = f"claim {claim_id}: {missing}: files were removed; the offsets are read from Kafka again ({RUNBOOK})"
        landing_id = topic_id(load_landing_table(consumer.topic))
        with begin() as connection:
            open_alarm(connection, raw_table(consumer.topic), GAP_ALARM, text)
        repair(
            consumer.topic,
            [Gap(replace(r, topic_id=landing_id), timedelta()) for r in ranges],
            conn_id=consumer.conn_id,
        )
        found = _slices(consumer, ranges)
        with begin() as connection:
            close_if_whole(connection, consumer.topic, landing_id)
        return found


def _slices(consumer: LandingConsumer, ranges: Sequence[OffsetRange]) -> dict[OffsetRange, list[Slice]]:
    table = load_landing_table(consumer.topic)
    for wanted in ranges:
        if not is_same_topic(wanted.topic_id, topic_id(table)):
            why = (
                f"consumer {consumer.name}: {wanted} was claimed of the topic with id {wanted.topic_id}, and landing "
                f"table {raw_table(consumer.topic)} holds the one with id {topic_id(table)}"
            )
            raise ConsumerStopped({wanted.topic: why})

    def settled(wanted: OffsetRange) -> Ranges:
        starts, ends = {wanted.partition: wanted.start}, {wanted.partition: wanted.end}
        with begin() as connection:
            # Gaps are recorded under the table's own id: a claim may be of a later generation of the log.
            return gaps.settled(connection, topic_id(table), starts, ends).get(wanted.partition, [])

    landed = Landed(table)
    return {r: slices(landed, r, settled) for r in sorted(ranges, key=lambda r: (r.partition, r.start))}


def _stop(consumer: LandingConsumer, stopped: ConsumerStopped) -> Exception:
    """Open an alarm and return a failure that Airflow does not retry: only a person can fix this."""
    from airflow.sdk.exceptions import AirflowFailException

    with begin() as connection:
        return AirflowFailException(open_stopped_alarm(connection, consumer, [str(stopped)]))
