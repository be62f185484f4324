"""The flows in BigQuery: the same SQL files, transpiled, as configurations of jobs for `BigQueryInsertJobOperator`.

Each job overwrites what it computes in one statement: a job that is repeated changes nothing. docs/bigquery.md has the
Dag, and says what of this has been run and what has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from include.lake.dialects import bigquery_parameters, overwrite_in_bigquery, to_bigquery
from include.water.flows import queries, tables
from include.water.flows.definition import KNOWN_DAYS, MAX_GAP, night_of
from include.water.flows.hours import DAY, HOUR, counted, midnight, reached

READINGS = "readings"


def table_names(flows: str, readings: str) -> dict[str, str]:
    """`flows`: "project.dataset" of the flows' tables; `readings`: "project.dataset.table" of the clean readings."""
    return {READINGS: readings, **{name: f"{flows}.{name.rpartition('.')[2]}" for name in tables.TABLES}}


def touched_hours(names: Mapping[str, str], ranges: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """A job whose rows are the hours in which the readings of these offset ranges were made."""
    return _job(
        to_bigquery(queries.text(queries.TOUCHED_HOURS), {READINGS: names[READINGS]}), queries.for_touched_hours(ranges)
    )


def overwrite(names: Mapping[str, str], name: str, read: Iterable[datetime]) -> dict[str, Any]:
    """A job that makes one of the flows' tables anew where readings made in the hours `read` reach.

    Run them in the order of `tables.TABLES`: each reads what the one before has written.
    """
    read = list(read)
    hours = reached(read)
    if name == tables.METER_HOURS:
        part = ("read_at", hours[0] - MAX_GAP, hours[-1] + HOUR + MAX_GAP)
        return _overwrite(names, name, READINGS, part, "hour", hours, queries.for_meter_hours(hours))
    hours = sorted({*hours, *counted(read)})
    if name == tables.DISTRICT_HOURS:
        part = ("hour", midnight(hours[0]) - KNOWN_DAYS * DAY, hours[-1] + HOUR)
        return _overwrite(names, name, tables.METER_HOURS, part, "hour", hours, queries.for_district_hours(hours))
    nights = sorted({night for hour in hours if (night := night_of(hour))})
    part = ("hour", hours[0] - DAY, hours[-1] + DAY)
    # The nights beside the hours of their windows: the condition of a MERGE had better not hold a query.
    parameters = {**queries.for_district_nights(nights), "nights": nights}
    return _overwrite(names, name, tables.DISTRICT_HOURS, part, "night", nights, parameters)


def _overwrite(
    names: Mapping[str, str],
    target: str,
    source: str,
    part: tuple[str, datetime, datetime],
    key: str,
    wanted: Sequence[date],
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """`part`: which rows of the source are read, [first, end) of a column. `wanted`: the target's keys, by time."""
    column, first, end = part
    table, query = source.rpartition(".")[2], target.rpartition(".")[2]
    read_rows = f"{column} >= @read_from AND {column} < @read_until"
    select = to_bigquery(queries.text(query), {table: names[source]}, {table: read_rows})
    # The bounds are for BigQuery to prune partitions by.
    deleted = f"target.{key} IN UNNEST(@{key}s) AND target.{key} >= @first AND target.{key} <= @last"
    columns = [field.name for field in tables.schema_of(target).fields]
    bounds = {"read_from": first, "read_until": end, "first": wanted[0], "last": wanted[-1]}
    return _job(overwrite_in_bigquery(select, names[target], columns, deleted), {**parameters, **bounds})


def _job(sql: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "query": {
            "query": sql,
            "useLegacySql": False,
            "parameterMode": "NAMED",
            "queryParameters": bigquery_parameters(parameters),
        }
    }
