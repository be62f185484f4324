"""Read single records of a topic again by their coordinates: as the producer sent them, with key and headers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, is_same_topic
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader

# Records that are at most this many offsets apart are read as one range: a seek takes longer than reading and dropping
# the records between them.
MAX_GAP = 200


class Originals:
    """Fetches records of a topic from Kafka; a context manager. It connects at the first fetch.

    Args:
        topic: The topic's name.
        topic_id: The identity of its log when the records were seen.
        group: The consumer group of the client, which joins no group and commits nothing.
        conn_id: The Airflow connection of the broker.
    """

    def __init__(self, topic: str, topic_id: str, *, group: str, conn_id: str) -> None:
        self._topic = topic
        self._topic_id = topic_id
        self._group_name = group
        self._conn_id = conn_id
        self._group: GroupOffsets | None = None
        # Whether the topic exists and is the same as when the records were seen.
        self._is_same_topic = False

    def fetch(self, coordinates: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Message]:
        """Read records from Kafka.

        Args:
            coordinates: (partition, offset) of the records.

        Returns:
            {(partition, offset): record}, without records that retention has removed. Empty when the topic was
            recreated.

        Raises:
            ReadingStalled: The broker does not deliver. A retry may find the records: a record that could not be read
                is not treated as removed.
            KafkaException: The broker refuses.
        """
        wanted = set(coordinates)
        return self.fetch_some(sorted(wanted))[0] if wanted else {}

    def fetch_some(
        self, coordinates: Sequence[tuple[int, int]], max_bytes: float = math.inf
    ) -> tuple[dict[tuple[int, int], Message], int]:
        """Read the first of these records, up to a number of bytes. One batch of the reader may exceed it.

        Args:
            coordinates: (partition, offset) of the records, sorted, at least one.
            max_bytes: The bytes of keys, values and headers.

        Returns:
            {(partition, offset): record}, as from `fetch`; and how many of the coordinates were processed.

        Raises:
            ReadingStalled: As for `fetch`.
            KafkaException: As for `fetch`.
        """
        if self._group is None:
            self._group = GroupOffsets(self._group_name, self._conn_id, **CONSUMER_SETTINGS)
            # A recreated topic has other records at these offsets.
            topic_ids = self._group.fetch_topic_ids([self._topic])
            self._is_same_topic = is_same_topic(topic_ids.get(self._topic, ""), self._topic_id)
        records: dict[tuple[int, int], Message] = {}
        if not self._is_same_topic:
            return records, len(coordinates)
        wanted, size = set(coordinates), 0
        reader = RangeReader(self._group.consumer)
        for offsets in self._ranges_of(coordinates):
            for batch in reader.read(offsets):
                new = {(m.partition, m.offset): m for m in batch if (m.partition, m.offset) in wanted}
                records |= new
                size += sum(message.size_bytes for message in new.values())
                if size >= max_bytes:
                    return records, bisect_right(coordinates, (batch[-1].partition, batch[-1].offset))
        return records, len(coordinates)

    def _ranges_of(self, coordinates: Iterable[tuple[int, int]]) -> Iterator[OffsetRange]:
        """Ranges that hold all of these offsets; offsets at most MAX_GAP apart share a range."""
        current: OffsetRange | None = None
        for partition, offset in sorted(coordinates):
            if current and partition == current.partition and offset - current.end <= MAX_GAP:
                current = OffsetRange(current.topic, current.topic_id, partition, current.start, offset + 1)
                continue
            if current:
                yield current
            current = OffsetRange(self._topic, self._topic_id, partition, offset, offset + 1)
        if current:
            yield current

    def close(self) -> None:
        if self._group is not None:
            self._group.close()

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *_) -> None:
        self.close()
