"""The nights in the lake, and the state of the data that they were read from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from include.water import clock
from include.water.leaks.frames import DataFrame

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger(__name__)

# More than a year, so that training covers every season. The network has changed since older nights.
KEPT_NIGHTS = 500


@dataclass(frozen=True)
class Nights:
    """Complete nights.

    Attributes:
        rows: `district_id`, `night` (datetime64), and the flows that `features` needs.
        source: The snapshot of each table, and {partition: the offset before which all readings are in the tables}.
        ahead: How many complete nights were left out because the clock has not reached them.
    """

    rows: DataFrame
    source: dict[str, Any]
    ahead: int = 0


def read_nights(now: datetime | None = None) -> Nights:
    """The complete nights of all districts, from KEPT_NIGHTS before the clock up to the clock.

    Args:
        now: The clock. Nights ahead of it come from meters whose clock is wrong, and are left out.
    """
    import pandas as pd

    from include.streams import begin
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect, scan
    from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, ensure_tables

    # Read before the tables, so that the tables contain all claims that are closed now.
    with begin() as connection:
        offsets = _offsets(connection)
    tables = ensure_tables(load_catalog())
    nights_table, hours_table = tables[DISTRICT_NIGHTS], tables[DISTRICT_HOURS]
    with connect() as connection:
        nights = scan(connection, nights_table, row_filter="complete = true").df()
        nights["night"] = pd.to_datetime(nights["night"])
        today = pd.Timestamp(clock.today(now))
        ahead = int((nights["night"] > today).sum())
        if ahead:
            log.warning("left out: %d complete nights after %s, which the clock has not reached", ahead, today.date())
        first = today - pd.Timedelta(days=KEPT_NIGHTS)
        nights = nights[(nights["night"] >= first) & (nights["night"] <= today)]
        hours = None
        if len(nights):
            since, until = (f"{day.date().isoformat()}T00:00:00+00:00" for day in (first, today + pd.Timedelta(days=2)))
            hours = scan(
                connection,
                hours_table,
                row_filter=f"hour >= '{since}' and hour < '{until}'",
                columns=("district_id", "hour", "loss_litres"),
            ).df()
    snapshots = {
        name: str(snapshot.snapshot_id)
        for name, table in ((DISTRICT_NIGHTS, nights_table), (DISTRICT_HOURS, hours_table))
        if (snapshot := table.current_snapshot())
    }
    return Nights(with_least_loss(nights, hours), {"snapshots": snapshots, "offsets": offsets}, ahead)


def with_least_loss(nights: DataFrame, hours: DataFrame | None) -> DataFrame:
    """Add `least_hourly_loss_lph` from the districts' hours, and drop nights whose flows are not all known.

    Args:
        nights: The complete nights.
        hours: `district_id`, `hour` (UTC) and `loss_litres`; None or empty: unknown.
    """
    import pandas as pd

    from include.water.flows.definition import night_of
    from include.water.leaks.features import FLOWS

    if hours is None or not len(hours):
        return nights.iloc[:0].assign(least_hourly_loss_lph=pd.Series(dtype=float))
    night_by_hour = {hour: night_of(hour.to_pydatetime()) for hour in hours["hour"].unique()}
    known: DataFrame = hours.assign(night=pd.to_datetime(hours["hour"].map(night_by_hour)))
    known = known.dropna(subset=["night", "loss_litres"])
    least: DataFrame = (
        known.groupby(["district_id", "night"])["loss_litres"].min().rename("least_hourly_loss_lph").reset_index()
    )
    nights = nights.assign(night=nights["night"].astype("datetime64[ns]"))
    least["night"] = least["night"].astype("datetime64[ns]")
    merged = nights.merge(least, on=["district_id", "night"]).dropna(subset=list(FLOWS))
    return merged.sort_values(["night", "district_id"], ignore_index=True)


def _offsets(connection: Connection) -> dict[str, int]:
    """{partition: the offset before which the consumer has finished every reading}."""
    from sqlalchemy import func, select

    from include.streams.operations.tables import claim_ranges, claims, positions
    from include.water.consumers import AGGREGATE_METER_READINGS

    name = AGGREGATE_METER_READINGS.name
    ends = dict(
        connection.execute(
            select(positions.c.partition, positions.c.next_offset).where(positions.c.consumer == name)
        ).all()
    )
    still_open = connection.execute(
        select(claim_ranges.c.partition, func.min(claim_ranges.c.start_offset))
        .join(claims, claims.c.id == claim_ranges.c.claim_id)
        .where(claims.c.consumer == name, claims.c.closed_at.is_(None))
        .group_by(claim_ranges.c.partition)
    )
    for partition, start in still_open:
        ends[partition] = min(start, ends.get(partition, start))
    return {str(partition): end for partition, end in sorted(ends.items())}
