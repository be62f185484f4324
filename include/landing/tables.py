"""Landing tables: one for each landed topic, raw, partitioned by the Kafka partition.

A table holds each record's value as text, beside its coordinates: the sink never looks into a message, so no message
can stop it. The partition spec makes every data file's offset bounds those of one Kafka partition: what is missing
shows from the manifests alone.
"""

import json
import logging
from typing import TYPE_CHECKING, Protocol

from include.contracts.topics import landed_name
from include.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

RAW_NAMESPACE, CLEAN_NAMESPACE = "raw", "clean"
# Table properties: which topic landed here, and from which offset of each partition it does so without a gap.
TOPIC_ID, START_OFFSETS = "landing.topic-id", "landing.start-offsets"
PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    # Bounds of the values would put what customers wrote into manifests, and help no query.
    "write.metadata.metrics.column.value": "counts",
    "write.metadata.metrics.column.topic": "counts",
    # A record's time may be of no calendar (microseconds in the millisecond field), which PyIceberg cannot state as a
    # bound: bundling and repair would fail at such a record.
    "write.metadata.metrics.column.timestamp": "counts",
    # Each commit writes a metadata file; a commit every few seconds would leave thousands.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
    # Small ones, some thousand files each: a plan opens the newest, and a commit that merges them rewrites no more.
    "commit.manifest.target-size-bytes": str(256 * 1024),
}


class LandedTopic(Protocol):
    """A topic's name is all that its landing table needs of it."""

    @property
    def name(self) -> str: ...


class LandingTableMismatch(Exception):
    """The table is not one that landed offsets can be told from."""


def table_name(topic: LandedTopic) -> str:
    """`orders.placed` -> `orders_placed`, the table's name in every namespace."""
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


def landing_schema() -> "Schema":
    from pyiceberg.schema import Schema
    from pyiceberg.types import IntegerType, LongType, NestedField, StringType, TimestamptzType

    # All optional, as the sink's records are; a tombstone has no value.
    return Schema(
        NestedField(1, "topic", StringType(), required=False),
        NestedField(2, "partition", IntegerType(), required=False),
        NestedField(3, "offset", LongType(), required=False),
        NestedField(4, "timestamp", TimestamptzType(), required=False),
        NestedField(5, "value", StringType(), required=False),
    )


def landing_spec() -> "PartitionSpec":
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import IdentityTransform

    return PartitionSpec(PartitionField(source_id=2, field_id=1000, transform=IdentityTransform(), name="partition"))


def create_landing_table(topic: LandedTopic, conn_id: str = CONN_ID) -> "Table":
    """The topic's landing table, made if it does not exist. Safe to repeat, and for two processes at once.

    To be called before the connector is created: the table notes where each partition begins now, and whatever lies
    between that and the first landed offset is a gap. Raises LookupError when the topic does not exist,
    LandingTableMismatch when there is a table that this lane cannot verify.
    """
    from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    from include.kafka.offsets import GroupOffsets
    from include.lake.catalog import load_catalog

    catalog, identifier = load_catalog(), raw_table(topic)
    try:
        return checked(catalog.load_table(identifier))
    except NoSuchTableError:
        pass
    with GroupOffsets(sink_group(topic), conn_id) as group:
        found = group.look_now([topic.name])
        whole = bool(found) and not group.incomplete
    if not whole:
        raise LookupError(
            f"topic {topic.name} does not exist, or has partitions without a leader: make the topics first"
        )
    starts = {str(partition.number): offsets.low for partition, offsets in sorted(found.items())}
    properties = {
        **PROPERTIES,
        TOPIC_ID: _unused(next(iter(found.values())).topic_id),
        START_OFFSETS: json.dumps(starts),
    }
    try:
        catalog.create_namespace_if_not_exists(RAW_NAMESPACE)
    except IntegrityError:
        log.debug("somebody else made the namespace")
    try:
        table = catalog.create_table(identifier, landing_schema(), partition_spec=landing_spec(), properties=properties)
        log.info("made landing table %s: start_offsets=%s", identifier, starts)
    except TableAlreadyExistsError:
        table = catalog.load_table(identifier)
    return checked(table)


def _unused(identity: str) -> str:
    """The next generation of this log identity that has no gaps on record.

    They are those of an earlier table, and stay. Where the log has lost its end, or the broker gives topics no ids, the
    same offsets hold other records now, which must not count as settled.
    """
    from include.kafka.offsets import next_generation
    from include.landing import gaps

    while gaps.history(identity):
        identity = next_generation(identity)
    return identity


def load_landing_table(topic: LandedTopic) -> "Table":
    """The topic's landing table. Raises NoSuchTableError, LandingTableMismatch."""
    from include.lake.catalog import load_current

    return checked(load_current(raw_table(topic)))


def checked(table: "Table") -> "Table":
    """The table, if landed offsets can be told from it; else raises LandingTableMismatch."""
    name = ".".join(table.name())
    remedy = "rename it, make the table with create_landing_table, and land the topic again"
    fields = {field.name: str(field.field_type) for field in table.schema().fields}
    wanted = {field.name: str(field.field_type) for field in landing_schema().fields}
    if fields != wanted:
        raise LandingTableMismatch(f"table {name} has the columns {fields}, a landing table has {wanted}: {remedy}")
    spec = [(str(field.transform), table.schema().find_field(field.source_id).name) for field in table.spec().fields]
    if spec != [("identity", "partition")]:
        raise LandingTableMismatch(f"table {name} is partitioned by {spec}, not by the Kafka partition: {remedy}")
    if TOPIC_ID not in table.properties or START_OFFSETS not in table.properties:
        raise LandingTableMismatch(f"table {name} does not say from which offsets it is complete: {remedy}")
    return table


def topic_id(table: "Table") -> str:
    """The identity of the log that lands here: the topic's id, and its generation where a table of it was before."""
    return table.properties[TOPIC_ID]


def start_offsets(table: "Table") -> dict[int, int]:
    """{partition: the first offset that belongs into the table}; 0 for partitions that were added later."""
    return {int(partition): offset for partition, offset in json.loads(table.properties[START_OFFSETS]).items()}
