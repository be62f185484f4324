"""Check whether a landing table is complete, because connectors in the state RUNNING have lost files silently.

The check covers the offsets from a given start up to the highest offset that has landed or that the sink's group has
committed. Each of them must have landed, or be recorded as holding no record or as lost. Every other offset is missing:
a gap. The sink commits its offsets in Kafka before it commits to the table. So offsets that are missing at the end of a
partition become a gap only after a grace period.

A partition whose log has lost landed records is stopped (`log_ends.py`). Its gaps are not repaired, because Kafka would
return other records.

A caller may limit the number of offsets: a lane that is far behind repairs only the gaps in its next claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from include.streams.kafka.connection import CONN_ID
from include.streams.landing import gaps
from include.streams.landing.consumers import LANDING_GRACE, LandingConsumer
from include.streams.landing.gaps import RUNBOOK, Gap
from include.streams.landing.snapshot import LandingSnapshot
from include.streams.landing.tables import LandedTopic, raw_table
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin


@dataclass(frozen=True)
class Verified:
    """The result of a check.

    Attributes:
        snapshot: The state of the table that was checked.
        missing: All gaps, due or not, without those of partitions whose log is not known to be the same.
        due: The gaps that are older than their grace period, as far as they are within the caller's limit.
    """

    snapshot: LandingSnapshot
    missing: tuple[Gap, ...]
    due: tuple[Gap, ...]


def verify(
    topic: LandedTopic,
    starts: Mapping[int, int] | None = None,
    *,
    conn_id: str = CONN_ID,
    grace: timedelta = LANDING_GRACE,
    max_offsets: int | None = None,
    repairs: bool = False,
) -> Verified:
    """Check the topic's landing table, record the missing offsets, and open or close the alarm. It repairs nothing.

    The alarm is closed when no checked gap is due and no gap of other offsets is recorded.

    Args:
        topic: The landed topic.
        starts: {partition: the first offset to check}; by default where the table begins.
        conn_id: The Airflow connection of Kafka.
        grace: How long offsets at the end of a partition may be missing before they are a gap that is due.
        max_offsets: How many offsets the caller needs. Each partition is checked for so many of its landed offsets, and
            gaps are due within the share that a claim of so many would take of each. None: all.
        repairs: Whether the caller repairs the due gaps next. If so, no alarm is opened, because most gaps are markers
            of transactions, which hold no record. `repair` opens the alarm when records are missing or cannot be read,
            or when it fails.

    Raises:
        ConsumerStopped: The topic was deleted and recreated.
        KafkaException: The broker is unavailable or refuses.
        Exception: What the catalog raises.
    """
    return _record(
        topic, LandingSnapshot.of_topic(topic, starts, max_offsets=max_offsets, conn_id=conn_id), grace, repairs=repairs
    )


def verify_next_claim(consumer: LandingConsumer) -> Verified:
    """Check for gaps in the offsets that this consumer's next claim can take, to repair them. Raises as `verify`."""
    return _record(consumer.topic, LandingSnapshot.load(consumer), consumer.landing_grace, repairs=True)


def _record(topic: LandedTopic, snapshot: LandingSnapshot, grace: timedelta, *, repairs: bool) -> Verified:
    """Record the snapshot's gaps, and open or close the alarm."""
    with begin() as connection:
        recorded = gaps.record_missing(connection, topic.name, snapshot.topic_id, snapshot.gaps(), snapshot.checked)
        all_due = snapshot.due(recorded, grace)
        missing = [gap for gap in recorded if snapshot.is_comparable(gap)]
        due = snapshot.needed(gap for gap in all_due if snapshot.is_comparable(gap))
        if due and not repairs:
            open_gap_alarm(connection, topic, due)
        if not all_due and not gaps.has_missing_outside(
            connection, snapshot.topic_id, snapshot.checked, snapshot.begins
        ):
            close_alarm(connection, raw_table(topic), AlarmKind.landing_gap)
    return Verified(snapshot, tuple(missing), tuple(due))


def open_gap_alarm(connection: Connection, topic: LandedTopic, due: Sequence[Gap]) -> None:
    """Open the alarm about these gaps of the topic's landing table.

    Args:
        connection: A connection in a transaction.
        topic: The landed topic.
        due: The gaps that are due; not empty.
    """
    where = ", ".join(str(gap.offsets) for gap in due[:20])
    more = f" and {len(due) - 20} more" if len(due) > 20 else ""
    count = sum(len(gap.offsets) for gap in due)
    open_alarm(
        connection,
        raw_table(topic),
        AlarmKind.landing_gap,
        f"{count} offsets have not landed: {where}{more}. A run reads them from Kafka and appends them, unless all "
        f"consumers have claimed later offsets; {RUNBOOK} says how to find the cause",
    )
