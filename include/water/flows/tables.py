"""The example's Iceberg tables: flows by meter, by district, and by night.

Counters are cumulative. The flow of an hour is the counter at its end minus the counter at its beginning, each
interpolated between the readings before and after. If two neighboring readings are more than 3 h apart, or the counter
has fallen between them (a meter was replaced), the flow is unknown: null, never an estimate. The SQL is in
`include/water/flows/sql/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

NAMESPACE = "water"
METER_HOURS = f"{NAMESPACE}.meter_hours"
METER_DAYS = f"{NAMESPACE}.meter_days"
DISTRICT_HOURS = f"{NAMESPACE}.district_hours"
DISTRICT_NIGHTS = f"{NAMESPACE}.district_nights"
TABLES = (METER_HOURS, METER_DAYS, DISTRICT_HOURS, DISTRICT_NIGHTS)

# {table: (partition column, transform, ((column, type, required, meaning), ...))}.
_DEFINITIONS: dict[str, tuple[str, str, tuple[tuple[str, str, bool, str], ...]]] = {
    METER_HOURS: (
        "hour",
        "day",
        (
            ("meter_id", "string", True, "a household's meter, or a district's inlet meter"),
            ("district_id", "string", True, "of the last reading from which the flow was computed"),
            ("hour", "timestamptz", True, "its beginning, UTC"),
            ("litres", "double", False, "null: unknown"),
            ("readings", "int", True, "within the hour; a duplicate counts once"),
            ("expected_readings", "int", True, "readings that the utility expects in an hour"),
        ),
    ),
    # Known meters are looked up in a week of rows; METER_HOURS would have 24 times as many.
    METER_DAYS: (
        "day",
        "day",
        (
            ("meter_id", "string", True, "a meter that was read on that day"),
            ("district_id", "string", True, "as in the meter's hours; a meter that was moved has a row for each"),
            ("day", "timestamptz", True, "its beginning, UTC"),
        ),
    ),
    DISTRICT_HOURS: (
        "hour",
        "day",
        (
            ("district_id", "string", True, ""),
            ("hour", "timestamptz", True, "its beginning, UTC"),
            ("inlet_litres", "double", False, "what flowed into the district; null: unknown"),
            ("metered_litres", "double", False, "the sum of the customers' meters whose flow is known; null: none is"),
            ("loss_litres", "double", False, "inlet minus metered; null when the flow of too many meters is unknown"),
            ("meters_reporting", "int", True, "customers' meters whose flow of the hour is known"),
            ("meters_known", "int", True, "customers' meters that were read that UTC day or in the week before"),
            ("missing_readings", "int", True, "of the known meters and the inlet meter"),
        ),
    ),
    DISTRICT_NIGHTS: (
        "night",
        "month",
        (
            ("district_id", "string", True, ""),
            ("night", "date", True, "the day on which the night began, in the utility's time zone"),
            ("min_night_flow_lph", "double", False, "least hourly inlet flow in the night window, litres per hour"),
            ("metered_night_flow_lph", "double", False, "mean metered flow over the hours whose loss is known"),
            ("night_loss_lph", "double", False, "mean of inlet minus metered over the hours whose loss is known"),
            ("hours", "int", True, "hours of the window whose inlet flow is known"),
            ("complete", "boolean", True, "all hours of the window are among them"),
        ),
    ),
}


def schema_of(name: str) -> Schema:
    return schema(_DEFINITIONS[name][2])


def schema(columns: Iterable[tuple[str, str, bool, str]]) -> Schema:
    """The Iceberg schema of columns (name, type, required, meaning), with field ids from 1."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    return Schema(
        *(
            NestedField(number, column, kind, required=required, doc=doc or None)
            for number, (column, kind, required, doc) in enumerate(columns, 1)
        )
    )


def spec_of(name: str) -> PartitionSpec:
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import parse_transform

    column, transform, _ = _DEFINITIONS[name]
    source = schema_of(name).find_field(column).field_id
    return PartitionSpec(PartitionField(source, 1000, parse_transform(transform), f"{column}_{transform}"))


def ensure_tables(catalog: Catalog) -> dict[str, Table]:
    """{name: table}, created if they do not exist."""
    from include.streams.lake.writing import ensure_table

    return {name: ensure_table(catalog, name, schema_of(name), spec_of(name)) for name in TABLES}
