"""Compare any landing with Kafka: a table that another product writes, or plain objects. It changes nothing.

Only coordinates are compared: which offsets are in the landing, and how often. Offsets that are not in the landing are
read from Kafka, because an offset may hold no record (transaction markers, compaction).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.streams.contracts.objects import PlainObjects
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, PartitionOffsets
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.streams.lake.objects import object_store
from include.streams.landing import decoding, intervals
from include.streams.landing.intervals import Ranges

if TYPE_CHECKING:
    from pyiceberg.table import Table

# The consumer group of the comparison. It commits nothing.
GROUP = "landing-verify"


class NoCoordinates(ValueError):
    """The table has no such columns, or they do not hold partitions and offsets."""


@dataclass
class Landed:
    """The offsets of one partition in a landing.

    Attributes:
        rows: How many records the landing has.
        offsets: Their offsets.
        doubles: Offsets that are there more than once.
    """

    rows: int = 0
    offsets: Ranges = field(default_factory=list)
    doubles: Ranges = field(default_factory=list)

    def add(self, rows: int, once: Ranges, repeated: Ranges) -> None:
        """Add the offsets of a file, and those that it has more than once."""
        self.rows += rows
        self.doubles = intervals.union([*self.doubles, *repeated, *intervals.intersect(self.offsets, once)])
        self.offsets = intervals.union([*self.offsets, *once])


@dataclass(frozen=True)
class Compared:
    """The comparison of one partition. All ranges exclude their end.

    Attributes:
        partition: The Kafka partition.
        rows: How many records the landing has.
        holes: Offsets that hold a record in Kafka, and are not in the landing although later ones are.
        doubles: Offsets that are in the landing more than once.
        waiting: How many offsets after the last landed one Kafka has: they may still land.
        gone: How many landed offsets Kafka no longer has: they cannot be compared.
        beyond: Landed offsets after the end of the log: they belong to another log.
    """

    partition: int
    rows: int
    holes: Ranges
    doubles: Ranges
    waiting: int
    gone: int
    beyond: Ranges

    @property
    def is_right(self) -> bool:
        """Whether each landed offset is there once, and none is missing before them."""
        return not (self.holes or self.doubles or self.beyond)


def compare(topic: str, landed: Mapping[int, Landed], conn_id: str = CONN_ID) -> list[Compared]:
    """Compare the offsets of a landing with Kafka.

    Args:
        topic: The topic's name.
        landed: {partition: its landed offsets}.
        conn_id: The Airflow connection of Kafka.

    Raises:
        LookupError: The topic does not exist, or a partition has no leader.
        KafkaException, ReadingStalled: The broker is unavailable or refuses.
    """
    with GroupOffsets(GROUP, conn_id, **CONSUMER_SETTINGS) as group:
        kafka = group.fetch_offsets_sync([topic], needs_committed=False)
        if not kafka or group.incomplete:
            raise LookupError(f"topic {topic} does not exist, or has partitions without a leader")
        reader = RangeReader(group.consumer, batch_size=5_000)
        by_number = {partition.number: offsets for partition, offsets in kafka.items()}
        nothing = PartitionOffsets("", 0, 0)
        return [
            _compare(topic, number, landed.get(number, Landed()), by_number.get(number, nothing), reader)
            for number in sorted({*by_number, *landed})
        ]


def _compare(topic: str, number: int, landed: Landed, kafka: PartitionOffsets, reader: RangeReader) -> Compared:
    last = landed.offsets[-1][1] if landed.offsets else kafka.low
    last = max(kafka.low, min(last, kafka.end))
    missing = intervals.subtract([(kafka.low, last)] if kafka.low < last else [], landed.offsets)
    holes: list[tuple[int, int]] = []
    for start, end in missing:
        for batch in reader.read(OffsetRange(topic, kafka.topic_id, number, start, end)):
            holes += intervals.of_numbers(message.offset for message in batch)
    return Compared(
        partition=number,
        rows=landed.rows,
        holes=intervals.union(holes),
        doubles=landed.doubles,
        waiting=kafka.end - last,
        gone=intervals.total(intervals.between(landed.offsets, 0, kafka.low)),
        beyond=intervals.between(landed.offsets, kafka.end, intervals.MAX_OFFSET),
    )


def of_table(
    table: Table, topic: str, partition: str, offset: str, topic_column: str | None = None
) -> dict[int, Landed]:
    """The landed offsets of an Iceberg table.

    Args:
        table: The table.
        topic: The topic's name.
        partition: The column with the Kafka partition.
        offset: The column with the offset.
        topic_column: The column with the topic's name, if the table holds several topics.

    Raises:
        NoCoordinates: There are no such columns, or they hold something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known = {field.name for field in table.schema().fields}
    wanted = [name for name in (partition, offset, topic_column) if name is not None]
    if unknown := [name for name in wanted if name not in known]:
        raise NoCoordinates(
            f"table {'.'.join(table.name())} has no column {', '.join(unknown)}; it has {', '.join(sorted(known))}: "
            "name the columns with --partition-column and --offset-column"
        )
    landed: dict[int, Landed] = {}
    for batch in table.scan(selected_fields=tuple(wanted)).to_arrow_batch_reader():
        rows: Any = batch
        if topic_column is not None:
            rows = pa.Table.from_batches([batch]).filter(pc.field(topic_column) == topic)
        columns = [rows.column(partition), rows.column(offset)]
        if any(column.null_count for column in columns) or not all(pa.types.is_integer(c.type) for c in columns):
            raise NoCoordinates(
                f"table {'.'.join(table.name())}: columns {partition} and {offset} must hold a number in each row"
            )
        numbers, offsets = (column.to_numpy(zero_copy_only=False) for column in columns)
        for number in set(numbers.tolist()):
            landed.setdefault(int(number), Landed()).add(*decoding.of_array(offsets[numbers == number]))
    return landed


def of_objects(source: PlainObjects, topic: str) -> tuple[dict[int, Landed], list[str]]:
    """The landed offsets of plain objects.

    Args:
        source: How the sink writes.
        topic: The topic's name.

    Returns:
        ({partition: its landed offsets}, what is wrong with objects that cannot be read).
    """
    landed: dict[int, Landed] = {}
    damaged: list[str] = []
    store, names = object_store(source.scheme, source.bucket), source.names(topic)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        local = Path(folder) / "object"
        for stored in store.list(source.listed_below(topic)):
            if (match := names.fullmatch(stored.path)) is None or not stored.size:
                continue
            store.fetch(stored.path, stored.version, local)
            try:
                held = decoding.offsets_of(local, source, int(match["start_offset"]))
            except decoding.DamagedObject as error:
                damaged.append(f"{source.scheme}://{source.bucket}/{stored.path}: {error}")
                continue
            landed.setdefault(int(match["partition"]), Landed()).add(held.records, held.offsets, held.repeated)
    return landed, damaged


def texts(compared: Iterable[Compared]) -> Iterator[str]:
    """The comparison as lines for people.

    Args:
        compared: The partitions.
    """
    for each in compared:
        facts = [f"{each.rows} records"]
        for name, ranges in (("holes", each.holes), ("doubles", each.doubles), ("beyond the log", each.beyond)):
            if ranges:
                facts.append(f"{intervals.total(ranges)} {name}: {intervals.text(ranges)}")
        if each.gone:
            facts.append(f"{each.gone} no longer in Kafka, not compared")
        if each.waiting:
            facts.append(f"{each.waiting} not landed yet")
        yield f"partition {each.partition}: {'right' if each.is_right else 'WRONG'}, {', '.join(facts)}"
