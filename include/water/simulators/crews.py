"""Crews that dig up the planted leaks of the simulated network once they have run for some days."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from include.water.leaks.confirmed import FOREVER, confirm, nights_of
from include.water.leaks.scoring import LeakPeriod
from include.water.simulators.network import Network

# The time from a leak's beginning until a crew has dug it up.
FOUND_AFTER = timedelta(days=3)


def planted_as_confirmed(network: Network, until: datetime, since: datetime | None = None) -> list[LeakPeriod]:
    """The leaks of the simulated network that a crew has found before `until`.

    Args:
        network: The simulated network.
        until: The current time.
        since: Only leaks that ran after this time.

    Returns:
        The leaks; one that still runs has the last night FOREVER.
    """
    periods: list[LeakPeriod] = []
    for leak in network.planted_leaks(since, until):
        period = nights_of(leak.district_id, leak.start, leak.end)
        if period and leak.start + FOUND_AFTER <= until:
            periods.append(period if leak.end <= until else replace(period, last_night=FOREVER))
    return periods


def confirm_planted(until: datetime, since: datetime, *, seed: int = 1) -> int:
    """Record the leaks of the simulated network, as the utility's repair system would.

    Args:
        until: As for `planted_as_confirmed`.
        since: As for `planted_as_confirmed`.
        seed: The seed of the simulated network.

    Returns:
        How many leaks were recorded.
    """
    from include.streams import begin

    with begin() as connection:
        return confirm(connection, planted_as_confirmed(Network(seed), until, since), "simulated repairs")
