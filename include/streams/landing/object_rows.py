"""The table of plain objects, and what is read before a topic has a landing table."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    String,
    Table,
    Text,
    select,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE

from include.streams.contracts.objects import PlainObjects
from include.streams.lake.objects import object_store
from include.streams.operations.database import begin
from include.streams.operations.tables import metadata, now_column

landing_objects = Table(
    "landing_objects",
    metadata,
    # The landing table's topic id.
    Column("topic_id", Text, primary_key=True),
    # The object's name in the bucket.
    Column("path", Text(collation="C"), primary_key=True),
    Column("version", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("modified_at", DateTime(timezone=True), nullable=False),
    Column("partition", BigInteger, nullable=False),
    # The object's first offset, from its name.
    Column("start_offset", BigInteger, nullable=False),
    # listed: its content was not read yet. read: the columns below say what it holds. damaged: it cannot be decoded.
    Column("state", String(16), nullable=False),
    # The lowest offset, and one more than the highest; null if the object holds no record.
    Column("first_offset", BigInteger),
    Column("end_offset", BigInteger),
    Column("records", BigInteger),
    # The offsets; null if the object holds every offset between the first and the last.
    Column("ranges", INT8MULTIRANGE),
    # Whether the offsets were found in the object, or the objects around it show that no offset is missing between its
    # lines. Otherwise its records are not used.
    Column("proven", Boolean, server_default="false", nullable=False),
    now_column("found_at"),
    CheckConstraint("state in ('listed', 'read', 'damaged')", name="state"),
    Index("ix_landing_objects_end", "topic_id", "partition", "end_offset"),
    Index("ix_landing_objects_start", "topic_id", "partition", "start_offset"),
)


def first_offsets(topic: str, source: PlainObjects) -> dict[int, int]:
    """{partition: the lowest first offset in the names of the topic's objects}. It lists all names.

    Args:
        topic: The topic's name.
        source: How its sink writes.
    """
    names, lowest = source.names(topic), dict[int, int]()
    for stored in object_store(source.scheme, source.bucket).list(source.listed_below(topic)):
        if match := names.fullmatch(stored.path):
            number, start = int(match["partition"]), int(match["start_offset"])
            lowest[number] = min(start, lowest.get(number, start))
    return lowest


def of_other_logs(source: PlainObjects, topic: str, topic_id: str) -> str | None:
    """The name of an object below this prefix that was recorded for another log of the topic; None if there is none."""
    below = source.listed_below(topic)
    recorded = select(landing_objects.c.path).where(
        landing_objects.c.topic_id != topic_id, landing_objects.c.path.startswith(below, autoescape=True)
    )
    with begin() as connection:
        return connection.scalar(recorded.limit(1))
