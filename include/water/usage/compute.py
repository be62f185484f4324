"""Customers' days and their continuous flows, from the hours of their meters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.water.flows.definition import KNOWN_DAYS, TIME_ZONE
from include.water.local_days import hours_of, midnight
from include.water.usage.customers import Customer

if TYPE_CHECKING:
    import pyarrow
    from duckdb import DuckDBPyConnection

# The least number of other households in a group that a household is compared with.
MIN_OTHERS = 10
# A flow that does not stop for this long is a leak behind the meter.
MIN_CONTINUOUS_HOURS = 24
# A smaller flow in an hour can be a rounding error: counters count whole liters.
MIN_CONTINUOUS_LITRES = 2.0


@dataclass(frozen=True)
class Usage:
    """The usage of customers.

    Attributes:
        days: Rows as in tables.COLUMNS, by day and customer.
        flows: Continuous flows: customer_id, starts_at, ends_at, hours, least_litres_per_hour, running.
    """

    days: pyarrow.Table
    flows: pyarrow.Table


def compute(
    connection: DuckDBPyConnection,
    flows: Any,
    customers: Sequence[Customer],
    days: Sequence[date],
    shown: Sequence[date] | None = None,
) -> Usage:
    """Compute the usage of customers.

    Args:
        connection: The engine's DuckDB connection.
        flows: A relation with meter_id, hour (UTC) and litres.
        customers: Today's customers.
        days: The consecutive days to read.
        shown: The days to return; by default all.
    """
    connection.register("flows", flows)
    connection.register("customers", _customers(customers))
    connection.register("days", _days(days))
    connection.execute(_sql("hours"))
    limits = {
        "min_litres": MIN_CONTINUOUS_LITRES,
        "min_hours": MIN_CONTINUOUS_HOURS,
        # A meter that has been silent for longer no longer counts as a meter of its district.
        "heard_since": midnight(days[-1] - timedelta(days=KNOWN_DAYS), TIME_ZONE),
    }
    connection.execute(_sql("continuous"), limits)
    parameters = {"min_others": MIN_OTHERS, "shown": list(days if shown is None else shown)}
    usage_days = connection.sql(_sql("days"), params=parameters).to_arrow_table()
    continuous = connection.sql("select * from continuous_flows order by customer_id, starts_at").to_arrow_table()
    return Usage(usage_days, continuous)


def last_days(today: date, count: int) -> list[date]:
    """The last `count` days, up to and including today."""
    return [today - timedelta(days=n) for n in reversed(range(count))]


def _customers(customers: Sequence[Customer]) -> pyarrow.Table:
    import pyarrow as pa

    names = ("customer_id", "meter_id", "district_id", "household")
    schema = pa.schema([*((name, pa.string()) for name in names), ("since", pa.date32())])
    return pa.Table.from_pylist([asdict(customer) for customer in customers], schema)


def _days(days: Sequence[date]) -> pyarrow.Table:
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    schema = pa.schema([("day", pa.date32()), ("starts_at", moment), ("ends_at", moment), ("hours", pa.int32())])
    rows = [
        {
            "day": day,
            "starts_at": midnight(day, TIME_ZONE),
            "ends_at": midnight(day + timedelta(days=1), TIME_ZONE),
            "hours": hours_of(day, TIME_ZONE),
        }
        for day in days
    ]
    return pa.Table.from_pylist(rows, schema)


@cache
def _sql(name: str) -> str:
    return Path(__file__).with_name(f"{name}.sql").read_text()
