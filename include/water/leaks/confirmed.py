"""Leaks that crews have confirmed, as nights: the training data of the model.

A real utility knows them from the crews that dug. In the simulated network, they are the planted leaks that have run
for some days.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from include.water.leaks.scoring import Spell

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from include.water.simulators.network import Network

# The last night of a leak that still runs.
FOREVER = date.max - timedelta(days=2)
# The time from a leak's beginning until a simulated crew has dug it up.
FOUND_AFTER = timedelta(days=3)


def confirm(connection: Connection, spells: Iterable[Spell], source: str) -> int:
    """Record leaks as confirmed; a leak of the same district and first night is replaced.

    Args:
        connection: A transaction on the operational database.
        spells: The leaks, as districts and nights.
        source: Who confirmed them.

    Returns:
        How many leaks there are.
    """
    from sqlalchemy.dialects.postgresql import insert

    from include.water.tables import confirmed_leaks

    rows = [
        {
            "district_id": spell.district_id,
            "first_night": spell.first_night,
            "last_night": None if spell.last_night == FOREVER else spell.last_night,
            "source": source,
        }
        for spell in spells
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


def confirmed(connection: Connection) -> list[Spell]:
    from sqlalchemy import select

    from include.water.tables import confirmed_leaks as table

    rows = connection.execute(select(table.c.district_id, table.c.first_night, table.c.last_night))
    return sorted(Spell(district, first, last or FOREVER) for district, first, last in rows)


def planted_as_confirmed(network: Network, until: datetime, since: datetime | None = None) -> list[Spell]:
    """The leaks of the simulated network that a crew has found before `until`.

    Args:
        network: The simulated network.
        until: The current time.
        since: Only leaks that ran after this time.

    Returns:
        The leaks; one that still runs has the last night FOREVER.
    """
    spells: list[Spell] = []
    for leak in network.planted_leaks(since, until):
        spell = nights_of(leak.district_id, leak.start, leak.end)
        if spell and leak.start + FOUND_AFTER <= until:
            spells.append(spell if leak.end <= until else replace(spell, last_night=FOREVER))
    return spells


def confirm_planted(until: datetime, since: datetime, *, seed: int = 1) -> int:
    """Record the leaks of the simulated network, as the utility's repair system would.

    Args:
        until: As for `planted_as_confirmed`.
        since: As for `planted_as_confirmed`.
        seed: The seed of the simulated network.

    Returns:
        How many leaks were recorded.
    """
    from include.streams.operations.database import begin
    from include.water.simulators.network import Network

    with begin() as connection:
        return confirm(connection, planted_as_confirmed(Network(seed), until, since), "simulated repairs")


def nights_of(district_id: str, start: datetime, end: datetime) -> Spell | None:
    """The nights in whose window water ran between `start` and `end`; None if there is none."""
    from include.water.flows.definition import NIGHT_END_HOUR, NIGHT_FIRST_HOUR, TIME_ZONE

    def window(night: date) -> tuple[datetime, datetime]:
        morning = night + timedelta(days=1)
        return tuple(
            datetime.combine(morning, time(hour), TIME_ZONE).astimezone(UTC)
            for hour in (NIGHT_FIRST_HOUR, NIGHT_END_HOUR)
        )  # type: ignore[return-value]

    first = start.astimezone(TIME_ZONE).date() - timedelta(days=1)
    while window(first)[1] <= start:
        first += timedelta(days=1)
    last = end.astimezone(TIME_ZONE).date()
    while window(last)[0] >= end:
        last -= timedelta(days=1)
    return Spell(district_id, first, last) if first <= last else None
