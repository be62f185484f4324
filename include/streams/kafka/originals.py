"""Single records of a topic, read again by their coordinates: as the producer sent them, with key and headers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, is_same_topic
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader

# Records that are at most this many offsets apart are read in one go: a seek takes longer than reading and dropping
# those in between.
MAX_GAP = 200


class Originals:
    """The records of a topic as they are in Kafka; a context manager. It connects at the first `fetch`.

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
        self._is_there = False

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
        self, places: Sequence[tuple[int, int]], max_bytes: float = math.inf
    ) -> tuple[dict[tuple[int, int], Message], int]:
        """Read the first of these records, until they have so many bytes; it may be one batch of the reader more.

        Args:
            places: (partition, offset) of the records, sorted, at least one.
            max_bytes: The bytes of keys, values and headers.

        Returns:
            What `fetch` returns, and for how many of the places. Raises what `fetch` raises.
        """
        if self._group is None:
            self._group = GroupOffsets(self._group_name, self._conn_id, **CONSUMER_SETTINGS)
            # A recreated topic has other records at these offsets.
            now = self._group.fetch_topic_ids([self._topic])
            self._is_there = is_same_topic(now.get(self._topic, ""), self._topic_id)
        found: dict[tuple[int, int], Message] = {}
        if not self._is_there:
            return found, len(places)
        wanted, size = set(places), 0
        reader = RangeReader(self._group.consumer)
        for part in self._close_together(places):
            for batch in reader.read(part):
                mine = {(m.partition, m.offset): m for m in batch if (m.partition, m.offset) in wanted}
                found |= mine
                size += sum(message.size_bytes for message in mine.values())
                if size >= max_bytes:
                    return found, bisect_right(places, (batch[-1].partition, batch[-1].offset))
        return found, len(places)

    def _close_together(self, wanted: Iterable[tuple[int, int]]) -> Iterator[OffsetRange]:
        part: OffsetRange | None = None
        for partition, offset in sorted(wanted):
            if part and partition == part.partition and offset - part.end <= MAX_GAP:
                part = OffsetRange(part.topic, part.topic_id, partition, part.start, offset + 1)
                continue
            if part:
                yield part
            part = OffsetRange(self._topic, self._topic_id, partition, offset, offset + 1)
        if part:
            yield part

    def close(self) -> None:
        if self._group is not None:
            self._group.close()

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *_) -> None:
        self.close()
