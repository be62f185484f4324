"""Translate DuckDB SQL into BigQuery's dialect, with the parameters of its job API. This module never calls BigQuery.

SQL that cannot be transpiled is refused. sqlglot passes on functions that BigQuery does not have, and BigQuery would
report them only when the job runs; so a query may use only the functions in BIGQUERY_FUNCTIONS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from itertools import pairwise
from typing import Any

# Functions in BigQuery's reference that mean the same as in DuckDB. Look a function up there before you add it.
BIGQUERY_FUNCTIONS = frozenset(
    (
        *("CAST", "COALESCE", "COUNT", "DIV", "GENERATE_ARRAY", "GREATEST", "LEAD", "LEAST", "MAX", "MAX_BY", "MIN"),
        *("NULLIF", "ROUND", "SUM", "TIMESTAMP_MICROS", "TIMESTAMP_TRUNC", "UNIX_MICROS", "UNNEST"),
    )
)
# {DuckDB's name: sqlglot's class} of functions that sqlglot knows by the names of other engines.
_RENAMED = {"EPOCH_US": "UnixMicros"}


class NotPortable(ValueError):
    """The SQL uses something that BigQuery's dialect does not have."""


def to_bigquery(sql: str, tables: Mapping[str, str], conditions: Mapping[str, str] | None = None) -> str:
    """Translate a query to BigQuery's dialect: `$name` becomes `@name`, and tables get their BigQuery names.

    Args:
        sql: A query in DuckDB's dialect.
        tables: {table in the query: its name in BigQuery}, for each table that the query reads.
        conditions: {table: condition in BigQuery's SQL on the rows to read}. This prunes partitions, and so limits the
            cost.

    Returns:
        The query in BigQuery's dialect.

    Raises:
        NotPortable: The query uses something that BigQuery does not have.
        KeyError: A table is not in `tables`.
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import ErrorLevel, UnsupportedError

    tree = sqlglot.parse_one(sql, read="duckdb")
    for unknown in list(tree.find_all(exp.Anonymous)):
        if renamed := _RENAMED.get(unknown.name.upper()):
            unknown.replace(getattr(exp, renamed)(this=unknown.expressions[0]))
    defined = {cte.alias for cte in tree.find_all(exp.CTE)}
    for table in list(tree.find_all(exp.Table)):
        if not table.name or table.name in defined:
            continue
        # The alias is the name that the query uses for this table.
        source = exp.to_table(f"`{tables[table.name]}`", dialect="bigquery")
        if condition := (conditions or {}).get(table.name):
            rows = exp.select("*").from_(source).where(condition, dialect="bigquery")
            table.replace(rows.subquery(table.alias_or_name))
        else:
            table.replace(exp.alias_(source, table.alias_or_name, table=True))
    try:
        written = tree.sql("bigquery", unsupported_level=ErrorLevel.RAISE, comments=False, pretty=True)
    except UnsupportedError as error:
        raise NotPortable(f"BigQuery has no equal: {error}") from error
    if unknown := functions_of(written) - BIGQUERY_FUNCTIONS:
        raise NotPortable(f"not known to exist in BigQuery: {', '.join(sorted(unknown))}; see BIGQUERY_FUNCTIONS")
    return written


def functions_of(sql: str) -> set[str]:
    """The functions that a BigQuery statement calls, in upper case: names that a bracket follows without a space."""
    from sqlglot.dialects.bigquery import BigQuery

    tokens = BigQuery().tokenize(sql)
    return {
        token.text.upper()
        for token, after in pairwise(tokens)
        if after.text == "(" and after.start == token.end + 1 and token.text.replace("_", "").isalnum()
    }


def overwrite_in_bigquery(query: str, target: str, columns: Sequence[str], condition: str) -> str:
    """One MERGE that deletes the target's rows that meet `condition` and inserts the query's rows: all or nothing.

    Args:
        query: The rows to insert, in BigQuery's SQL.
        target: The table's name in BigQuery.
        columns: The columns to insert.
        condition: Which rows to delete, in BigQuery's SQL; the table's alias in it is `target`.
    """
    import sqlglot

    names = ", ".join(columns)
    values = ", ".join(f"made.{column}" for column in columns)
    statement = (
        f"MERGE INTO `{target}` AS target USING (\n{query}\n) AS made ON FALSE\n"
        f"WHEN NOT MATCHED BY SOURCE AND {condition} THEN DELETE\n"
        f"WHEN NOT MATCHED BY TARGET THEN INSERT ({names}) VALUES ({values})"
    )
    sqlglot.parse_one(statement, read="bigquery")
    return statement


def bigquery_parameters(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Named parameters in the form of BigQuery's job API.

    Args:
        values: {name: value}. Numbers, texts, times, dates, and lists of these or of mappings.

    Raises:
        ValueError: A list is empty, so its type is unknown (there is nothing to compute then); or a type is not
            supported.
    """
    return [
        {"name": name, "parameterType": _type(name, value), "parameterValue": _value(value)}
        for name, value in values.items()
    ]


def _type(name: str, value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"type": "BOOL"}
        case int():
            return {"type": "INT64"}
        case float():
            return {"type": "FLOAT64"}
        case str():
            return {"type": "STRING"}
        case datetime():
            return {"type": "TIMESTAMP"}
        case date():
            return {"type": "DATE"}
        case Mapping():
            fields = [{"name": field, "type": _type(name, part)} for field, part in value.items()]
            return {"type": "STRUCT", "structTypes": fields}
        case list() | tuple() if value:
            return {"type": "ARRAY", "arrayType": _type(name, value[0])}
    raise ValueError(f"parameter {name}: {value!r} is of no type that BigQuery's parameters have, or an empty list")


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"structValues": {field: _value(part) for field, part in value.items()}}
    if isinstance(value, list | tuple):
        return {"arrayValues": [_value(part) for part in value]}
    if isinstance(value, datetime | date):
        return {"value": value.isoformat()}
    return {"value": str(value).lower() if isinstance(value, bool) else str(value)}
