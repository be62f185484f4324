"""Tables as they are after a year, and fresh tables; their metadata are written directly, data files by the engine."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bench_stack import say
from include.streams.contracts import Topic
from include.streams.landing.consumers import LandingConsumer
from include.water.topics import MeterReading

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from include.streams.landing.xcom import ValidatedUnit
    from include.streams.validators.coordinates import LogRange

PARTITIONS = 4
# Landed and unclaimed: this many files per partition, with this many offsets each.
NEW_FILES, NEW_FILE_OFFSETS = 10, 5_000
FILES_PER_MANIFEST = 2_500
# Of the sink: a commit every ten seconds.
COMMIT_INTERVAL = timedelta(seconds=10)
SLOT = timedelta(minutes=15)
SLOTS_A_DAY = 96
# Of the run that is measured: an hour.
RUN_SLOTS = 4
# The end of the last day of the clean table.
END = datetime(2026, 6, 9, tzinfo=UTC)
DAY = timedelta(days=1)
# A file of the clean table: what a night's bundling makes of a day.
FILE_ROWS = 500_000
DISTRICTS = ("harbour", "hillside", "lakeview", "old-town", "riverbend", "southfield", "valley", "westshore")


@dataclass(frozen=True)
class Side:
    """`fresh` or `aged`: each has a topic with its tables."""

    name: str

    @property
    def topic(self) -> Topic:
        return Topic(
            f"{self.name}.readings",
            MeterReading,
            key="meter_id",
            partitions=PARTITIONS,
            retention=timedelta(days=14),
            landed=True,
            event_time="read_at",
        )

    def lane(self, name: str) -> LandingConsumer:
        return LandingConsumer(name=f"{self.name}-{name}", topic=self.topic)


# Landing


def make_landing(side: Side, files: int, snapshots: int) -> int:
    """Create topic, log and landing table: `old_files` files of one offset each, then the new files.

    Returns:
        The offset at which the new files begin, in each partition.
    """
    from include.streams.contracts import Registry
    from include.streams.kafka.topics import create_topics
    from include.streams.landing.tables import create_landing_table

    create_topics(Registry(side.topic))
    table = create_landing_table(side.topic)
    old = files // PARTITIONS
    _fill_log(side.topic, old + NEW_FILES * NEW_FILE_OFFSETS)
    new = [
        [
            data_file(table, partition, old + number * NEW_FILE_OFFSETS, NEW_FILE_OFFSETS)
            for partition in range(PARTITIONS)
        ]
        for number in range(NEW_FILES)
    ]
    # Newest first, as a manifest list has them.
    recent = [_manifest(table, files, snapshots) for files in reversed(new)]
    _write_history(side.topic, table, [*recent, *_old_manifests(table, old, snapshots)], snapshots)
    return old


def append(table: Table, files: Sequence[Any]) -> None:
    """A commit like the sink's."""
    properties = {"kafka.connect.commit-id": str(uuid.uuid4())}
    with (
        table.transaction() as transaction,
        transaction.update_snapshot(snapshot_properties=properties).merge_append() as snapshot,
    ):
        for file in files:
            snapshot.append_data_file(file)


def _fill_log(topic: Topic, offsets: int) -> None:
    from confluent_kafka import Producer

    from include.streams.kafka.connection import client_config, producer_config

    config = {**producer_config(client_config()), "linger.ms": 50, "queue.buffering.max.messages": 1_000_000}
    producer = Producer(config)
    for offset in range(offsets):
        for partition in range(PARTITIONS):
            producer.produce(topic.name, b"{}", partition=partition)
        if offset % 10_000 == 0:
            producer.poll(0)
            if len(producer) > 500_000:
                producer.flush()
    producer.flush(120)


def data_file(table: Table, partition: int, first: int, offsets: int) -> Any:
    """An entry of a file that does not exist: planning reads no data."""
    from pyiceberg.conversions import to_bytes
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record
    from pyiceberg.types import IntegerType, LongType

    lower = {2: to_bytes(IntegerType(), partition), 3: to_bytes(LongType(), first)}
    upper = {2: to_bytes(IntegerType(), partition), 3: to_bytes(LongType(), first + offsets - 1)}
    name = f"00001-{first:012d}-{uuid.uuid4()}-00001.parquet"
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"{table.location()}/data/partition={partition}/{name}",
        file_format=FileFormat.PARQUET,
        partition=Record(partition),
        record_count=offsets,
        file_size_in_bytes=1_000 + 10 * offsets,
        lower_bounds=lower,
        upper_bounds=upper,
        spec_id=table.spec().spec_id,
    )


def _manifest(table: Table, files: Iterable[Any], snapshot_id: int) -> Any:
    from pyiceberg.manifest import ManifestEntry, ManifestEntryStatus, write_manifest

    with write_manifest(
        format_version=2,
        spec=table.spec(),
        schema=table.schema(),
        output_file=table.io.new_output(f"{table.location()}/metadata/{uuid.uuid4()}-m0.avro"),
        snapshot_id=snapshot_id,
        avro_compression="deflate",
    ) as writer:
        for file in files:
            entry = ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED,
                snapshot_id=snapshot_id,
                sequence_number=None,
                file_sequence_number=None,
                data_file=file,
            )
            writer.add(entry)
    return writer.to_manifest_file()


def _old_manifests(table: Table, offsets: int, snapshot_id: int) -> list[Any]:
    """Manifests that list a file for each offset of each partition, as after merges."""
    step = FILES_PER_MANIFEST // PARTITIONS
    return [
        _manifest(
            table,
            (data_file(table, p, n, 1) for n in range(first, min(offsets, first + step)) for p in range(PARTITIONS)),
            snapshot_id,
        )
        for first in reversed(range(0, offsets, step))
    ]


def _write_history(topic: Topic, table: Table, manifests: Sequence[Any], snapshots: int) -> None:
    """Metadata with `count` snapshots of the sink; the newest snapshot has these manifests."""
    from pyiceberg.manifest import write_manifest_list

    metadata = json.loads(table.metadata.model_dump_json())
    now = int(datetime.now(UTC).timestamp() * 1000)
    interval = int(COMMIT_INTERVAL.total_seconds() * 1000)
    last = f"{table.location()}/metadata/snap-{snapshots}-1-{uuid.uuid4()}.avro"
    with write_manifest_list(
        format_version=2,
        output_file=table.io.new_output(last),
        snapshot_id=snapshots,
        parent_snapshot_id=snapshots - 1 or None,
        sequence_number=snapshots,
        avro_compression="deflate",
    ) as writer:
        writer.add_manifests(list(manifests))
    listed, log = [], []
    for number in range(1, snapshots + 1):
        at = now - (snapshots - number) * interval
        path = f"{table.location()}/metadata/snap-{number}-1-{uuid.uuid4()}.avro"
        # As the sink's are, by which it knows how far it has come.
        summary = {
            "operation": "append",
            "kafka.connect.commit-id": str(uuid.uuid4()),
            f"kafka.connect.offsets.landing-{topic.name}.control.connect-landing-{topic.name}": f'{{"0":{number}}}',
            "kafka.connect.valid-through-ts": "2026-06-01T00:00:00Z",
            "added-data-files": "17",
            "added-records": "17",
            "added-files-size": "17000",
            "changed-partition-count": str(PARTITIONS),
            "total-records": str(17 * number),
            "total-files-size": str(17_000 * number),
            "total-data-files": str(17 * number),
            "total-delete-files": "0",
            "total-position-deletes": "0",
            "total-equality-deletes": "0",
            "engine-version": "4.3.1",
            "iceberg-version": "Apache Iceberg 1.11.0 (commit 0000000000000000000000000000000000000000)",
        }
        listed.append(
            {
                "snapshot-id": number,
                "parent-snapshot-id": number - 1 if number > 1 else None,
                "sequence-number": number,
                "timestamp-ms": at,
                "manifest-list": last if number == snapshots else path,
                "summary": summary,
                "schema-id": 0,
            }
        )
        log.append({"snapshot-id": number, "timestamp-ms": at})
    metadata |= {
        "snapshots": listed,
        "snapshot-log": log,
        "current-snapshot-id": snapshots,
        "last-sequence-number": snapshots,
        "last-updated-ms": now,
        "refs": {"main": {"snapshot-id": snapshots, "type": "branch"}},
    }
    path = f"{table.location()}/metadata/00001-{uuid.uuid4()}.metadata.json"
    with table.io.new_output(path).create(overwrite=True) as stream:
        stream.write(json.dumps(metadata).encode())
    _point_to(table, path)


def add_snapshots(table: Table, count: int) -> None:
    """Add older snapshots to a table: copies of its newest snapshot, a minute apart."""
    # An empty table has no snapshot to copy.
    if table.current_snapshot() is None:
        return
    metadata = json.loads(table.metadata.model_dump_json())
    newest = metadata["snapshots"][-1]
    older = [
        {
            **newest,
            "snapshot-id": number,
            "parent-snapshot-id": number - 1 or None,
            "timestamp-ms": metadata["snapshots"][0]["timestamp-ms"] - (count + 1 - number) * 60_000,
        }
        for number in range(1, count + 1)
    ]
    log = [{"snapshot-id": one["snapshot-id"], "timestamp-ms": one["timestamp-ms"]} for one in older]
    metadata |= {"snapshots": older + metadata["snapshots"], "snapshot-log": log + metadata["snapshot-log"]}
    path = f"{table.location()}/metadata/{uuid.uuid4()}.metadata.json"
    with table.io.new_output(path).create(overwrite=True) as stream:
        stream.write(json.dumps(metadata).encode())
    _point_to(table, path)
    table.refresh()


def _point_to(table: Table, path: str) -> None:
    from sqlalchemy import text

    namespace, name = table.name()
    statement = "update iceberg_tables set metadata_location = :p where table_namespace = :s and table_name = :n"
    with table.catalog.engine.begin() as connection:  # type: ignore[attr-defined]
        connection.execute(text(statement), {"p": path, "s": namespace, "n": name})


# Clean rows and flows


@dataclass(frozen=True)
class Utility:
    """Meters that are read every quarter of an hour, for some days until END.

    The measured run has the first `readings` of the last hour.
    """

    meters: int
    days: int
    readings: int

    @property
    def start(self) -> datetime:
        return END - self.days * DAY

    @property
    def per_partition(self) -> int:
        """Readings of a quarter of an hour in each partition."""
        return -(-self.meters // PARTITIONS)

    def rows(self, first: datetime, slots: int, offset: int) -> str:
        """A query for the clean rows of `quarters` quarters of an hour; each partition's offsets begin at `offset`."""
        names = ", ".join(f"'{name}'" for name in DISTRICTS)
        return f"""
            select 1::bigint as version, 'M-' || lpad(meter::varchar, 6, '0') as meter_id,
                   [{names}][1 + meter % {len(DISTRICTS)}] as district_id,
                   read_at, (100000 + meter * 7 + epoch(read_at) // 300)::bigint as litres_total,
                   null::bigint as battery_percent,
                   'M-' || lpad(meter::varchar, 6, '0') || '@' || strftime(read_at, '%Y-%m-%dT%H:%M:%SZ') as event_id,
                   (meter % {PARTITIONS})::integer as kafka_partition,
                   ({offset} + slot * {self.per_partition} + meter // {PARTITIONS})::bigint as kafka_offset,
                   read_at as kafka_timestamp, 'of these offsets' as kafka_log
            from (
                select meter, slot, '{first.isoformat()}'::timestamptz + slot * interval 15 minutes as read_at
                from range({slots}) slots(slot) cross join range({self.meters}) meters(meter)
            )
        """


def fill_clean(side: Side, utility: Utility) -> None:
    """Fill the clean table with all readings except the run's, in files as the nightly bundling leaves them."""
    slots = utility.days * SLOTS_A_DAY - RUN_SLOTS
    step = max(1, min(FILE_ROWS // utility.meters, SLOTS_A_DAY))
    for first in range(0, slots, SLOTS_A_DAY):
        parts = range(first, min(slots, first + SLOTS_A_DAY), step)
        queries = [
            utility.rows(
                utility.start + n * SLOT, min(step, slots - n, first + SLOTS_A_DAY - n), n * utility.per_partition
            )
            for n in parts
        ]
        say(f"clean rows of {(utility.start + first * SLOT).date()}: {add_clean(side, queries):,}")


def fill_first_run(side: Side, utility: Utility) -> list[LogRange]:
    """Fill the clean table with a first run, of the hour before the measured run; returns its ranges."""
    start = 10**8
    add_clean(side, [utility.rows(END - 2 * RUN_SLOTS * SLOT, RUN_SLOTS, start)])
    end = start + RUN_SLOTS * utility.per_partition
    return [{"partition": number, "start": start, "end": end} for number in range(PARTITIONS)]


def last_ranges(utility: Utility) -> list[LogRange]:
    """The offset ranges of the last hour before the run in an aged clean table."""
    end = (utility.days * SLOTS_A_DAY - RUN_SLOTS) * utility.per_partition
    start = end - RUN_SLOTS * utility.per_partition
    return [{"partition": number, "start": start, "end": end} for number in range(PARTITIONS)]


def add_clean(side: Side, queries: Iterable[str]) -> int:
    """Write a file for the rows of each query, all of one day, in one commit; returns the number of rows."""
    from include.streams.lake import datafiles, engine, writing
    from include.streams.landing.clean import ensure_clean_table

    table = ensure_clean_table(side.topic)
    with tempfile.TemporaryDirectory(prefix="age-") as folder, engine.connect() as connection:
        paths = [Path(folder) / f"{number}.parquet" for number, _ in enumerate(queries)]
        for path, query in zip(paths, queries, strict=True):
            connection.execute(
                f"copy (select * from ({query}) order by read_at, meter_id) to '{path}' "
                f"({datafiles.copy_options(table)})"
            )
        added = datafiles.upload(table, paths)
    writing.commit(table, lambda transaction: writing.append_files(transaction, added, {}))
    return sum(file.record_count for file in added)


def fill_flows(side: Side, utility: Utility) -> None:
    """Fill the hourly flows of the same readings; the districts' flows are computed from the newest hours."""
    from include.streams.lake import datafiles, engine, writing
    from include.water.flows import tables
    from include.water.flows.aggregation import FILE_ROWS

    table = flow_tables(side)[tables.METER_HOURS]
    names = ", ".join(f"'{name}'" for name in DISTRICTS)
    for number in range(utility.days):
        day = utility.start + number * DAY
        hours = 24 if number + 1 < utility.days else 24 - RUN_SLOTS * SLOT // timedelta(hours=1)
        query = f"""
            select 'M-' || lpad(meter::varchar, 6, '0') as meter_id,
                   [{names}][1 + meter % {len(DISTRICTS)}] as district_id,
                   '{day.isoformat()}'::timestamptz + hour * interval 1 hour as hour, 12.0::double as litres,
                   4::integer as readings, 2::integer as expected_readings
            from range({hours}) hours(hour) cross join range({utility.meters}) meters(meter)
        """
        with tempfile.TemporaryDirectory(prefix="age-") as folder, engine.connect() as connection:
            written = datafiles.write(connection, query, table, Path(folder), cut=("hour", FILE_ROWS))
            added = datafiles.upload(table, written)
        writing.commit(table, lambda transaction, files=added: writing.append_files(transaction, files, {}))


def flow_tables(side: Side) -> dict[str, Any]:
    """The flow tables of a side, created if they do not exist."""
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.writing import ensure_table
    from include.water.flows import tables

    return {
        name: ensure_table(
            load_catalog(), f"{side.name}.{name.rpartition('.')[2]}", tables.schema_of(name), tables.spec_of(name)
        )
        for name in tables.TABLES
    }


def stage(side: Side, utility: Utility, run_id: str) -> tuple[list[ValidatedUnit], list[LogRange]]:
    """Create the run's claim and staging files, as its mapped tasks leave them.

    Returns:
        (the results of the mapped tasks, the run's ranges).
    """
    from sqlalchemy import insert

    from include.streams.kafka.claims import lock_consumer
    from include.streams.lake import engine
    from include.streams.landing import staging
    from include.streams.landing.clean import ensure_clean_table
    from include.streams.landing.tables import load_landing_table, topic_id
    from include.streams.operations.database import begin
    from include.streams.operations.tables import claim_ranges, claims
    from include.streams.validators.rows import NEEDS_PARSER, NOT_WANTED

    lane = side.lane("commit")
    table = ensure_clean_table(side.topic)
    of_topic = topic_id(load_landing_table(side.topic))
    start = 10**9
    end = start + RUN_SLOTS * utility.per_partition
    with begin() as connection:
        lock_consumer(connection, lane.name)
        claim = insert(claims).values(consumer=lane.name, run_id=run_id).returning(claims.c.id)
        claim_id = connection.execute(claim).scalar_one()
        for number in range(PARTITIONS):
            values = {"topic": side.topic.name, "topic_id": of_topic, "partition": number, "start_offset": start}
            connection.execute(
                insert(claim_ranges).values(claim_id=claim_id, readable_from=start, end_offset=end, **values)
            )
    results: list[ValidatedUnit] = []
    with tempfile.TemporaryDirectory(prefix="age-") as folder, engine.connect() as connection:
        rows = utility.rows(END - RUN_SLOTS * SLOT, RUN_SLOTS, start)
        connection.execute(
            f'create table made as select *, false as "{NEEDS_PARSER}", false as "{NOT_WANTED}" from ({rows}) '
            f"order by read_at, meter_id limit {utility.readings}"
        )
        for number in range(PARTITIONS):
            path = Path(folder) / f"{number}.parquet"
            connection.execute(
                f"copy (select * from made where kafka_partition = {number} order by kafka_offset) to '{path}' "
                "(format parquet, compression zstd)"
            )
            (count,) = connection.execute(f"select count(*) from '{path}'").fetchall()[0]
            address = f"{staging.folder(lane, claim_id, table.location())}/{number}.parquet"
            staging.upload(table.io, path, address)
            results.append(
                {
                    "unit": number,
                    "files": [address],
                    "landed": count,
                    "good": count,
                    "dead_lettered": 0,
                    "not_wanted": 0,
                    "without_record": 0,
                    "repeated": 0,
                }
            )
    return results, [{"partition": number, "start": start, "end": end} for number in range(PARTITIONS)]
