"""The data that people add to the meters' readings: confirmed leaks, and the register of customers as a file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from include.water.register.layout import INCOMING, Kind
from include.water.register.samples import bad_file, csv_file
from include.water.simulators.network import Network

# The average use of a person per day: converts the network's liters into the register's persons.
LITRES_A_PERSON = 140


def write_office_data(days: float, seed: int) -> None:
    """Confirm the leaks of the last days, and drop two files of the register: a good file, and one that is rejected.

    It is harmless to repeat.

    Args:
        days: How far back leaks are confirmed.
        seed: The seed of the network.

    Raises:
        Exception: What the operational database and the bucket raise.
    """
    from include.streams.lake.buckets import bucket
    from include.water.simulators.crews import confirm_planted

    now = datetime.now(UTC)
    confirm_planted(now, now - timedelta(days=days), seed=seed)
    bucket().write(f"{INCOMING}customers-{now:%Y-%m-%d}.csv", customers_file(Network(seed)), "text/csv")
    bucket().write(f"{INCOMING}sites-{now:%Y-%m-%d}.csv", bad_file(Kind.sites, seed=seed), "text/csv")


def customers_file(network: Network) -> bytes:
    """A CSV file of the network's households, as its owner would export it."""
    return csv_file(
        Kind.customers,
        (
            {
                "customer_id": meter.customer_id,
                "meter_id": meter.meter_id,
                "district_id": meter.district_id,
                "persons": min(max(round(meter.litres_a_day / LITRES_A_PERSON), 1), 8),
            }
            for meter in network.households
            if meter.kind == "house"
        ),
    )
