"""The flows' SQL as BigQuery's: transpiled, it gives the same on the same data, as far as that can be run here.

BigQuery itself is not here. Its text is read by sqlglot's parser for BigQuery, written for DuckDB, and run: that shows
that nothing was lost on the way there, not that BigQuery agrees with DuckDB on each function.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
import sqlglot
from sqlglot import exp

from include.contracts.__main__ import PROJECT
from include.lake.dialects import BIGQUERY_FUNCTIONS, NotPortable, bigquery_parameters, functions_of, to_bigquery
from include.water.flows import bigquery, queries, tables
from include.water.flows.hours import reached
from tests.unit.water.flows.scenes import INLETS, scene
from tests.unit.water.flows.test_queries import everything, hours_around, register

NAMES = bigquery.table_names("our-project.water", "our-project.clean.meter_readings")


def value_of(kind: dict[str, Any], value: dict[str, Any]) -> Any:
    """A parameter of the job API, read back."""
    match kind["type"]:
        case "ARRAY":
            return [value_of(kind["arrayType"], part) for part in value["arrayValues"]]
        case "STRUCT":
            return {f["name"]: value_of(f["type"], value["structValues"][f["name"]]) for f in kind["structTypes"]}
        case "INT64":
            return int(value["value"])
        case "TIMESTAMP":
            return datetime.fromisoformat(value["value"])
        case "DATE":
            return date.fromisoformat(value["value"])
    return value["value"]


def run(connection: duckdb.DuckDBPyConnection, job: dict[str, Any], **changed: Any):
    """A job's statement, read as BigQuery's and run by DuckDB on tables named project.dataset.table."""
    query = json.loads(json.dumps(job))["query"]
    assert (query["useLegacySql"], query["parameterMode"]) == (False, "NAMED")
    tree = sqlglot.parse_one(query["query"], read="bigquery")
    for table in tree.find_all(exp.Table):
        if table.db:
            table.replace(exp.alias_(exp.to_table(f"{table.db}_{table.name}"), table.alias_or_name, table=True))
    parameters = {p["name"]: value_of(p["parameterType"], p["parameterValue"]) for p in query["queryParameters"]}
    used = {parameter.name for parameter in tree.find_all(exp.Parameter)}
    assert used == parameters.keys()
    return connection.sql(tree.sql("duckdb"), params={**parameters, **changed})


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@pytest.mark.parametrize("seed", range(6))
def test_transpiled_there_and_back_it_gives_the_same_tables(connection, seed: int):
    readings = scene(Random(seed))
    hours = hours_around(readings)
    wanted = everything(connection, readings)
    read = {r.read_at.replace(minute=0, second=0, microsecond=0) for r in readings}
    connection.execute("CREATE TABLE clean_meter_readings AS FROM readings")
    inlets = queries.for_district_hours(hours, INLETS.items())["inlets"]
    for name, table in zip(tables.TABLES, wanted, strict=True):
        stored = name.replace(".", "_")
        # Something is there already: what is wrong in the hours is deleted, and what lies elsewhere is kept.
        connection.register("wanted", table)
        connection.execute(f"CREATE TABLE {stored} AS FROM wanted LIMIT 7")
        column = "night" if "night" in table.column_names else "hour"
        connection.execute(
            f"INSERT INTO {stored} (SELECT * REPLACE ({column} - INTERVAL 900 DAY AS {column}) FROM wanted)"
        )
        job = bigquery.overwrite(NAMES, name, read)
        changed = {"inlets": inlets} if name == tables.DISTRICT_HOURS else {}
        run(connection, job, **changed)
        kept, made = (
            connection.sql(f"FROM {stored} WHERE {column} {comparison} TIMESTAMP '2025-06-01' ORDER BY {column}, 1")
            for comparison in ("<", ">")
        )
        assert kept.to_arrow_table().num_rows == table.num_rows
        found = made.to_arrow_table().cast(table.schema)
        key = [(column, "ascending"), (table.column_names[0], "ascending")]
        assert found.sort_by(key).equals(table)


def test_touched_hours_are_read_by_a_job(connection):
    readings = scene(Random(1))
    register(connection, readings)
    connection.execute("CREATE TABLE clean_meter_readings AS FROM readings")
    ranges = [{"partition": 0, "start": 0, "end": 5}, {"partition": 1, "start": 100, "end": 140}]
    rows = run(connection, bigquery.touched_hours(NAMES, ranges)).to_arrow_table()
    wanted = queries.run(connection, queries.TOUCHED_HOURS, queries.for_touched_hours(ranges))
    assert sorted(rows["hour"].to_pylist()) == sorted(wanted["hour"].to_pylist())
    assert rows.num_rows > 0


def test_every_file_of_sql_is_portable():
    names = dict.fromkeys(("readings", "meter_hours", "district_hours"), "a.b.c")
    for path in sorted(Path(queries.FOLDER).glob("*.sql")):
        written = to_bigquery(path.read_text(), names)
        assert functions_of(written) <= BIGQUERY_FUNCTIONS
        assert "$" not in written


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT regexp_split_to_array(a, 'x') FROM t",
        "SELECT list_transform(a, x -> x + 1) FROM t",
        "SELECT histogram(a) FROM t",
        "SELECT epoch_ns(a) FROM t",
    ],
)
def test_what_bigquery_does_not_have_is_refused(sql: str):
    with pytest.raises(NotPortable):
        to_bigquery(sql, {"t": "a.b.c"})


def test_a_table_without_a_name_in_bigquery_is_refused():
    with pytest.raises(KeyError, match="elsewhere"):
        to_bigquery("SELECT a FROM elsewhere", {"t": "a.b.c"})


def test_parameters_have_the_types_of_their_values():
    made = bigquery_parameters({"n": 3, "x": 0.5, "yes": True, "rows": [{"night": date(2026, 1, 2), "name": "a"}]})
    assert [p["parameterType"]["type"] for p in made] == ["INT64", "FLOAT64", "BOOL", "ARRAY"]
    assert made[2]["parameterValue"] == {"value": "true"}
    assert value_of(made[3]["parameterType"], made[3]["parameterValue"]) == [{"night": date(2026, 1, 2), "name": "a"}]
    for bad in ([], None, object()):
        with pytest.raises(ValueError, match="parameter p"):
            bigquery_parameters({"p": bad})


def test_jobs_read_and_delete_only_a_span_of_time():
    read = [datetime(2026, 3, 7, 12, tzinfo=UTC)]
    job = bigquery.overwrite(NAMES, tables.METER_HOURS, read)["query"]
    parameters = {p["name"]: value_of(p["parameterType"], p["parameterValue"]) for p in job["queryParameters"]}
    assert parameters["hours"] == reached(read)
    assert parameters["read_from"] == datetime(2026, 3, 7, 6, tzinfo=UTC)
    assert parameters["read_until"] == datetime(2026, 3, 7, 19, tzinfo=UTC)
    assert (parameters["first"], parameters["last"]) == (parameters["hours"][0], parameters["hours"][-1])
    assert re.search(r"read_at >= @read_from\s+AND (\w+\.)?read_at < @read_until", job["query"])


def test_the_dag_of_the_documentation_is_a_dag_whose_jobs_run_in_order():
    from airflow.providers.google.cloud.operators.bigquery import BigQueryInsertJobOperator

    (snippet,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "bigquery.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "documented"}
    exec(compile(snippet, "docs/bigquery.md", "exec"), namespace)
    dag = namespace["aggregate_in_bigquery"]()
    jobs = [task for task in dag.tasks if isinstance(task, BigQueryInsertJobOperator)]
    assert [task.task_id for task in dag.topological_sort() if task in jobs] == [
        "meter_hours",
        "district_hours",
        "district_nights",
    ]
    assert all(task.deferrable for task in jobs)
