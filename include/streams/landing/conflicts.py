"""Publish rows whose event id belongs to an earlier event with other content as dead letters.

Only a person can decide which of the two events is right, so the second must not be dropped as a duplicate. The first
event stays, as in the event lane. The second becomes a dead letter with the reason `conflict`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from include.streams.contracts import Reason
from include.streams.contracts.foreign import Headers
from include.streams.contracts.topics import header_column
from include.streams.kafka.dead_letters import DeadLetter
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import OffsetRange
from include.streams.kafka.producer import AcknowledgedProducer
from include.streams.landing import dead_letters
from include.streams.landing.broken_files import read_with_repair
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.sources import as_planned, landed_index, local_files, stored_files
from include.streams.landing.tables import OFFSET_COLUMNS, columns_of, headers_of, load_landing_table
from include.streams.validators.rows import RECORD_TIME

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyiceberg.table import Table

    from include.streams.lake.offsets import LogRange

log = logging.getLogger(__name__)

DETAIL = "an earlier message has the same event id and other content; the earlier one stays"
# Limits for the records in memory at a time: their number, and their bytes.
AT_ONCE, AT_ONCE_BYTES = 500, 16 * 1024 * 1024
# (partition, offset).
Coordinates = tuple[int, int]
# (the record's time, its text, its landed headers).
Text = tuple[datetime | None, str | None, Headers]


def publish_conflicts(
    connection: DuckDBPyConnection, consumer: LandingConsumer, ranges: Sequence[OffsetRange], run_id: str
) -> int:
    """Publish the conflicting rows of the DuckDB table `dropped` as dead letters, and record them.

    Rows that an earlier try of the run has recorded are counted, but not published again.

    Args:
        connection: The DuckDB connection that has the table `dropped`.
        consumer: The landing consumer.
        ranges: The claim's ranges.
        run_id: The Dag run.

    Returns:
        How many conflicting rows there are.

    Raises:
        Exception: The broker or the database is unavailable; Airflow retries.
    """
    query = "select kafka_partition, kafka_offset from dropped where conflict order by all"
    conflicting: list[tuple[int, int]] = connection.execute(query).fetchall()
    if not conflicting:
        return 0
    done = set(dead_letters.known(consumer, ranges))
    new = [place for place in conflicting if place not in done]
    count = len(new)
    topic_ids = {part.partition: part.topic_id for part in ranges}
    with (
        AcknowledgedProducer(consumer.conn_id) as producer,
        dead_letters.originals(consumer, ranges[0].topic_id) as originals,
    ):
        while new:
            records, number = originals.fetch_some(new[:AT_ONCE], AT_ONCE_BYTES)
            places, new = new[:number], new[number:]
            _publish(consumer, list(records.values()), run_id, producer)
            gone = [place for place in places if place not in records]
            del records
            # Retention has removed these records from Kafka, so the landed text is published instead. The text of a
            # good row is not larger than its contract allows.
            at_once = max(1, AT_ONCE_BYTES // consumer.topic.max_bytes)
            for first in range(0, len(gone), at_once):
                texts = _texts(connection, consumer, gone[first : first + at_once])
                landed = [
                    dead_letters.landed_message(consumer, topic_ids[place[0]], place, *text)
                    for place, text in texts.items()
                ]
                _publish(consumer, landed, run_id, producer, landed_text=True)
    log.warning("conflicts: consumer=%s run_id=%s rows=%d new=%d", consumer.name, run_id, len(conflicting), count)
    return len(conflicting)


def _publish(
    consumer: LandingConsumer,
    messages: Sequence[Message],
    run_id: str,
    producer: AcknowledgedProducer,
    *,
    landed_text: bool = False,
) -> None:
    kept = [DeadLetter(message, Reason.conflict, DETAIL, landed_text=landed_text) for message in messages]
    dead_letters.publish_dead_letters(consumer, kept, run_id=run_id, producer=producer)


def _texts(
    connection: DuckDBPyConnection, consumer: LandingConsumer, places: Collection[Coordinates]
) -> dict[Coordinates, Text]:
    texts = _landed_texts(connection, consumer, places)
    # If the store has lost the landed file too, only the run's own staging files still have the content.
    return texts | _validated_texts(connection, set(places) - texts.keys())


def _landed_texts(
    connection: DuckDBPyConnection, consumer: LandingConsumer, places: Collection[Coordinates]
) -> dict[Coordinates, Text]:
    """The landed texts at these coordinates, without texts whose file the store has lost."""
    import duckdb

    from include.streams.lake import offsets

    wanted = _as_ranges(places)

    def read() -> dict[Coordinates, Text]:
        table = load_landing_table(consumer.topic)
        names = headers_of(table)
        try:
            rows = offsets.rows_in_ranges(
                connection, _rows_of_files_with(connection, consumer, table, wanted), wanted, OFFSET_COLUMNS
            )
            columns = ", ".join([f'"partition", "offset", {RECORD_TIME}, value', *map(header_column, names)])
            records = rows.project(columns).distinct().fetchall()
        except (OSError, duckdb.Error):
            stored_files(consumer.topic, table, ((partition, offset, offset + 1) for partition, offset in places))
            raise
        texts: dict[Coordinates, Text] = {}
        for partition, offset, timestamp, value, *landed in records:
            headers = [(name, header) for name, header in zip(names, landed, strict=True) if header is not None]
            texts[partition, offset] = (timestamp, value, headers)
        return texts

    return read_with_repair(consumer.topic, read, conn_id=consumer.conn_id) if places else {}


def _validated_texts(connection: DuckDBPyConnection, places: Collection[Coordinates]) -> dict[Coordinates, Text]:
    """The validated rows at these coordinates, as JSON; for a foreign contract, only the picked fields."""
    if not places:
        return {}
    from include.streams.validators import coordinates

    # Converted to text only after the selection: otherwise all other rows would be converted too.
    validated = connection.sql("select *, staged as whole from staged")
    rows = coordinates.rows_in_ranges(connection, validated, _as_ranges(places))
    query = "kafka_partition, kafka_offset, kafka_timestamp, to_json(whole)::varchar"
    records = rows.project(query).fetchall()
    return {(partition, offset): (timestamp, text, ()) for partition, offset, timestamp, text in records}


def _as_ranges(places: Iterable[Coordinates]) -> list[LogRange]:
    return [{"partition": partition, "start": offset, "end": offset + 1} for partition, offset in sorted(places)]


def _rows_of_files_with(
    connection: DuckDBPyConnection, consumer: LandingConsumer, table: Table, wanted: Sequence[LogRange]
) -> DuckDBPyRelation:
    """The rows of all files that may hold these offsets."""
    from include.streams.lake import engine

    landed = landed_index(consumer.topic, table)
    files = (file for part in wanted for file in landed.files(part["partition"], part["start"], part["end"]))
    paths = local_files(connection, consumer.topic, columns_of(table), as_planned(files))
    return engine.read_files(connection, table.schema(), paths)
