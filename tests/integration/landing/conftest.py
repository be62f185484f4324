"""Landing tables on a real catalog and a real object store. PyIceberg writes the files in place of the sink."""

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import TopicPartition

from include.streams.contracts import Topic
from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.landing import snapshot
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.tables import create_landing_table, load_landing_table, sink_group
from include.streams.landing.xcom import WorkUnit
from tests.integration.kafka.conftest import admin, make_topic, operations, order, send

__all__ = ["admin", "make_topic", "operations", "send"]


@pytest.fixture
def landed_topic(landing_services, operations, make_topic) -> Callable[..., Topic]:
    """A landed topic of orders, with its landing table."""

    def make(partitions: int = 2, **kwargs) -> Topic:
        topic = make_topic(partitions=partitions, landed=True, **kwargs)
        create_landing_table(topic)
        return topic

    return make


@pytest.fixture
def lane(operations) -> Callable[..., LandingConsumer]:
    """A consumer of a landed topic, without a grace period and with a unit for each file."""

    def make(topic: Topic, **kwargs) -> LandingConsumer:
        settings = {"min_messages_per_unit": 1, "landing_grace": timedelta(), **kwargs}
        return LandingConsumer(name=f"lane-{uuid.uuid4().hex[:8]}", topic=topic, **settings)

    return make


@pytest.fixture
def landed_long_ago(monkeypatch) -> None:
    """Missing offsets before landed offsets are due at once."""
    monkeypatch.setattr(snapshot, "INNER_GRACE", timedelta())


@pytest.fixture
def send_orders(send) -> Callable[..., None]:
    """Produce this many orders to a partition, numbered by partition and offset."""

    def produce(topic: Topic, partition: int, count: int, first: int = 0) -> None:
        send(topic, *(order(f"{partition}-{first + n}") for n in range(count)), partition=partition)

    return produce


def rows(topic: Topic, partition: int, offsets: Iterable[int], value: str | None = None):
    """An Arrow table of landed records, as `send_orders` makes them."""
    import pyarrow as pa

    offsets = list(offsets)
    fields = [("topic", pa.string()), ("partition", pa.int32()), ("offset", pa.int64())]
    schema = pa.schema([*fields, ("timestamp", pa.timestamp("us", tz="UTC")), ("value", pa.string())])
    columns = {
        "topic": [topic.name] * len(offsets),
        "partition": [partition] * len(offsets),
        "offset": offsets,
        "timestamp": [datetime.now(UTC)] * len(offsets),
        "value": [order(f"{partition}-{offset}").decode() if value is None else value for offset in offsets],
    }
    return pa.table(columns, schema=schema)


def land(topic: Topic, partition: int, *files: Iterable[int]) -> None:
    """Append data files as the sink does: one commit, one file for each iterable of offsets."""
    with load_landing_table(topic).transaction() as transaction:
        for offsets in files:
            transaction.append(rows(topic, partition, offsets))


def remove_file(topic: Topic, path: str) -> None:
    """Commit a snapshot without this data file, as a faulty clean-up of "orphans" would."""
    table = load_landing_table(topic)
    (file,) = [task.file for task in table.scan().plan_files() if task.file.file_path == path]
    with table.transaction() as transaction, transaction.update_snapshot().overwrite() as change:
        change.delete_data_file(file)


def landed_rows(topic: Topic) -> list[tuple[int, int, str]]:
    """(partition, offset, value) of every row in the landing table, in order."""
    found = load_landing_table(topic).scan().to_arrow().to_pylist()
    return sorted((row["partition"], row["offset"], row["value"]) for row in found)


def sink_commits(topic: Topic, **offsets: int) -> None:
    """Commit offsets for the sink's group, as the sink does before its files are in the table (`_0` is partition 0)."""
    with GroupOffsets(sink_group(topic)) as group:
        group.commit({Partition(topic.name, int(number.strip("_"))): offset for number, offset in offsets.items()})


def delete_records(admin, topic: Topic, partition: int, before: int) -> None:
    """Remove the messages before this offset, as retention does."""
    (done,) = admin.delete_records([TopicPartition(topic.name, partition, before)]).values()
    done.result(10)


def alarms_of(source: str) -> dict[str, tuple[str, bool]]:
    """{kind: (message, is open)} of the source's last alarms."""
    from sqlalchemy import text

    from include.streams.operations.database import begin

    with begin() as connection:
        query = text("select kind, message, closed_at is null from alarms where source = :source order by id")
        return {kind: (message, is_open) for kind, message, is_open in connection.execute(query, {"source": source})}


def plan_run(consumer: LandingConsumer, run_id: str) -> list[WorkUnit]:
    """Run the tasks `repair_gaps` and `plan` of a run; returns its units."""
    from include.streams.landing.planning import claim_landed
    from include.streams.landing.repairing import repair_gaps

    repair_gaps(consumer, run_id)
    return claim_landed(consumer, run_id)


def finish(units) -> None:
    """Close the claim of these units, as the end of a run does."""
    from sqlalchemy import select

    from include.streams.kafka.claims import mark_handled
    from include.streams.kafka.offsets import OffsetRange
    from include.streams.operations.database import begin
    from include.streams.operations.tables import claim_ranges

    with begin() as connection:
        of_claim = select(claim_ranges).where(claim_ranges.c.claim_id == units[0]["claim_id"])
        for row in connection.execute(of_claim).all():
            done = OffsetRange(row.topic, row.topic_id, row.partition, row.readable_from, row.end_offset)
            mark_handled(connection, units[0]["claim_id"], done)


def expected_records(consumer: LandingConsumer, units) -> int:
    """The number of records that a run with these units must read."""
    from include.streams.kafka.offsets import OffsetRange
    from include.streams.landing import intervals
    from include.streams.landing.planning import without_record

    pieces = [piece for unit in units for piece in unit["ranges"]]
    whole = []
    for number in {piece["partition"] for piece in pieces}:
        mine = [piece for piece in pieces if piece["partition"] == number]
        ends = min(piece["start"] for piece in mine), max(piece["end"] for piece in mine)
        whole.append(OffsetRange(consumer.topic.name, "", number, *ends))
    return sum(map(len, whole)) - sum(map(intervals.total, without_record(consumer, whole).values()))


def offsets_of(units) -> list[tuple[int, int]]:
    """(partition, offset) of every row that the units read, as their tasks read them, with repeats."""
    import pyarrow.parquet as pq

    from include.streams.lake.catalog import load_catalog

    found = []
    io = load_catalog()._load_file_io()
    for unit in units:
        for file in unit["files"]:
            with io.new_input(file["path"]).open() as stream:
                for offset in pq.read_table(stream, columns=["offset"])["offset"].to_pylist():
                    if file["start"] <= offset < file["end"]:
                        found.append((file["partition"], offset))
    return sorted(found)
