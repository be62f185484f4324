"""DuckDB's SQL as BigQuery's, and what BigQuery's job API needs beside it. Nothing here talks to BigQuery.

What cannot be transpiled is refused. sqlglot passes functions through that BigQuery does not have, and BigQuery would
say so only when the job runs; so a query may use only those of BIGQUERY_FUNCTIONS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from itertools import pairwise
from typing import Any

# In BigQuery's reference, with the meaning that DuckDB's have; add what a query needs after looking it up there.
BIGQUERY_FUNCTIONS = frozenset(
    (
        *("CAST", "COALESCE", "COUNT", "DIV", "GENERATE_ARRAY", "GREATEST", "LEAD", "LEAST", "MAX", "MAX_BY", "MIN"),
        *("NULLIF", "ROUND", "SUM", "TIMESTAMP_MICROS", "TIMESTAMP_TRUNC", "UNIX_MICROS", "UNNEST"),
    )
)
# DuckDB's names of functions that sqlglot knows under the names of other engines.
_RENAMED = {"EPOCH_US": "UnixMicros"}


class NotPortable(ValueError):
    """This SQL has something that BigQuery's dialect does not."""


def to_bigquery(sql: str, tables: Mapping[str, str], conditions: Mapping[str, str] | None = None) -> str:
    """A query in BigQuery's dialect: `$name` becomes `@name`, and each table that it reads its name in `tables`.

    conditions: by table, which of its rows are read at all (BigQuery's SQL): what prunes partitions, and so what costs.
    Raises NotPortable for what BigQuery does not have, KeyError for a table that is not named.
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
        # Its alias is the name that the query uses.
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
    """The names of the functions that a statement of BigQuery's calls: what a bracket follows without a space."""
    from sqlglot.dialects.bigquery import BigQuery

    tokens = BigQuery().tokenize(sql)
    return {
        token.text.upper()
        for token, after in pairwise(tokens)
        if after.text == "(" and after.start == token.end + 1 and token.text.replace("_", "").isalnum()
    }


def overwrite_in_bigquery(query: str, target: str, columns: Sequence[str], condition: str) -> str:
    """One statement that deletes the target's rows that meet `condition`, and inserts the query's: all or nothing.

    `query` and `condition` are BigQuery's SQL; the target is `target` in the condition.
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
    """Named parameters as the job API takes them: numbers, texts, times, dates, and lists of these or of mappings.

    Raises ValueError for an empty list, whose type nothing tells: there is nothing to compute then.
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
