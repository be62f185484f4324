"""Start Dag runs when a consumer has lag."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.streams.compat.triggerer import hand_over_events
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import GroupOffsets, Partition, PartitionOffsets, is_same_topic, learn_leaders

if TYPE_CHECKING:
    from include.streams.kafka.consumers import Consumer

log = logging.getLogger(__name__)

# Without lag: between two polls for a new message. A poll costs one Python call.
TAIL_INTERVAL_SECONDS = 0.03
# Without lag: between two full requests, which find new partitions, new topics and aborted transactions (their offsets
# count as lag, but a poll returns none of their records).
REFRESH_SECONDS = 5.0
# The same while a topic or a leader is missing: a new topic is usable within a second.
NEW_TOPIC_SECONDS = 0.5
# With lag: between two requests for committed offsets. A claim commits within about half a second.
CLAIM_POLL_SECONDS = 0.1
# With lag: between two queries for the consumer's own positions while committed offsets do not move. The broker may
# refuse commits, or another client may have committed a later offset.
POSITIONS_SECONDS = 2.0
# The same without lag.
POSITIONS_QUIET_SECONDS = 60.0
# The same while the operational database is unavailable.
POSITIONS_AWAY_SECONDS = 15.0
# Between two events while positions do not move: a lost event is repeated after the first delay, and the last delay
# limits the runs of a stalled consumer.
BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS = 5.0, 300.0
# Between two attempts while the broker is unavailable.
AWAY_FIRST_SECONDS, AWAY_LAST_SECONDS = 1.0, 30.0


class ConsumerLagTrigger(BaseEventTrigger):
    """Fire while a consumer's positions are behind the ends of its topics.

    The positions are the consumer's own, in the operational database under the group's name, so commits of another
    client for the group delay nothing. While the database is unavailable, and before the first claim, the trigger uses
    committed offsets instead.

    Level-triggered, like KEDA's Kafka scaler: the event says only that there is lag. The messages stay in Kafka, and
    the run claims them there. So an event that is lost, coalesced or sent twice does no harm. The trigger decodes no
    message, so no message can break it.

    It fires at once when lag appears, and at once again when positions have moved and lag remains; otherwise it backs
    off. It never fires twice within `min_interval` seconds, so that steady traffic coalesces into fewer runs. For a
    partition whose log is not the log that was claimed, it fires with a separate backoff, so that a run opens the
    alarm.

    Args:
        topics: The names of the consumer's topics.
        group: The consumer's name, which is also its consumer group.
        conn_id: The Airflow connection of the broker.
        min_interval: The least number of seconds between two events.
    """

    def __init__(self, *, topics: list[str], group: str, conn_id: str = CONN_ID, min_interval: float = 0.5) -> None:
        super().__init__()
        self.topics, self.group, self.conn_id, self.min_interval = list(topics), group, conn_id, min_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kwargs = {
            "topics": self.topics,
            "group": self.group,
            "conn_id": self.conn_id,
            "min_interval": self.min_interval,
        }
        return "include.streams.kafka.trigger.ConsumerLagTrigger", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event whenever a run should claim; never ends by itself."""
        backoff = FireBackoff(self.min_interval)
        outage_wait = AWAY_FIRST_SECONDS
        while True:
            try:
                async with aclosing(self._watch(backoff)) as events:
                    async for event in events:
                        if outage_wait > AWAY_FIRST_SECONDS:
                            log.warning("group=%s the broker is back", self.group)
                            outage_wait = AWAY_FIRST_SECONDS
                        if event is not None:
                            yield event
                            hand_over_events()
            except Exception as error:
                # Logged once per outage. The trigger keeps trying: if it ended, lag would wait until a person restarts
                # the trigger.
                if outage_wait == AWAY_FIRST_SECONDS:
                    log.warning("group=%s cannot fetch the lag, trying again until it works: %s", self.group, error)
                await asyncio.sleep(outage_wait)
                outage_wait = min(2 * outage_wait, AWAY_LAST_SECONDS)

    async def _watch(self, backoff: "FireBackoff") -> AsyncGenerator[TriggerEvent | None]:
        """Yield an event when it is time to fire, None after every request; raise when the broker is unavailable."""
        # In a thread: fetching a connection and loading certificates block, and the triggerer has one event loop. Small
        # queues, because the client only has to notice a message.
        small = {"queued.min.messages": 1, "queued.max.messages.kbytes": 1024}
        group = await asyncio.to_thread(GroupOffsets, self.group, self.conn_id, **small)
        tail, positions = Tail(group), Positions(self.group)
        stopped_backoff = FireBackoff(self.min_interval)
        missing: set[str] = set()
        try:
            while True:
                current = await group.fetch_offsets(self.topics, needs_committed=False)
                if missing != (missing := set(self.topics) - {partition.topic for partition in current}) and missing:
                    forbidden = sorted(group.forbidden)
                    text = "group=%s waiting for topics that do not exist: %s; or that its user may not read: %s"
                    log.warning(text, self.group, sorted(missing - group.forbidden), forbidden)
                current = await positions.applied_to(current)
                if group.committed_error is not None:
                    # Without a position, a claim would need the committed offset, and wait for it.
                    current = {p: offsets for p, offsets in current.items() if offsets.committed is not None}
                other_logs = {partition: offsets for partition, offsets in current.items() if offsets.truncated}
                same_logs = {partition: offsets for partition, offsets in current.items() if not offsets.truncated}
                lag = sum(offsets.lag for offsets in same_logs.values())
                if not lag:
                    backoff.reset()
                if not other_logs:
                    stopped_backoff.reset()
                if (lag and backoff.is_due(same_logs)) or (other_logs and stopped_backoff.is_due(other_logs)):
                    log.info("group=%s lag=%d starting a run", self.group, lag)
                    yield TriggerEvent({"lag": lag})
                yield None
                if lag:
                    await asyncio.sleep(min(CLAIM_POLL_SECONDS * (1 + backoff.unanswered_fires), REFRESH_SECONDS))
                else:
                    await tail.wait(same_logs, NEW_TOPIC_SECONDS if group.incomplete else REFRESH_SECONDS)
        finally:
            await group.in_thread(group.close)


class Positions:
    """A consumer's own positions, read from the database only when they may have moved.

    Args:
        consumer: The consumer's name.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._known: dict[Partition, tuple[str, int]] = {}
        self._committed: dict[Partition, int | None] = {}
        self._read_at = -math.inf
        self._is_away = False

    async def applied_to(self, current: Mapping[Partition, PartitionOffsets]) -> dict[Partition, PartitionOffsets]:
        """Replace committed offsets by the consumer's positions.

        A claim commits its offsets, so positions are read when committed offsets have moved. They are also read every
        POSITIONS_SECONDS while there is lag, and every POSITIONS_QUIET_SECONDS without lag.

        Args:
            current: {partition: offsets}, from `GroupOffsets.fetch_offsets`.

        Returns:
            The same offsets, with the position as `committed` where it is known.
        """
        committed = {partition: offsets.committed for partition, offsets in current.items()}
        has_moved = committed != self._committed and not self._is_away
        if has_moved or time.monotonic() >= self._read_at + self._seconds_between(current):
            self._committed = committed
            await self._read()
        return {partition: self._applied(partition, offsets) for partition, offsets in current.items()}

    def _seconds_between(self, current: Mapping[Partition, PartitionOffsets]) -> float:
        if self._is_away:
            return POSITIONS_AWAY_SECONDS
        applied = [self._applied(partition, offsets) for partition, offsets in current.items()]
        has_lag = any(offsets.lag or offsets.truncated for offsets in applied)
        return POSITIONS_SECONDS if has_lag else POSITIONS_QUIET_SECONDS

    async def _read(self) -> None:
        try:
            # In a thread: the query blocks, and the triggerer has one event loop.
            self._known = await asyncio.to_thread(read_positions, self._consumer)
        except Exception as error:
            if not self._is_away:
                text = "group=%s using committed offsets, because positions cannot be read: %s"
                log.warning(text, self._consumer, error)
            # The known positions may be outdated: their lag would start runs that find nothing.
            self._known, self._is_away = {}, True
        else:
            if self._is_away:
                log.warning("group=%s positions can be read again", self._consumer)
            self._is_away = False
        self._read_at = time.monotonic()

    def _applied(self, partition: Partition, offsets: PartitionOffsets) -> PartitionOffsets:
        if (position := self._known.get(partition)) is None:
            return offsets
        identity, next_offset = position
        if not is_same_topic(identity, offsets.topic_id):
            # Treat a recreated topic as a log that ends before the position.
            next_offset = max(next_offset, offsets.end + 1)
        return replace(offsets, committed=next_offset)


def read_positions(consumer: str) -> dict[Partition, tuple[str, int]]:
    """Read the consumer's positions from the operational database; blocks.

    Args:
        consumer: The consumer's name.

    Returns:
        {partition: (log identity, next offset)}.

    Raises:
        SQLAlchemyError: The database failed.
    """
    # Imported here, because Dag files import this module and must not load SQLAlchemy.
    from include.streams.kafka.claims import positions_of
    from include.streams.operations.database import begin

    with begin() as connection:
        return positions_of(connection, consumer)


class FireBackoff:
    """Decides when lag should start another run.

    Args:
        min_interval: The least number of seconds between two events.

    Attributes:
        fired_at: When the last event was fired, a time of the monotonic clock.
        committed: The positions at the last event. None if there was no lag since, so the next lag fires at once.
        unanswered_fires: How many events in a row were repeated because the positions had not moved.
    """

    def __init__(self, min_interval: float) -> None:
        self.min_interval = min_interval
        self.fired_at = -math.inf
        self.committed: dict[Partition, int | None] | None = None
        self.unanswered_fires = 0

    def reset(self) -> None:
        """Call this when there is no lag: the next lag fires at once."""
        self.committed, self.unanswered_fires = None, 0

    def is_due(self, current: dict[Partition, PartitionOffsets]) -> bool:
        """Whether to fire now: positions have moved since the last event, or its backoff has passed.

        If it returns True, it counts this call as an event.

        Args:
            current: {partition: offsets}, with the consumer's positions as `committed`.
        """
        now = time.monotonic()
        if now < self.fired_at + self.min_interval:
            return False
        committed = {partition: offsets.committed for partition, offsets in current.items()}
        # A partition that is missing for a moment keeps its position here: its return must not look like a claim.
        if self.committed is None or not committed.items() <= self.committed.items():
            self.committed, self.unanswered_fires = {**(self.committed or {}), **committed}, 0
        elif now < self.fired_at + min(BACKOFF_FIRST_SECONDS * 2**self.unanswered_fires, BACKOFF_LAST_SECONDS):
            return False
        else:
            self.unanswered_fires += 1
        self.fired_at = now
        return True


class Tail:
    """Tails logs from their ends for the next message.

    Args:
        group: Its consumer client tails the logs.
    """

    def __init__(self, group: GroupOffsets) -> None:
        self._group = group
        self._consumer = group.consumer
        self._at: dict[Partition, int] = {}
        self._known: set[str] = set()

    async def wait(self, current: dict[Partition, PartitionOffsets], seconds: float) -> None:
        """Return when a message arrives after one of the ends, or after `seconds`.

        It uses poll(0), which neither blocks the event loop nor occupies a thread.

        Args:
            current: {partition: offsets}; each log is tailed from its `end`.
            seconds: The longest wait.
        """
        from confluent_kafka import TopicPartition

        ends = {partition: offsets.end for partition, offsets in current.items()}
        for topic in {partition.topic for partition in ends} - self._known:
            await self._group.in_thread(learn_leaders, self._consumer, topic)
            self._known.add(topic)
        if ends != self._at:
            # Only when an end has changed: a fetch in flight for the old assignment delays the first fetch of the new.
            self._consumer.assign([TopicPartition(p.topic, p.number, end) for p, end in ends.items()])
            self._at = ends
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            message = self._consumer.poll(0)
            if message is not None and message.error() is None:
                # Unassigned: otherwise the client would fetch the messages that the claims will read.
                self._consumer.unassign()
                self._at = {}
                return
            # Errors (a broker is unavailable, an offset was removed) are ignored: the next request to the broker
            # reports them.
            await asyncio.sleep(TAIL_INTERVAL_SECONDS)


def lag_watcher(consumer: "Consumer") -> AssetWatcher:
    """The watcher that starts runs for a declared consumer.

    Args:
        consumer: The consumer. The trigger gets its topics, group, connection and least time between runs.

    Returns:
        A watcher for `Asset(..., watchers=[...])`. It updates the asset while the consumer has lag.
    """
    return AssetWatcher(
        name=consumer.name,
        trigger=ConsumerLagTrigger(
            topics=[topic.name for topic in consumer.topics],
            group=consumer.group,
            conn_id=consumer.conn_id,
            min_interval=consumer.min_seconds_between_runs,
        ),
    )
