"""An index of the dead-letter topics in the database, for the inbox on the Streams page.

It lists each record of `<topic>.dlq` once, also records that Kafka Connect, Kafka Streams or Spring wrote there. It
holds reasons and coordinates, and no content. Rows of a partition and the position up to which it was read are written
in one transaction: killed before the commit, the next call reads the records again; two processes at once write the
same rows.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.dead_letter_records import DeadLetterRecord
from include.streams.kafka.dead_letters import PREFIX
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, Partition, PartitionOffsets
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.streams.operations.database import begin
from include.streams.operations.tables import dead_letter_positions, dead_letters

log = logging.getLogger(__name__)

# The group name that the broker sees. No client joins this group or commits offsets for it.
GROUP = "index_dead_letters"
MAX_TEXT = 300

STREAMS, CONNECT, KAFKA_STREAMS, SPRING, OTHER = "streams", "connect", "kafka_streams", "spring", "other"
Headers = Mapping[str, bytes | None]


def index_dead_letters(topics: Iterable[Topic], *, seconds: float, conn_id: str = CONN_ID) -> int:
    """Add the new records of all dead-letter topics, and remove those that retention has removed.

    Args:
        topics: The topics.
        seconds: After this time, the remaining records are left for the next call.
        conn_id: The Airflow connection of the broker.

    Returns:
        The number of records that were read.

    Raises:
        KafkaException: The broker did not answer.
        ReadingStalled: A partition could not be read.
    """
    until = time.monotonic() + seconds
    by_name = {topic.dead_letter_name: topic for topic in topics}
    number = 0
    with GroupOffsets(GROUP, conn_id, **CONSUMER_SETTINGS) as group:
        current = group.fetch_offsets_sync(by_name, needs_committed=False)
        known = _positions()
        reader = RangeReader(group.consumer)
        # Shuffled: a partition that cannot be read must not hide the same others at each call.
        for partition, offsets in random.sample(list(current.items()), len(current)):
            if time.monotonic() > until:
                break
            number += _read(reader, by_name[partition.topic], partition, offsets, known.get(partition), until)
    log.info("indexed: dead_letters=%d", number)
    return number


def _positions() -> dict[Partition, tuple[str, int]]:
    with begin() as connection:
        rows = connection.execute(select(dead_letter_positions)).all()
    return {Partition(row.topic, row.partition): (row.topic_id, row.next_offset) for row in rows}


def _read(
    reader: RangeReader,
    topic: Topic,
    partition: Partition,
    offsets: PartitionOffsets,
    known: tuple[str, int] | None,
    until: float,
) -> int:
    start = offsets.low
    if known is not None and known[0] == offsets.topic_id and known[1] <= offsets.end:
        start = max(start, known[1])
        if start == offsets.end == known[1] and offsets.low == 0:
            return 0
    else:
        # The log is another one, or was truncated: other records may have the offsets of rows.
        with begin() as connection:
            connection.execute(
                delete(dead_letters).where(
                    dead_letters.c.topic == topic.name, dead_letters.c.partition == partition.number
                )
            )
    number = 0
    wanted = OffsetRange(partition.topic, offsets.topic_id, partition.number, start, offsets.end)
    position = start
    if len(wanted):
        for batch in reader.read(wanted):
            with begin() as connection:
                connection.execute(
                    insert(dead_letters).on_conflict_do_nothing(), [row_of(record, topic) for record in batch]
                )
                _store(connection, partition, offsets.topic_id, batch[-1].offset + 1)
            number += len(batch)
            position = batch[-1].offset + 1
            if time.monotonic() > until:
                break
        else:
            position = offsets.end
    with begin() as connection:
        _store(connection, partition, offsets.topic_id, position)
        connection.execute(
            delete(dead_letters).where(
                dead_letters.c.topic_id == offsets.topic_id,
                dead_letters.c.partition == partition.number,
                dead_letters.c.offset < offsets.low,
            )
        )
    return number


def _store(connection: Connection, partition: Partition, topic_id: str, offset: int) -> None:
    statement = insert(dead_letter_positions).values(
        topic=partition.topic, partition=partition.number, topic_id=topic_id, next_offset=offset
    )
    changed = {name: statement.excluded[name] for name in ("topic_id", "next_offset")}
    connection.execute(statement.on_conflict_do_update(index_elements=["topic", "partition"], set_=changed))


def row_of(record: Message, topic: Topic) -> dict[str, Any]:
    """The row of a record of a dead-letter topic.

    Args:
        record: The record.
        topic: The topic that the dead-letter topic belongs to.
    """
    letter = DeadLetterRecord.of(record, topic.name)
    row: dict[str, Any] = {
        "topic_id": record.topic_id,
        "partition": record.partition,
        "offset": record.offset,
        "topic": topic.name,
        "written_at": record.timestamp or datetime.now(UTC),
        "key_digest": None if record.key is None else sha256(record.key).digest(),
        "size_bytes": record.size_bytes,
        **dict.fromkeys(("detail", "consumer", "source_partition", "source_offset", "source_timestamp", "run_id")),
    }
    headers = dict(record.headers)
    if (origin := letter.origin) is not None:
        return row | {
            "writer": STREAMS,
            "reason": origin.reason.value,
            "detail": _text(headers, PREFIX + "detail"),
            "consumer": origin.consumer,
            "source_partition": origin.partition,
            "source_offset": origin.offset,
            "source_timestamp": origin.timestamp,
            "run_id": _text(headers, PREFIX + "run_id"),
        }
    return row | foreign(headers)


def foreign(headers: Headers) -> dict[str, Any]:
    """Writer, reason and coordinates from the headers of Kafka Connect, Kafka Streams or Spring.

    The messages of exceptions are left out, because they may quote the record.

    Args:
        headers: The headers of the record.
    """
    if "__connect.errors.topic" in headers:
        stage = _text(headers, "__connect.errors.stage")
        return {
            "writer": CONNECT,
            "reason": _class(headers, "__connect.errors.exception.class.name"),
            "detail": stage and f"stage {stage}",
            "consumer": _text(headers, "__connect.errors.connector.name"),
            "source_partition": _digits(headers, "__connect.errors.partition"),
            "source_offset": _digits(headers, "__connect.errors.offset"),
        }
    if "__streams.errors.exception" in headers:
        return {
            "writer": KAFKA_STREAMS,
            "reason": _class(headers, "__streams.errors.exception"),
            "source_partition": _digits(headers, "__streams.errors.partition"),
            "source_offset": _digits(headers, "__streams.errors.offset"),
        }
    if "kafka_dlt-exception-fqcn" in headers:
        cause = _class(headers, "kafka_dlt-exception-cause-fqcn")
        return {
            "writer": SPRING,
            "reason": _class(headers, "kafka_dlt-exception-fqcn") if cause == UNNAMED else cause,
            "consumer": _text(headers, "kafka_dlt-original-consumer-group"),
            "source_partition": _integer(headers, "kafka_dlt-original-partition", 4),
            "source_offset": _integer(headers, "kafka_dlt-original-offset", 8),
        }
    return {"writer": OTHER, "reason": "no headers that say why"}


UNNAMED = "unnamed exception"


def _text(headers: Headers, name: str) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    text = value.decode("utf-8", "replace").replace("\0", "\ufffd")
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_TEXT]


def _class(headers: Headers, name: str) -> str:
    """The class of an exception without its package."""
    return (_text(headers, name) or UNNAMED).rsplit(".", 1)[-1] or UNNAMED


def _digits(headers: Headers, name: str) -> int | None:
    value = headers.get(name) or b""
    return int(value) if re.fullmatch(rb"[0-9]{1,18}", value) else None


def _integer(headers: Headers, name: str, size: int) -> int | None:
    """Spring writes partition and offset as big-endian integers."""
    value = headers.get(name)
    return int.from_bytes(value, "big", signed=True) if value is not None and len(value) == size else None
