"""Clean readings and the flow tables on a real catalog and object store, in a namespace of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from pyiceberg.table import Table

from include.streams.lake.catalog import load_catalog
from include.streams.lake.engine import connect
from include.streams.lake.writing import ensure_table
from include.water.flows import tables
from include.water.flows.aggregation import aggregate_tables
from tests.unit.water.flows.reference import Reading

PARTITIONS = 2


def clean_schema():
    """The columns of the clean table of meter readings that the flows need, and its partition spec."""
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.transforms import DayTransform
    from pyiceberg.types import IntegerType, LongType, NestedField, StringType, TimestamptzType

    schema = Schema(
        NestedField(1, "meter_id", StringType(), required=True),
        NestedField(2, "district_id", StringType(), required=True),
        NestedField(3, "read_at", TimestamptzType(), required=True),
        NestedField(4, "litres_total", LongType(), required=True),
        NestedField(5, "kafka_partition", IntegerType(), required=True),
        NestedField(6, "kafka_offset", LongType(), required=True),
        NestedField(7, "kafka_log", StringType()),
    )
    return schema, PartitionSpec(PartitionField(3, 1000, DayTransform(), "read_at_day"))


@dataclass
class Lake:
    """The tables, and the next offsets: readings get offsets in the order in which they are appended."""

    namespace: str
    clean: Table
    flow_tables: dict[str, Table]
    ends: list[int]

    def append(self, readings: Iterable[Reading]) -> list[dict[str, int]]:
        """Commit readings to the clean table like a run; returns their offset ranges."""
        starts, rows = list(self.ends), []
        for reading in readings:
            partition = int(reading.meter_id[2:]) % len(self.ends)
            state = (reading.meter_id, reading.district_id, reading.read_at, reading.litres)
            rows.append((*state, partition, self.ends[partition], "log"))
            self.ends[partition] += 1
        schema = self.clean.schema().as_arrow()
        columns = [list(column) for column in zip(*rows, strict=True)]
        self.clean.append(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
        return [
            {"partition": number, "start": start, "end": end}
            for number, (start, end) in enumerate(zip(starts, self.ends, strict=True))
            if end > start
        ]

    def aggregate(self, ranges: Sequence[dict[str, int]]) -> dict:
        with connect() as connection:
            return aggregate_tables(connection, self.clean, self.flow_tables, ranges)

    def rows(self, name: str) -> pa.Table:
        """A table's rows, in the order of its keys."""
        table = self.flow_tables[name].refresh().scan().to_arrow()
        return table.sort_by([(column, "ascending") for column in ("hour", "day", "night", "district_id", "meter_id")
                              if column in table.column_names])  # fmt: skip

    def everything(self) -> list[pa.Table]:
        return [self.rows(name).combine_chunks() for name in tables.TABLES]

    def files(self, name: str) -> set[str]:
        return {task.file.file_path for task in self.flow_tables[name].refresh().scan().plan_files()}


def make_lake(namespace: str) -> Lake:
    """Create the tables, or find those that another process has created."""
    catalog = load_catalog()
    clean = ensure_table(catalog, f"{namespace}.readings", *clean_schema())
    flow_tables = {
        name: ensure_table(
            catalog, f"{namespace}.{name.rpartition('.')[2]}", tables.schema_of(name), tables.spec_of(name)
        )
        for name in tables.TABLES
    }
    return Lake(namespace, clean, flow_tables, [0] * PARTITIONS)


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


def aggregate_until_killed(namespace: str, commits: int) -> None:
    """Aggregate, but print a line and wait forever after this many commits: for a process that is killed."""
    import time

    from include.streams.lake import writing

    done, commit = 0, writing.commit

    def stopping(table, change):
        nonlocal done
        if done == commits:
            print("stopped", flush=True)
            time.sleep(600)
        done += 1
        return commit(table, change)

    writing.commit = stopping
    lake = make_lake(namespace)
    lake.aggregate([{"partition": number, "start": 0, "end": 10**9} for number in range(PARTITIONS)])


if __name__ == "__main__":
    aggregate_until_killed(sys.argv[1], int(sys.argv[2]))
