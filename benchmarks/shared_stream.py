"""The Kafka provider's shared stream, set up as its documentation advises; its trigger runs in the triggerer.

The offset is committed after the asset event is stored, a message that breaks its contract is rejected and goes to the
dead-letter topic, and the buffer of a subscriber is large enough for every burst.
"""

from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.apache.kafka.triggers.shared_stream import KafkaSharedStreamTrigger
from airflow.triggers.base import TriggerEvent
from airflow.triggers.shared_stream import reject_shared_stream_event

from benchmarks.consumers import SHARED_STREAM_CONN_ID, SHARED_STREAM_TOPIC
from include.streams.contracts import ContractViolation


class ProbeStream(KafkaSharedStreamTrigger):
    """Yield the messages that keep their contract, and reject the others."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", super().serialize()[1]

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        async for value in shared_stream:
            try:
                SHARED_STREAM_TOPIC.parse(value)
            except ContractViolation:
                # An exception here would end the trigger, and the message would be skipped.
                reject_shared_stream_event()
            else:
                yield TriggerEvent(value.decode())


def probe_stream() -> ProbeStream:
    """The trigger of the one Dag that is measured."""
    return ProbeStream(
        topics=[SHARED_STREAM_TOPIC.name],
        kafka_config_id=SHARED_STREAM_CONN_ID,
        dlq_topic=SHARED_STREAM_TOPIC.dead_letter_name,
        # The default is 1 s; this gives the lowest latency.
        poll_timeout=0.1,
    )
