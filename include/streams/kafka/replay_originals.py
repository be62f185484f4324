"""Reads from their own topic the messages that were too large for its dead-letter topic."""

from __future__ import annotations

from functools import cached_property

from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader, ReadingStalled

GROUP = "replay-originals"


class OriginalReader:
    """Reads single messages of topics; connects at the first call of `find`."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id

    @cached_property
    def _group(self) -> GroupOffsets:
        # Offsets of this group are never committed.
        return GroupOffsets(GROUP, self._conn_id, **CONSUMER_SETTINGS)

    def find(self, topic: str, partition: int, offset: int) -> Message | None:
        """Read the message at these coordinates.

        Args:
            topic: The topic's name.
            partition: The partition's number.
            offset: The message's offset.

        Returns:
            The message; None when retention has removed it, or when the log ends before the offset. If the topic was
            recreated, this is a different message: compare the digest.

        Raises:
            ReadingStalled: The broker returned nothing in time; Airflow retries the task.
            KafkaException: The broker did not answer; Airflow retries the task.
        """
        wanted_from = Partition(topic, partition)
        found = self._group.look_now([topic], needs_committed=False).get(wanted_from)
        if (why := self._group.left_out.get(wanted_from)) is not None:
            raise ReadingStalled(f"{topic}-{partition}: {why}")
        if found is None or not found.low <= offset < found.end:
            return None
        wanted = OffsetRange(topic, found.topic_id, partition, offset, offset + 1)
        for batch in RangeReader(self._group.consumer).read(wanted):
            return batch[0]
        return None
