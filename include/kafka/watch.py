"""Whether a consumer keeps up: its lag, the age of what waits, and claims that stay open, as alarms.

Every run looks at its own consumer; `check_consumers` looks without a run, since a Dag that is paused, or whose claims
stall, has none. An alarm opens beyond its limit and closes at half of it, so that a consumer that hovers around the
limit is one episode and not hundreds.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, select

from include.kafka.consumers import Consumer
from include.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets
from include.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.operations import outbox
from include.operations.alarms import close_alarm, open_alarm
from include.operations.database import begin
from include.operations.tables import claims, positions

log = logging.getLogger(__name__)

REMEDIES = (
    "raise capacity (max_active_runs, max_messages_per_claim, workers), or move the topic to the standard lane; "
    "docs/runbooks/lag-grows.md says what to look at first"
)
# One message of each partition is looked at.
ONE_MESSAGE = {"queued.min.messages": 1, "queued.max.messages.kbytes": 1024}


@dataclass(frozen=True)
class Standing:
    """How a consumer stands: by topic, messages not claimed and the age of the oldest; and the oldest open claim's age.

    `is_whole` is False when a topic or a partition's leader was missing: there may be more.
    """

    behind: Mapping[str, int]
    waiting: Mapping[str, timedelta]
    oldest_claim: timedelta | None
    is_whole: bool


class CheckFailed(Exception):
    """Some consumers could not be looked at; the others were."""


def check_consumers(consumers: Iterable[Consumer]) -> None:
    """Look at every consumer. Raises CheckFailed at the end, so that one broker that is away hides no other's alarm."""
    failures: list[str] = []
    for consumer in consumers:
        try:
            check_consumer(consumer)
        except Exception as error:
            log.exception("cannot be checked: consumer=%s", consumer.name)
            failures.append(f"consumer {consumer.name}: {error}")
    if failures:
        raise CheckFailed("; ".join(failures))


def check_consumer(consumer: Consumer) -> Standing:
    """Open and close the consumer's alarms by what the database and the broker say now.

    Raises KafkaException when the broker cannot be asked; what the database alone can tell is done before.
    """
    with begin() as connection:
        oldest_claim = watch_claims(connection, consumer)
        outbox.close_if_none_failed(connection, consumer.name)
    with GroupOffsets(consumer.group, consumer.conn_id, **CONSUMER_SETTINGS, **ONE_MESSAGE) as group:
        found = group.look_now(topic.name for topic in consumer.topics)
        standing = _standing(consumer, found, group, oldest_claim)
    with begin() as connection:
        watch_lag(connection, consumer, standing.behind, is_whole=standing.is_whole)
        _watch_waiting(connection, consumer, standing)
    log.info(
        "checked: consumer=%s behind=%s oldest_unclaimed=%s oldest_open_claim=%s",
        consumer.name,
        dict(standing.behind),
        {topic: str(age) for topic, age in standing.waiting.items()},
        oldest_claim,
    )
    return standing


def watch_lag(connection: Connection, consumer: Consumer, behind: Mapping[str, int], *, is_whole: bool = True) -> None:
    """`behind`: messages by topic that nobody has claimed."""
    total = sum(behind.values())
    if total > consumer.max_lag:
        text = f"{total} messages behind, limit {consumer.max_lag} ({_by_topic(behind)}): {REMEDIES}"
        open_alarm(connection, consumer.name, "lag", text)
    elif is_whole and total <= consumer.max_lag / 2:
        close_alarm(connection, consumer.name, "lag")


def watch_claims(connection: Connection, consumer: Consumer) -> timedelta | None:
    """Returns the age of the oldest open claim."""
    open_ones = select(claims.c.run_id, claims.c.claimed_at).where(
        claims.c.consumer == consumer.name, claims.c.closed_at.is_(None)
    )
    oldest = connection.execute(open_ones.order_by(claims.c.claimed_at).limit(1)).first()
    if oldest is None:
        close_alarm(connection, consumer.name, "claim_open")
        return None
    age = datetime.now(UTC) - oldest.claimed_at
    if age > consumer.max_claim_age:
        text = (
            f"a claim is open since {oldest.claimed_at.isoformat()} (run {oldest.run_id}): clear its run, if it "
            "failed, once the cause is gone"
        )
        open_alarm(connection, consumer.name, "claim_open", text)
    else:
        close_alarm(connection, consumer.name, "claim_open")
    return age


def watch_handled(consumer: Consumer, oldest: Mapping[str, datetime]) -> None:
    """`oldest`: by topic, the oldest message that was handled now. Its age is the lane's delay.

    Only opens the alarm: what else waits, in other partitions or claims, a task does not know.
    """
    late = _late(consumer, {topic: datetime.now(UTC) - at for topic, at in oldest.items()})
    if late:
        with begin() as connection:
            text = f"messages waited long to be handled ({_by_topic(late)}), limit {consumer.max_age}: {REMEDIES}"
            open_alarm(connection, consumer.name, "age", text)


def _watch_waiting(connection: Connection, consumer: Consumer, standing: Standing) -> None:
    if late := _late(consumer, standing.waiting):
        text = f"messages wait long to be claimed ({_by_topic(late)}), limit {consumer.max_age}: {REMEDIES}"
        open_alarm(connection, consumer.name, "age", text)
        return
    # A claim's messages are as old as the claim at least: while they wait, the episode goes on.
    ages = [*standing.waiting.values(), *([standing.oldest_claim] if standing.oldest_claim else [])]
    if standing.is_whole and all(age <= consumer.max_age / 2 for age in ages):
        close_alarm(connection, consumer.name, "age")


def _standing(
    consumer: Consumer,
    found: Mapping[Partition, PartitionOffsets],
    group: GroupOffsets,
    oldest_claim: timedelta | None,
) -> Standing:
    behind = dict.fromkeys((topic.name for topic in consumer.topics), 0)
    waiting: dict[str, timedelta] = {}
    next_offsets = _next_offsets(consumer, found)
    reader = RangeReader(group.consumer, batch_size=1)
    for partition, offsets in sorted(found.items()):
        start = next_offsets[partition]
        if start >= offsets.end:
            continue
        behind[partition.topic] += offsets.end - start
        unclaimed = OffsetRange(partition.topic, offsets.topic_id, partition.number, start, offsets.end)
        # None: the rest of the log holds no record, only the marks of transactions.
        batch = next(reader.read(unclaimed), None)
        if batch and (written_at := batch[0].timestamp) is not None:
            age = datetime.now(UTC) - written_at
            waiting[partition.topic] = max(age, waiting.get(partition.topic, age))
    return Standing(behind, waiting, oldest_claim, is_whole=not group.incomplete)


def _next_offsets(consumer: Consumer, found: Mapping[Partition, PartitionOffsets]) -> dict[Partition, int]:
    """Where the consumer's next claim would start to read in each partition."""
    with begin() as connection:
        rows = connection.execute(select(positions).where(positions.c.consumer == consumer.name))
        known = {(row.topic, row.partition, row.topic_id): row.next_offset for row in rows}
    starts: dict[Partition, int] = {}
    for partition, offsets in found.items():
        claimed = known.get((partition.topic, partition.number, offsets.topic_id), offsets.committed or 0)
        starts[partition] = max(offsets.low, claimed)
    return starts


def _late(consumer: Consumer, ages: Mapping[str, timedelta]) -> dict[str, timedelta]:
    return {topic: age for topic, age in ages.items() if age > consumer.max_age}


def _by_topic(numbers: Mapping[str, int] | Mapping[str, timedelta]) -> str:
    """The largest first; what is zero is left out."""
    ordered = sorted(numbers.items(), key=lambda item: item[1], reverse=True)  # type: ignore[arg-type, return-value]
    return ", ".join(f"{topic}: {_short(number)}" for topic, number in ordered if number)


def _short(number: int | timedelta) -> str:
    return str(timedelta(seconds=int(number.total_seconds()))) if isinstance(number, timedelta) else str(number)
