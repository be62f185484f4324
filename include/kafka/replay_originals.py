"""Messages that were too large for a dead-letter topic, on the topic where they still are."""

from __future__ import annotations

from functools import cached_property

from include.kafka.messages import Message
from include.kafka.offsets import GroupOffsets, OffsetRange, Partition
from include.kafka.reading import CONSUMER_SETTINGS, RangeReader

GROUP = "replay-originals"


class OriginalReader:
    """Reads single messages of topics; connects with the first that is asked for."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id

    @cached_property
    def _group(self) -> GroupOffsets:
        # The group commits nothing.
        return GroupOffsets(GROUP, self._conn_id, **CONSUMER_SETTINGS)

    def find(self, topic: str, partition: int, offset: int) -> Message | None:
        """The message at these coordinates.

        Args:
            topic: its name.
            partition: its number.
            offset: the message's offset.

        Returns:
            The message; None when retention has removed it, or the log does not reach so far. Of a topic that was
            recreated it is another message: compare the digest.

        Raises:
            ReadingStalled or KafkaException when the broker does not answer, for Airflow's retries.
        """
        found = self._group.look_now([topic]).get(Partition(topic, partition))
        if found is None or not found.low <= offset < found.end:
            return None
        wanted = OffsetRange(topic, found.topic_id, partition, offset, offset + 1)
        for batch in RangeReader(self._group.consumer).read(wanted):
            return batch[0]
        return None
