"""Which customer has which meter, and since when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class Entry:
    """A row of the register."""

    customer_id: str
    meter_id: str
    district_id: str
    persons: int
    uploaded_at: datetime


@dataclass(frozen=True)
class Tenure:
    """The customer of a meter. `since` is the first day that the customer may see; None: all days."""

    customer_id: str
    since: date | None = None


@dataclass(frozen=True)
class Customer:
    customer_id: str
    meter_id: str
    district_id: str
    household: str
    since: date | None


def read_register(connection: Connection) -> list[Entry]:
    from sqlalchemy import select

    from include.water.tables import register_customers as table

    columns = (table.c.customer_id, table.c.meter_id, table.c.district_id, table.c.persons, table.c.uploaded_at)
    return [Entry(*row) for row in connection.execute(select(*columns).order_by(table.c.customer_id))]


def assign(
    register: Iterable[Entry], tenures: Mapping[str, Tenure], today: date
) -> tuple[list[Customer], dict[str, Tenure]]:
    """Assign customers to meters.

    A customer who takes over another customer's meter sees the days from today on: earlier days belong to the other
    household.

    Args:
        register: The rows of the register.
        tenures: {meter: tenure} at the last publication; a meter stays in it after its customer has left.
        today: The local day.

    Returns:
        Today's customers, and {meter: the tenure of its last customer}.
    """
    newest: dict[str, Entry] = {}
    for entry in register:
        other = newest.get(entry.meter_id)
        # The register may still have a customer who has moved out. Of two customers with one meter, the later upload is
        # right.
        if other is None or (entry.uploaded_at, entry.customer_id) > (other.uploaded_at, other.customer_id):
            newest[entry.meter_id] = entry
    after = dict(tenures)
    customers = []
    for entry in sorted(newest.values(), key=lambda entry: entry.customer_id):
        before = tenures.get(entry.meter_id)
        if before is None or before.customer_id != entry.customer_id:
            after[entry.meter_id] = Tenure(entry.customer_id, today if before else None)
        since = after[entry.meter_id].since
        customers.append(
            Customer(entry.customer_id, entry.meter_id, entry.district_id, household(entry.persons), since)
        )
    return customers, after


def household(persons: int) -> str:
    """The size class of a household. Large households share a class, because each further person adds less usage."""
    if persons <= 2:
        return str(max(persons, 1))
    return "3-4" if persons <= 4 else "5+"
