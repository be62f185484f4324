"""The clean table of a topic holds validated rows, each event once. One commit adds the rows of a run.

The commit replaces exactly the rows of the claim's offsets, so it can be repeated. If the process is killed before the
commit, nothing has changed. If it is killed afterwards, the retry replaces the rows with equal rows.
"""

from __future__ import annotations

import logging
import re
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import select

from include.streams.contracts import ContractUnion, Topic
from include.streams.kafka.offsets import OffsetRange
from include.streams.lake import datafiles, engine, maintenance, writing
from include.streams.lake.engine import quoted
from include.streams.lake.offsets import LogRange
from include.streams.lake.types import sql_type
from include.streams.landing import conflicts, intervals
from include.streams.landing.broken_files import read_with_repair
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import State
from include.streams.landing.planning import without_record
from include.streams.landing.positions import claim_of
from include.streams.landing.tables import clean_table
from include.streams.landing.validation import staged
from include.streams.landing.xcom import RunSummary, ValidatedUnit
from include.streams.operations.database import WHOLE_TASK, begin
from include.streams.operations.tables import claims
from include.streams.validators import coordinates
from include.streams.validators.columns import CONTRACT, table_columns
from include.streams.validators.coordinates import COORDINATES, LOG

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table, Transaction

log = logging.getLogger(__name__)

# If there are more time spans than this, the filter uses one span that covers all of them.
MAX_SPANS = 40
CLAIM_ID, RUN_ID = "claim-id", "run-id"


class StagingGone(AirflowFailException):
    """The staging files with a run's good rows were removed. Not retried: a retry of this task cannot restore them."""


def ensure_clean_table(topic: Topic) -> Table:
    """The topic's clean table. It is created from the contract, and gets columns for new optional fields.

    Raises:
        ValueError: The contract has changed in a way that the existing rows do not allow.
    """
    from include.streams.lake.catalog import load_catalog

    schema = clean_schema(topic)
    return writing.ensure_table(load_catalog(), clean_table(topic), schema, _spec(topic, schema))


def clean_schema(topic: Topic) -> Schema:
    """The clean table's columns: the fields of the contracts, the event's id, and the record's Kafka coordinates."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    columns = [(c.name, c.iceberg_type, c.required) for c in table_columns(topic)]
    columns += [("event_id", "string", True)]
    # A record may have no timestamp.
    columns += [(name, kind, name != "kafka_timestamp") for name, kind in COORDINATES.items()]
    # Not required, because rows that were written before this column was added have no value.
    columns += [(LOG, "string", False)]
    return Schema(
        *(
            # PyIceberg accepts the name of a type instead of the type.
            NestedField(number, name, kind, required=required)  # type: ignore[arg-type]
            for number, (name, kind, required) in enumerate(columns, start=1)
        )
    )


def _spec(topic: Topic, schema: Schema) -> PartitionSpec:
    from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform

    if topic.event_time is None:
        return UNPARTITIONED_PARTITION_SPEC
    source = schema.find_field(topic.event_time).field_id
    return PartitionSpec(PartitionField(source, 1000, DayTransform(), f"{topic.event_time}_day"))


def commit_clean(consumer: LandingConsumer, results: Iterable[ValidatedUnit], run_id: str) -> RunSummary:
    """Commit the good rows of a run to the clean table, each event once.

    Of several rows with the same event id, the row with the lowest coordinates stays, unless the table already has the
    event from other offsets. The other rows are duplicates if their content is the same, and dead letters if it
    differs. If the event id contains the event time (`holds_event_time`), rows are compared with the table's rows of
    the same hours, otherwise with the whole table. In a union, each contract has its own event ids.

    If the process is killed between the commit and the dead letters, the retry replaces the same rows and finds the
    same conflicts.

    Args:
        consumer: The landing consumer.
        results: The results of `validate_unit`, one for each unit of the run.
        run_id: The Dag run.

    Returns:
        The run's summary.

    Raises:
        StagingGone: The units' staging files were removed.
    """
    results = list(results)
    claim_id, ranges = claim_of(consumer, run_id)
    own = read_with_repair(consumer.topic, lambda: replaceable(consumer, ranges), conn_id=consumer.conn_id)
    parts = as_parts(own)
    files = [file for result in results for file in result["files"]]
    table = ensure_clean_table(consumer.topic)
    with tempfile.TemporaryDirectory(prefix="clean-") as folder, engine.connect() as connection, _alone(claim_id):
        table.refresh()
        own_rows = partial(coordinates.rows_in_ranges, connection, ranges=parts)
        others = partial(own_rows, others=True)
        rows_of_files = _staged(connection, consumer, files, claim_id)
        _view_staged(connection, rows_of_files, ranges)
        days = _days(connection, consumer.topic)
        _find_duplicates(connection, consumer.topic, table, others)
        local = datafiles.write(connection, _rows_that_stay(connection, table.schema()), table, Path(folder))
        rows = sum(local.values())
        added = datafiles.upload(table, local)
        replaced = 0
        # Files are split by time, like the bundles of small files, because readers read single hours.
        cut = (consumer.topic.event_time, maintenance.MAX_BUNDLE_ROWS) if consumer.topic.event_time else None

        def change(transaction: Transaction) -> None:
            nonlocal replaced
            properties = {CLAIM_ID: str(claim_id), RUN_ID: run_id}
            # Searched in the same state on which the commit is made. The lock of `_alone` only saves work: it is lost
            # when its connection breaks, and a task that Airflow has given up may still run and commit the same rows.
            before = datafiles.prepare_removal(
                connection, table, coordinates.files_of(table, parts), own_rows, others, cut=cut
            )
            replaced = before.rows
            writing.replace_files(transaction, before.old, [*before.rest, *added], properties)

        writing.commit(table, change)
        # After the commit, so that a dead-letter topic that refuses the conflicts does not delay good rows.
        conflicting = conflicts.publish_conflicts(connection, consumer, ranges, run_id)
    landed = sum(result["landed"] for result in results)
    summary: RunSummary = {
        "claim_id": claim_id,
        "run_id": run_id,
        "table": clean_table(consumer.topic),
        "ranges": as_parts(ranges),
        "landed": landed,
        "dead_lettered": sum(result["dead_lettered"] for result in results) + conflicting,
        # Tasks of the release before do not count it.
        "not_wanted": sum(result.get("not_wanted", 0) for result in results),
        # Includes ranges for which there was no unit, because no offset in them holds a record.
        "without_record": sum(map(len, ranges)) - landed,
        "repeated": sum(result["repeated"] for result in results),
        "clean": rows,
        "duplicates": sum(result["good"] for result in results) - rows - conflicting,
        "days": [days[0].isoformat(), days[-1].isoformat()] if days else [],
    }
    log.info("committed: consumer=%s %s replaced=%d", consumer.name, summary, replaced)
    return summary


def replaceable(consumer: LandingConsumer, ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """The parts of a claim whose clean rows a run replaces.

    Offsets that are recorded as lost and that no landed file holds are left out. A cleared run could not write their
    rows again, so rows that an earlier try has committed are the last copy.

    Args:
        consumer: The landing consumer.
        ranges: The claim's ranges, one for each partition.
    """
    lost = without_record(consumer, ranges, [State.lost])
    # Offsets without a record next to lost offsets are left out too. Otherwise each transaction marker between them
    # would be a range of its own, and make the filters long.
    empty = without_record(consumer, ranges) if lost else {}
    return [
        replace(part, start=start, end=end)
        for part in ranges
        for start, end in intervals.subtract(
            [(part.start, part.end)],
            _holding_any(empty.get(part.partition, []), [first for first, _ in lost.get(part.partition, [])]),
        )
    ]


def _holding_any(pieces: intervals.Ranges, offsets: Sequence[int]) -> intervals.Ranges:
    """The pieces that hold at least one of the offsets, which must be sorted."""
    holding = []
    for start, end in pieces:
        nearest = bisect_left(offsets, start)
        if nearest < len(offsets) and offsets[nearest] < end:
            holding.append((start, end))
    return holding


def _staged(connection: DuckDBPyConnection, consumer: LandingConsumer, files: Sequence[str], claim_id: int) -> str:
    try:
        return staged(connection, consumer, files)
    except FileNotFoundError as error:
        raise StagingGone(
            f"consumer {consumer.name}: staging files of claim {claim_id} were removed, as at the end of every run "
            f"({error}). Clear the run from its first task on: it validates its offsets again"
        ) from error


@contextmanager
def _alone(claim_id: int) -> Iterator[None]:
    """Wait for a task of the same claim that Airflow has given up and that still commits: both would append rows."""
    with begin(patience=WHOLE_TASK) as connection:
        connection.execute(select(claims.c.id).where(claims.c.id == claim_id).with_for_update())
        yield


def _days(connection: DuckDBPyConnection, topic: Topic) -> list[date]:
    if topic.event_time is None:
        return []
    # Day numbers instead of dates, because DuckDB would compute the calendar date of every single row.
    query = f"select distinct epoch_us({quoted(topic.event_time)}) // 86400000000 from staged order by 1"
    return [date(1970, 1, 1) + timedelta(days=number) for (number,) in connection.execute(query).fetchall()]


def holds_event_time(topic: Topic) -> bool:
    """Whether two messages with the same event id must have the same event time, according to the contract.

    If so, a repeated event is on the same day as the first. The contract's `event_id_sql` shows this, and every run
    compares its result with the property `event_id`. A contract without `event_id_sql` gives no such guarantee.
    """
    name = topic.event_time
    expressions = [contract.event_id_sql or "" for contract in topic.contracts]
    return bool(name) and all(re.search(rf"\b{re.escape(name)}\b", expression) for expression in expressions)


def _find_duplicates(
    connection: DuckDBPyConnection,
    topic: Topic,
    table: Table,
    others: Callable[[DuckDBPyRelation], DuckDBPyRelation],
) -> None:
    """Create the table `dropped`: rows whose event is already in the table or in an earlier row of the run.

    Its columns are the row's coordinates, and `conflict`: whether the row's content differs from that of the earlier
    row. `others` selects the table's rows that the run does not replace.
    """
    existing = (
        _rows_of_same_hours(connection, topic, table) if holds_event_time(topic) else engine.scan(connection, table)
    )
    others(existing).create_view("existing")
    event = f"{CONTRACT}, event_id" if isinstance(topic.contract, ContractUnion) else "event_id"
    connection.execute(
        f"""
        create temp table twice as
        select {event} from (select {event} from staged union all select {event} from existing)
        group by {event} having count(*) > 1
        """
    )
    # Usually no event is repeated, so no row needs a comparison.
    if connection.execute("select count(*) from twice").fetchall() == [(0,)]:
        connection.execute("create temp table dropped (kafka_partition integer, kafka_offset bigint, conflict boolean)")
        return
    columns = [quoted(column.name) for column in table_columns(topic)]
    content = f"struct_pack({', '.join(f'{name} := {name}' for name in columns)})"
    # If a foreign contract picks a further field, older rows have null in its column although their messages had the
    # field. So a null counts as equal to any value.
    differ = (
        f"coalesce({' or '.join(f'content.{name} <> earlier.{name}' for name in columns)}, false)"
        if topic.is_foreign
        else "content is distinct from earlier"
    )
    connection.execute(
        f"""
        create temp table dropped as
        with known as (
            select {event}, first({content} order by kafka_partition, kafka_offset) as known_content
            from existing semi join twice using ({event}) group by {event}
        ),
        suspect as (
            select {event}, kafka_partition, kafka_offset, {content} as content,
                row_number() over event as place, first(content) over event as first_content
            from staged semi join twice using ({event})
            window event as (partition by {event} order by kafka_partition, kafka_offset)
        ),
        repeated as (
            select kafka_partition, kafka_offset, content, coalesce(known_content, first_content) as earlier
            from suspect left join known using ({event})
            where known_content is not null or place > 1
        )
        select kafka_partition, kafka_offset, {differ} as conflict from repeated
        """
    )


def _rows_that_stay(connection: DuckDBPyConnection, schema: Schema) -> str:
    """A query for the rows that are added to the table, with the table's columns."""
    present = {name for name, *_ in connection.execute("describe staged").fetchall()}
    columns = ", ".join(
        quoted(field.name) if field.name in present else f"null::{sql_type(field.field_type)} as {quoted(field.name)}"
        for field in schema.fields
    )
    (dropped,) = connection.execute("select count(*) from dropped").fetchall()[0]
    stays = (
        " where (kafka_partition, kafka_offset) not in (select kafka_partition, kafka_offset from dropped)"
        if dropped
        else ""
    )
    return f"select {columns} from staged{stays}"


def count_of(connection: DuckDBPyConnection, table: Table, ranges: Sequence[OffsetRange]) -> int:
    """How many rows with these offsets the table has."""
    if not ranges:
        return 0
    return coordinates.rows_of(connection, table, as_parts(ranges)).count("*").fetchall()[0][0]


def as_parts(ranges: Iterable[OffsetRange]) -> list[LogRange]:
    """The ranges in the form of a run's summary."""
    return [{"partition": r.partition, "start": r.start, "end": r.end, "log": r.topic_id} for r in ranges]


def _view_staged(connection: DuckDBPyConnection, query: str, ranges: Iterable[OffsetRange]) -> None:
    """Create the view `staged`: the query's rows, with the identity of the log. A partition of a claim has one log."""
    import pyarrow as pa

    logs = {r.partition: r.topic_id for r in ranges}
    columns = {"number": pa.array(logs, pa.int32()), "log": pa.array(logs.values(), pa.string())}
    # A table, because an expression would compare each row with each partition.
    connection.register("logs", pa.table(columns))
    connection.execute(
        f"create temp view staged as select good.*, logs.log as {LOG} from ({query}) as good "
        "left join logs on logs.number = good.kafka_partition"
    )


def _rows_of_same_hours(connection: DuckDBPyConnection, topic: Topic, table: Table) -> DuckDBPyRelation:
    """The table's rows in the hours of the staged rows' event times, and possibly some other rows.

    That is enough, because a repeated event has the same time as the first. Whole days are not read: a day of a large
    source has millions of rows.
    """
    time = quoted(topic.event_time or "")
    query = f"select distinct epoch_us({time}) // 3600000000 from staged order by 1"
    spans: list[tuple[datetime, datetime]] = []
    for (number,) in connection.execute(query).fetchall():
        start, end = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=number + n) for n in (0, 1))
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    rows = engine.read_data_files(connection, table, engine.files_within(table, topic.event_time or "", spans))
    if len(spans) > MAX_SPANS:
        spans = [(spans[0][0], spans[-1][1])]
    # With this filter, DuckDB reads only the parts of a file whose times overlap the spans.
    parts = (f"({time} >= '{start.isoformat()}' and {time} < '{end.isoformat()}')" for start, end in spans)
    return rows.filter(" or ".join(parts) or "false")
