"""Landing tables: one for each landed topic, with raw records, partitioned by the Kafka partition.

A table holds each record's value as text, and its coordinates. The sink never parses a message, so no message can stop
it. If the topic's contract needs headers, the table also has a column for each, with the header's bytes. Because of the
partition spec, the offset bounds of every data file belong to one Kafka partition. So missing offsets can be found from
the manifests alone.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from include.streams.contracts.topics import HEADERS_LANDED, Topic, header_column, landed_name
from include.streams.kafka.connection import CONN_ID
from include.streams.lake.offsets import OffsetColumns

if TYPE_CHECKING:
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

log = logging.getLogger(__name__)

OFFSET_COLUMNS = OffsetColumns("partition", "offset")
RAW_NAMESPACE, CLEAN_NAMESPACE = "raw", "clean"
# Table properties: the id of the topic that lands here, and the offset of each partition from which the table is
# complete.
TOPIC_ID, START_OFFSETS = "landing.topic-id", "landing.start-offsets"
# Table property: the names of the headers that have columns, joined by commas. A column is never removed.
HEADERS = "landing.headers"
# Tries of the commit that adds columns. The sink commits every few seconds, so conflicts are normal.
ALTER_TRIES = 20
PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    # Bounds of the values would copy customers' text into manifests, and would not help any query.
    "write.metadata.metrics.column.value": "counts",
    "write.metadata.metrics.column.topic": "counts",
    # A record's time may be outside the calendar (microseconds in the millisecond field). PyIceberg cannot represent it
    # as a bound: bundling and repair would fail at such a record.
    "write.metadata.metrics.column.timestamp": "counts",
    # Each commit writes a metadata file; commits every few seconds would leave thousands.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
    # Small manifests, of some thousand files each: a plan opens only the newest, and a commit that merges manifests
    # rewrites only a small one.
    "commit.manifest.target-size-bytes": str(256 * 1024),
}


class LandedTopic(Protocol):
    """A topic; for a landing table, only its name is needed."""

    @property
    def name(self) -> str: ...


class LandingTableMismatch(Exception):
    """The landed offsets cannot be determined from this table."""


def table_name(topic: LandedTopic) -> str:
    """The table's name in every namespace: `orders.placed` -> `orders_placed`."""
    return landed_name(topic.name)


def raw_table(topic: LandedTopic) -> str:
    """The landing table's identifier."""
    return f"{RAW_NAMESPACE}.{table_name(topic)}"


def clean_table(topic: LandedTopic) -> str:
    """The identifier of the table of validated rows."""
    return f"{CLEAN_NAMESPACE}.{table_name(topic)}"


def connector_name(topic: LandedTopic) -> str:
    """The sink's name in Kafka Connect: `landing-orders-placed`."""
    return f"landing-{table_name(topic).replace('_', '-')}"


def sink_group(topic: LandedTopic) -> str:
    """The consumer group of the sink: Connect names it after the connector."""
    return f"connect-{connector_name(topic)}"


def landing_schema(headers: Iterable[str] = ()) -> "Schema":
    """The columns of a landing table.

    Args:
        headers: The names of the headers that land too.
    """
    from pyiceberg.schema import Schema
    from pyiceberg.types import BinaryType, IntegerType, LongType, NestedField, StringType, TimestamptzType

    added = [(header_column(name), BinaryType()) for name in headers]
    # Names the headers that the sink landed with a row. Without it, a header that is missing in a record could not be
    # distinguished from a header that the sink did not land yet.
    added += [(HEADERS_LANDED, StringType())] if added else []
    # All columns are optional, as the sink's records are; a tombstone has no value.
    return Schema(
        NestedField(1, "topic", StringType(), required=False),
        NestedField(2, "partition", IntegerType(), required=False),
        NestedField(3, "offset", LongType(), required=False),
        NestedField(4, "timestamp", TimestamptzType(), required=False),
        NestedField(5, "value", StringType(), required=False),
        *(NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(added, start=6)),
    )


def landing_spec() -> "PartitionSpec":
    """The partition spec of a landing table: by the Kafka partition."""
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import IdentityTransform

    return PartitionSpec(PartitionField(source_id=2, field_id=1000, transform=IdentityTransform(), name="partition"))


def create_landing_table(topic: Topic, conn_id: str = CONN_ID) -> "Table":
    """Return the topic's landing table, created if it does not exist, with the columns of all headers that it needs.

    It is safe to repeat, even in two processes at once.

    Call it before the connector is created: the table records the first offset of each partition, and every offset from
    there to the first landed offset is a gap.

    Args:
        topic: The topic to land.
        conn_id: The Airflow connection of Kafka.

    Raises:
        LookupError: The topic does not exist, or a partition has no leader.
        LandingTableMismatch: A table of this name exists that this lane cannot verify.
    """
    from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    from include.streams.kafka.offsets import GroupOffsets
    from include.streams.lake.catalog import load_catalog

    catalog, identifier = load_catalog(), raw_table(topic)
    try:
        return _with_headers(checked(catalog.load_table(identifier)), topic)
    except NoSuchTableError:
        pass
    with GroupOffsets(sink_group(topic), conn_id) as group:
        partitions = group.fetch_offsets_sync([topic.name])
        is_whole = bool(partitions) and not group.incomplete
    if not is_whole:
        raise LookupError(
            f"topic {topic.name} does not exist, or has partitions without a leader: create the topics first"
        )
    starts = {str(partition.number): offsets.low for partition, offsets in sorted(partitions.items())}
    properties = {
        **PROPERTIES,
        TOPIC_ID: _unused(next(iter(partitions.values())).topic_id),
        START_OFFSETS: json.dumps(starts),
        **_header_properties(topic.headers),
    }
    try:
        catalog.create_namespace_if_not_exists(RAW_NAMESPACE)
    except IntegrityError:
        log.debug("another process created the namespace")
    try:
        schema = landing_schema(topic.headers)
        table = catalog.create_table(identifier, schema, partition_spec=landing_spec(), properties=properties)
        log.info("created landing table %s: start_offsets=%s", identifier, starts)
    except TableAlreadyExistsError:
        table = catalog.load_table(identifier)
    return _with_headers(checked(table), topic)


def _header_properties(headers: Sequence[str]) -> dict[str, str]:
    if not headers:
        return {}
    # Bounds would copy text of the senders into manifests.
    columns = [*map(header_column, headers), HEADERS_LANDED]
    return {HEADERS: ",".join(headers), **{f"write.metadata.metrics.column.{name}": "counts" for name in columns}}


def _with_headers(table: "Table", topic: Topic) -> "Table":
    """The table with the columns of the topic's headers, in one commit. The sink writes them once it is restarted."""
    from pyiceberg.exceptions import CommitFailedException

    for attempt in range(1, ALTER_TRIES + 1):
        known = headers_of(table)
        new = [name for name in topic.headers if name not in known]
        if not new:
            break
        try:
            with table.transaction() as transaction:
                with transaction.update_schema() as update:
                    update.union_by_name(landing_schema([*known, *new]))
                transaction.set_properties(_header_properties([*known, *new]))
            log.info("landing table %s: added headers %s", ".".join(table.name()), ", ".join(new))
        except CommitFailedException:
            # The sink has committed in the meantime, or another process adds the same columns.
            if attempt == ALTER_TRIES:
                raise
            table.refresh()
    return table


def headers_of(table: "Table") -> list[str]:
    """The names of the headers that have columns in a landing table."""
    return [name for name in table.properties.get(HEADERS, "").split(",") if name]


def _unused(identity: str) -> str:
    """The next generation of this log identity that has no recorded gaps.

    Recorded gaps belong to an earlier table, and are kept. If the log was truncated, or the broker gives topics no ids,
    the same offsets now hold other records, which must not count as settled.
    """
    from include.streams.kafka.offsets import next_generation
    from include.streams.landing import gaps

    while gaps.history(identity):
        identity = next_generation(identity)
    return identity


def load_landing_table(topic: LandedTopic) -> "Table":
    """The topic's landing table. Raises NoSuchTableError, LandingTableMismatch."""
    from include.streams.lake.catalog import load_current

    return checked(load_current(raw_table(topic)))


def checked(table: "Table") -> "Table":
    """Return the table if its landed offsets can be determined, else raise LandingTableMismatch."""
    name = ".".join(table.name())
    remedy = "rename it, create the table with create_landing_table, and land the topic again"
    fields = {field.name: str(field.field_type) for field in table.schema().fields}
    wanted = {field.name: str(field.field_type) for field in landing_schema(headers_of(table)).fields}
    if fields != wanted:
        raise LandingTableMismatch(f"table {name} has the columns {fields}, a landing table has {wanted}: {remedy}")
    spec = [(str(field.transform), table.schema().find_field(field.source_id).name) for field in table.spec().fields]
    if spec != [("identity", "partition")]:
        raise LandingTableMismatch(f"table {name} is partitioned by {spec}, not by the Kafka partition: {remedy}")
    if TOPIC_ID not in table.properties or START_OFFSETS not in table.properties:
        raise LandingTableMismatch(f"table {name} does not say from which offsets it is complete: {remedy}")
    return table


def topic_id(table: "Table") -> str:
    """The identity of the log that lands here: the topic's id, with a generation if there was an earlier table."""
    return table.properties[TOPIC_ID]


def row_count(snapshot: "Snapshot | None") -> int | None:
    """The number of rows, from a snapshot's own summary.

    Args:
        snapshot: The snapshot; None for a table without one.

    Returns:
        The number; None if the summary does not have it.
    """
    if snapshot is None:
        return 0
    number = (snapshot.summary or {}).get("total-records")
    return None if number is None else int(number)


def start_offsets(table: "Table") -> dict[int, int]:
    """{partition: the first offset that belongs in the table}.

    Partitions that were added later are not in it; they begin at 0.
    """
    return {int(partition): offset for partition, offset in json.loads(table.properties[START_OFFSETS]).items()}
