"""Read from a sink's control topic which data files its coordinator has not committed to the table yet."""

from __future__ import annotations

import logging
import re

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import GroupOffsets, OffsetRange
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.streams.landing.connectors import control_topic, coordinator_group

log = logging.getLogger(__name__)

# Messages are uncompressed Avro and contain the files' addresses as text. The names are unique, so the folders are not
# needed.
_NAME = re.compile(rb"/([A-Za-z0-9_.=-]+\.parquet)")


def named_files(topic: Topic, conn_id: str = CONN_ID) -> set[str] | None:
    """Names of the files that the sink's tasks have announced since its coordinator's last commit.

    A coordinator that was down, even for a day, continues at its last commit and commits these files.

    Args:
        topic: The landed topic.
        conn_id: The Airflow connection of Kafka.

    Returns:
        The names, without folders; None when the coordinator has no committed offset, so that the names are unknown.

    Raises:
        KafkaException, ReadingStalled: The broker is unavailable or refuses.
        LookupError: A partition of the control topic has no leader.
    """
    name = control_topic(topic)
    with GroupOffsets(coordinator_group(topic), conn_id, **CONSUMER_SETTINGS) as group:
        if not group.fetch_topic_ids([name]):
            # No sink has ever landed this topic.
            return set()
        partitions = group.fetch_offsets_sync([name])
        if group.incomplete:
            raise LookupError(f"topic {name} has partitions without a leader: try again when all brokers are available")
        reader, names = RangeReader(group.consumer), set()
        for partition, offsets in partitions.items():
            if offsets.committed is None:
                return None
            start = max(offsets.low, offsets.committed)
            if offsets.end <= start:
                continue
            for batch in reader.read(OffsetRange(name, offsets.topic_id, partition.number, start, offsets.end)):
                for message in batch:
                    names |= {match.decode() for match in _NAME.findall(message.value or b"")}
        return names
