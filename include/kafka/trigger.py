"""Start Dag runs from consumer-group lag."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.kafka.connection import CONN_ID, admin_config, consumer_config
from include.kafka.offsets import Partition, PartitionOffsets, partition_offsets

if TYPE_CHECKING:
    from confluent_kafka import Consumer as KafkaConsumer

    from include.kafka.consumers import Consumer

log = logging.getLogger(__name__)

# At the log end, how often a new message is looked for: the price of a wake-up is a Python call.
TAIL_INTERVAL_SECONDS = 0.03
# At the log end, how often everything is asked anew: partitions added, topics made, transactions aborted (their
# offsets are lag that no reader is shown).
REFRESH_SECONDS = 5.0
# After firing, how often committed offsets are looked at: a claim commits within about a second.
CLAIM_POLL_SECONDS = 0.1
# While they do not move: a lost event heals itself after the first, a stalled consumer costs few runs.
REFIRE_FIRST_SECONDS, REFIRE_LAST_SECONDS = 5.0, 300.0
# While the broker is away.
AWAY_FIRST_SECONDS, AWAY_LAST_SECONDS = 1.0, 30.0


class ConsumerLagTrigger(BaseEventTrigger):
    """Fire while a consumer group's committed offsets are behind the ends of its topics.

    Level-triggered, like KEDA's Kafka scaler: the event says only that there is lag; the messages stay in Kafka and
    the run claims them there. So an event that is lost, joined with another or sent twice does no harm, and nothing
    in a message can break the trigger, because it decodes none. It fires at once when lag appears, at once again
    when committed offsets have moved and lag remains, else with backoff.
    """

    def __init__(self, *, topics: list[str], group: str, conn_id: str = CONN_ID) -> None:
        super().__init__()
        self.topics, self.group, self.conn_id = list(topics), group, conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kwargs = {"topics": self.topics, "group": self.group, "conn_id": self.conn_id}
        return "include.kafka.trigger.ConsumerLagTrigger", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event whenever a run should look; never ends by itself."""
        refire = Refire()
        away = AWAY_FIRST_SECONDS
        while True:
            try:
                async for event in self._watch(refire):
                    if away > AWAY_FIRST_SECONDS:
                        log.warning("group=%s the broker is back", self.group)
                        away = AWAY_FIRST_SECONDS
                    if event is not None:
                        yield event
            except Exception as error:
                # Said once an outage. Lag waits in Kafka; ending here would leave it to whoever restarts triggers.
                if away == AWAY_FIRST_SECONDS:
                    log.warning("group=%s cannot ask for lag, trying again until it works: %s", self.group, error)
                await asyncio.sleep(away)
                away = min(2 * away, AWAY_LAST_SECONDS)

    async def _watch(self, refire: "Refire") -> AsyncIterator[TriggerEvent | None]:
        """Yield None after every look, an event when it is time to fire; raise when the broker cannot be asked."""
        from confluent_kafka import Consumer
        from confluent_kafka.admin import AdminClient

        # In threads: fetching a connection and loading certificates block, and the triggerer has one event loop.
        admin = AdminClient(await asyncio.to_thread(admin_config, self.conn_id))
        tail_config = {
            **await asyncio.to_thread(consumer_config, self.group, self.conn_id),
            # It only has to notice a message, not to hold many.
            "queued.min.messages": 1,
            "queued.max.messages.kbytes": 1024,
        }
        tail = Consumer(tail_config)
        try:
            while True:
                found = await partition_offsets(admin, self.topics, self.group)
                lag = sum(offsets.lag for offsets in found.values())
                behind = lag > 0 or any(offsets.truncated for offsets in found.values())
                if behind and refire.is_due(found):
                    log.info("group=%s lag=%d starting a run", self.group, lag)
                    yield TriggerEvent({"lag": lag})
                yield None
                if behind:
                    await asyncio.sleep(min(CLAIM_POLL_SECONDS * (1 + refire.fired_in_vain), REFRESH_SECONDS))
                else:
                    refire.forget()
                    await wait_for_message(tail, found)
        finally:
            await asyncio.to_thread(tail.close)


class Refire:
    """Decides when lag that is already known is worth another run."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """There is no lag: the next one fires at once."""
        self.committed: dict[Partition, int | None] | None = None
        self.fired_in_vain = 0
        self.not_before = 0.0

    def is_due(self, found: dict[Partition, PartitionOffsets]) -> bool:
        """True when the last event has had its effect (offsets moved), or has waited long enough for one."""
        committed = {partition: offsets.committed for partition, offsets in found.items()}
        now = time.monotonic()
        if committed != self.committed:
            self.committed, self.fired_in_vain = committed, 0
        elif now < self.not_before:
            return False
        else:
            self.fired_in_vain += 1
        self.not_before = now + min(REFIRE_FIRST_SECONDS * 2**self.fired_in_vain, REFIRE_LAST_SECONDS)
        return True


async def wait_for_message(tail: "KafkaConsumer", found: dict[Partition, PartitionOffsets]) -> None:
    """Return when a message arrives behind one of the ends, or after REFRESH_SECONDS.

    poll(0) neither blocks the event loop nor holds a thread.
    """
    from confluent_kafka import TopicPartition

    tail.assign([TopicPartition(p.topic, p.number, offsets.end) for p, offsets in found.items()])
    until = time.monotonic() + REFRESH_SECONDS
    try:
        while time.monotonic() < until:
            message = tail.poll(0)
            if message is not None and message.error() is None:
                return
            # An error (a broker gone, an offset removed) is left to the next look, which asks the broker itself.
            await asyncio.sleep(TAIL_INTERVAL_SECONDS)
    finally:
        # Else it would go on fetching what the claims read anyway.
        tail.unassign()


def lag_watcher(consumer: "Consumer") -> AssetWatcher:
    """The watcher that starts runs for a declared consumer."""
    return AssetWatcher(
        name=consumer.name,
        trigger=ConsumerLagTrigger(
            topics=[topic.name for topic in consumer.topics], group=consumer.group, conn_id=consumer.conn_id
        ),
    )
