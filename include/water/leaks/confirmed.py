"""Leaks that crews have confirmed, as nights: the training data of the model.

A real utility knows them from the crews that dug. Those of the simulated network: `simulators/crews.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from include.water.leaks.scoring import LeakPeriod

if TYPE_CHECKING:
    from sqlalchemy import Connection

# The last night of a leak that still runs.
FOREVER = date.max - timedelta(days=2)


def confirm(connection: Connection, periods: Iterable[LeakPeriod], source: str) -> int:
    """Record leaks as confirmed; a leak of the same district and first night is replaced.

    Args:
        connection: A transaction on the operational database.
        periods: The leaks, as districts and nights.
        source: Who confirmed them.

    Returns:
        How many leaks there are.
    """
    from sqlalchemy.dialects.postgresql import insert

    from include.water.tables import confirmed_leaks

    rows = [
        {
            "district_id": period.district_id,
            "first_night": period.first_night,
            "last_night": None if period.last_night == FOREVER else period.last_night,
            "source": source,
        }
        for period in periods
    ]
    if rows:
        statement = insert(confirmed_leaks).values(rows)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["district_id", "first_night"],
                set_={name: statement.excluded[name] for name in ("last_night", "source")},
            )
        )
    return len(rows)


def confirmed(connection: Connection) -> list[LeakPeriod]:
    """All confirmed leaks, sorted by district and first night; one that still runs has the last night FOREVER."""
    from sqlalchemy import select

    from include.water.tables import confirmed_leaks as table

    rows = connection.execute(select(table.c.district_id, table.c.first_night, table.c.last_night))
    return sorted(LeakPeriod(district, first, last or FOREVER) for district, first, last in rows)


def nights_of(district_id: str, start: datetime, end: datetime) -> LeakPeriod | None:
    """The nights in whose window water ran between `start` and `end`; None if there are none."""
    from include.water.flows.definition import TIME_ZONE
    from include.water.flows.hours import DAY, HOUR, window_of

    first = start.astimezone(TIME_ZONE).date() - DAY
    while window_of(first)[-1] + HOUR <= start:
        first += DAY
    last = end.astimezone(TIME_ZONE).date()
    while window_of(last)[0] >= end:
        last -= DAY
    return LeakPeriod(district_id, first, last) if first <= last else None
