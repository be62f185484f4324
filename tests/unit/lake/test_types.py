"""The map of column types: an Iceberg type has the same meaning in PyIceberg, DuckDB and Arrow."""

import duckdb
import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.types import NestedField

from include.streams.lake.types import arrow_type, sql_type

KINDS = ("boolean", "int", "long", "float", "double", "date", "timestamp", "timestamptz", "string", "binary")


@pytest.mark.parametrize("kind", KINDS)
def test_duckdb_and_arrow_have_the_same_type(kind: str):
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        made = connection.sql(f"select null::{sql_type(kind)} as value").to_arrow_table()
    assert made.schema.field("value").type == arrow_type(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_arrow_and_iceberg_have_the_same_type(kind: str):
    field = schema_to_pyarrow(Schema(NestedField(1, "value", kind, required=True))).field("value")  # type: ignore[arg-type]
    small = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    assert small.get(field.type, field.type) == arrow_type(kind)


def test_an_unsupported_type_is_refused_by_its_name():
    with pytest.raises(ValueError, match="Iceberg type uuid: not one of boolean"):
        sql_type("uuid")
