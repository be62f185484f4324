"""The Iceberg table of customers' days."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.water.flows.tables import schema

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

CUSTOMER_DAYS = "water.customer_days"

# (name, type, required, meaning) of each column.
COLUMNS = (
    ("customer_id", "string", True, ""),
    ("day", "date", True, "in the utility's time zone"),
    ("district_id", "string", True, ""),
    ("household", "string", True, "people in it: 1, 2, 3-4 or 5+"),
    ("litres", "double", True, "of the hours that are known"),
    ("known_hours", "int", True, ""),
    ("expected_hours", "int", True, "24; 23 or 25 when the clocks are changed"),
    ("complete", "boolean", True, "all hours are known"),
    ("continuous_flow", "boolean", True, "an hour of the day belongs to a continuous flow of at least 24 hours"),
    ("peer_group", "string", False, "district or network; null: no comparison"),
    ("peer_households", "int", False, "rounded down to tens"),
    ("peer_low", "double", False, "a quarter of them used less; litres, to the nearest ten, as the next two"),
    ("peer_median", "double", False, ""),
    ("peer_high", "double", False, "a quarter of them used more"),
)


def ensure_customer_days(catalog: Catalog) -> Table:
    """Return the table, one partition per day, created if it does not exist."""
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import IdentityTransform

    from include.streams.lake.writing import ensure_table

    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "day"))
    return ensure_table(catalog, CUSTOMER_DAYS, schema(COLUMNS), spec)
