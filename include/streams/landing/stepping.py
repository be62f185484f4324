"""Move a connector past records whose timestamp Kafka Connect refuses, without losing any record.

If a record has a negative timestamp, Connect fails the sink's task before any converter, transform or sink gets the
record; `errors.tolerance` does not cover this. The next task that gets the partition fails too, until all have failed.
The only solution is to stop the connector and set its offsets through Connect's REST API. The records between the
committed offset and the new offset are then missing in the landing table. The repair of gaps appends them from Kafka.
Records with a refused timestamp get no timestamp; their values are validated like all others.

If the process is killed before the connector is stopped, nothing has changed. If it is killed after that, the open
alarm `stepping_over` makes the next check continue. If it is killed after the offsets were set, the next check finds no
such record and resumes the connector.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.kafka.offsets import GroupOffsets
from include.streams.kafka.reading import CONSUMER_SETTINGS, ReadingStalled
from include.streams.landing.connect import Connect, ConnectUnreachable
from include.streams.landing.tables import connector_name, sink_group
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
# Records to read per partition, from the sink's committed offset on. The repair of gaps appends at most this many.
MAX_RECORDS = 500_000
BATCH = 5_000
# The time limit for the search in one topic. Records found until then are stepped over; the next check continues after
# them.
SEARCH_SECONDS = 60.0
# Kafka's "no timestamp", which Connect accepts.
NO_TIMESTAMP = -1


@dataclass(frozen=True)
class Step:
    """Offsets [start, end) of a partition that the sink does not read; the last record has a refused timestamp.

    Attributes:
        partition: The Kafka partition.
        start: The first offset that the sink does not read.
        end: The offset at which the sink continues.
        first: The offset of the first record with a refused timestamp.
        count: How many of the records have a refused timestamp.
    """

    partition: int
    start: int
    end: int
    first: int
    count: int

    def __str__(self) -> str:
        return (
            f"partition {self.partition}: {self.count} records with a negative timestamp from offset {self.first} on; "
            f"offsets {self.start} to {self.end - 1} are read by the repair of gaps"
        )


def step_over(topic: Topic, connect: Connect, kafka_conn_id: str = KAFKA_CONN_ID) -> list[Step]:
    """Stop the topic's connector, set its offsets to after the refused records, and resume it.

    Args:
        topic: The landed topic.
        connect: Kafka Connect.
        kafka_conn_id: The Airflow connection of Kafka.

    Returns:
        What was stepped over; empty if no partition has such a record within MAX_RECORDS of the sink's offset.

    Raises:
        ConnectUnreachable, ConnectRefused: Connect does not answer, or refuses; the next try continues.
        KafkaException, ReadingStalled: No search was possible, and the connector is unchanged. (A connector that an
            earlier try has stopped is resumed instead of raising.)
    """
    from confluent_kafka import KafkaException

    name = connector_name(topic)
    was_stepping = is_stepping(name)
    try:
        steps = list(_find(topic, kafka_conn_id))
    except (KafkaException, ReadingStalled) as error:
        if not was_stepping:
            raise
        # The connector is stopped, and the longer it is stopped, the longer a search takes. If a task fails at a
        # refused record again, the next search begins at this record.
        log.warning("connector=%s is resumed without a search: %s", name, error)
        steps = []
    if not steps and not was_stepping:
        return []
    with begin() as connection:
        text = (
            f"stopped for a moment; if it stays stopped: the Dag operate_connector with the action step_over of {name}"
        )
        open_alarm(connection, name, AlarmKind.stepping_over, text)
        if steps:
            description = "; ".join(f"{topic.name} {step}" for step in steps)
            remedy = (
                "Nothing is lost. Let the producer send a time in milliseconds since 1970, or let the broker set it "
                "(message.timestamp.type=LogAppendTime)"
            )
            if not open_alarm(connection, name, AlarmKind.records_stepped_over, f"{description}. {remedy}"):
                log.error("in addition to the open alarm: connector=%s %s", name, description)
    if steps:
        connect.stop(name)
        _wait_until_stopped(connect, name)
        connect.set_offsets(name, topic.name, {step.partition: step.end for step in steps})
        log.warning("stepped over: connector=%s %s", name, "; ".join(map(str, steps)))
    connect.resume(name)
    with begin() as connection:
        close_alarm(connection, name, AlarmKind.stepping_over)
    return steps


def is_stepping(name: str) -> bool:
    """Whether a process has begun to move this connector past records and has not resumed it yet."""
    from sqlalchemy import select

    from include.streams.operations.tables import alarms

    is_open = (alarms.c.source == name, alarms.c.kind == AlarmKind.stepping_over, alarms.c.closed_at.is_(None))
    with begin() as connection:
        return connection.execute(select(alarms.c.id).where(*is_open)).first() is not None


def _wait_until_stopped(connect: Connect, name: str) -> None:
    """Wait until every task has ended: Connect accepts offsets only then."""
    until = time.monotonic() + STOP_SECONDS
    while True:
        status = connect.status(name) or {"connector": {"state": ""}, "tasks": []}
        if status["connector"]["state"] == "STOPPED" and not status["tasks"]:
            return
        if time.monotonic() > until:
            raise ConnectUnreachable(f"connector {name}: its tasks did not stop within {STOP_SECONDS:.0f} s")
        time.sleep(0.2)


def _find(topic: Topic, kafka_conn_id: str) -> Iterator[Step]:
    with GroupOffsets(sink_group(topic), kafka_conn_id, **CONSUMER_SETTINGS) as group:
        wanted: dict[int, tuple[int, int]] = {}
        for partition, offsets in sorted(group.fetch_offsets_sync([topic.name]).items()):
            start = offsets.low if offsets.committed is None else max(offsets.committed, offsets.low)
            if start < offsets.end:
                wanted[partition.number] = start, min(offsets.end, start + MAX_RECORDS)
        for partition, refused in sorted(_refused(group.consumer, topic.name, wanted).items()):
            yield Step(partition, wanted[partition][0], refused[-1] + 1, refused[0], len(refused))


def _refused(consumer: Any, topic: str, wanted: Mapping[int, tuple[int, int]]) -> dict[int, list[int]]:
    """The offsets whose records have a timestamp that Connect refuses.

    All partitions are read at the same time. Their refused records are near the beginning, where the sink has failed.
    So they are found even if there is no time to read all records, or if the leader of a partition does not answer.

    Args:
        consumer: A client with CONSUMER_SETTINGS.
        topic: The topic.
        wanted: {partition: the offsets [start, end) to read}; none of them empty.

    Returns:
        {partition: its refused offsets}, without partitions that have none. After SEARCH_SECONDS, those found so far;
        the next search begins after them.

    Raises:
        KafkaException: The broker refuses.
        ReadingStalled: No refused record was found in time.
    """
    from confluent_kafka import KafkaError, KafkaException, TopicPartition

    refused: dict[int, list[int]] = {}
    left = {partition: end for partition, (_, end) in wanted.items()}
    consumer.assign([TopicPartition(topic, partition, start) for partition, (start, _) in wanted.items()])
    until = time.monotonic() + SEARCH_SECONDS
    while left:
        for record in consumer.consume(BATCH, timeout=1.0):
            error, partition = record.error(), record.partition()
            if error is not None and (
                error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) or error.fatal()
            ):
                raise KafkaException(error)
            if partition not in left:
                continue
            is_over = error is not None and error.code() == KafkaError._PARTITION_EOF
            if error is None:
                if record.offset() < left[partition] and _is_refused(record):
                    refused.setdefault(partition, []).append(record.offset())
                is_over = record.offset() + 1 >= left[partition]
            if is_over:
                del left[partition]
                # Otherwise the records after it would be fetched too, and the other partitions would get less time.
                consumer.pause([TopicPartition(topic, partition)])
        if left and time.monotonic() > until:
            if not refused:
                raise ReadingStalled(f"{topic}: no refused record within {SEARCH_SECONDS:.0f} s; not read: {[*left]}")
            log.info("not read to the end: topic=%s partitions=%s", topic, [*left])
            break
    return refused


def _is_refused(record: Any) -> bool:
    _, milliseconds = record.timestamp()
    return milliseconds < 0 and milliseconds != NO_TIMESTAMP
