"""Balances of days and districts from the hourly and nightly flows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from include.water import clock
from include.water.dashboards.report.data import Balance, Day, District, Night
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS
from include.water.local_days import hours_of, midnight
from include.water.sites import DISTRICTS

# The charts show SHOWN_DAYS; the balances cover the last PERIOD_DAYS of them.
SHOWN_DAYS = 28
PERIOD_DAYS = 7
# The least share of the previous period's known hours. With fewer, a change would mostly show which hours are known.
MIN_COVERAGE_BEFORE = 0.5


@dataclass(frozen=True)
class Hour:
    """A row of `water.district_hours`, volumes in liters; None: unknown."""

    district_id: str
    hour: datetime
    inlet: float | None
    loss: float | None
    meters: int
    missing: int


@dataclass(frozen=True)
class Flows:
    """The results from the hours and nights; see ReportData."""

    data_up_to: datetime | None = None
    period: tuple[date, date] | None = None
    period_ended: bool = True
    days: tuple[Day, ...] = ()
    districts: tuple[District, ...] = ()
    missing_readings: int | None = None
    # (district, its last night that could be judged).
    judged: tuple[tuple[str, date], ...] = ()


def read_flows(now: datetime, zone: ZoneInfo) -> Flows:
    """The flows of the last SHOWN_DAYS up to the clock's horizon; empty when the tables do not exist yet.

    Args:
        now: The time of the report.
        zone: The utility's time zone.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect, scan

    first = now.astimezone(zone).date() - timedelta(days=SHOWN_DAYS)
    since = midnight(first, zone).isoformat()
    columns = ("district_id", "hour", "inlet_litres", "loss_litres", "meters_known", "missing_readings")
    try:
        hours_table, nights_table = (load_catalog().load_table(name) for name in (DISTRICT_HOURS, DISTRICT_NIGHTS))
    except NoSuchTableError:
        return Flows()
    with connect() as connection:
        span = f"hour >= '{since}' and hour < '{clock.horizon(now).isoformat()}'"
        hours = scan(connection, hours_table, row_filter=span, columns=columns).fetchall()
        nights = scan(
            connection,
            nights_table,
            row_filter=f"night >= '{first}' and night <= '{clock.today(now)}'",
            columns=("district_id", "night", "night_loss_lph", "complete"),
        ).fetchall()
    by_district: dict[str, list[Night]] = defaultdict(list)
    for district_id, *night in sorted(nights, key=lambda row: (row[0], row[1])):
        by_district[district_id].append(Night(*night))
    return flows([Hour(*row) for row in hours], by_district, zone)


def flows(hours: Sequence[Hour], nights: dict[str, list[Night]], zone: ZoneInfo) -> Flows:
    """Sum the hours by day and district.

    Args:
        hours: The districts' hours.
        nights: {district: its nights}.
        zone: The utility's time zone.
    """
    known = [hour for hour in hours if hour.inlet is not None and hour.loss is not None]
    if not known:
        return Flows()
    up_to = max(hour.hour for hour in known) + timedelta(hours=1)
    by_day: dict[date, list[Hour]] = defaultdict(list)
    for hour in known:
        by_day[hour.hour.astimezone(zone).date()].append(hour)
    ended = [day for day in by_day if midnight(day + timedelta(days=1), zone) <= up_to]
    last = max(ended or by_day)
    first = max(last - timedelta(days=PERIOD_DAYS - 1), min(ended or by_day))
    length = last - first + timedelta(days=1)
    ids = sorted({hour.district_id for hour in hours}, key=_name)
    in_period = [hour for hour in hours if first <= hour.hour.astimezone(zone).date() <= last]
    return Flows(
        data_up_to=up_to,
        period=(first, last),
        period_ended=bool(ended),
        days=tuple(_day(day, by_day[day], len(ids), zone) for day in sorted(by_day)),
        districts=tuple(
            District(
                name,
                _name(name),
                _balance(name, by_day, first, last, zone),
                _before(_balance(name, by_day, first - length, first - timedelta(days=1), zone)),
                tuple(nights.get(name, ())),
            )
            for name in ids
        ),
        missing_readings=sum(hour.missing for hour in in_period),
        judged=tuple((name, judged) for name, of_district in nights.items() if (judged := _last_judged(of_district))),
    )


def _name(district_id: str) -> str:
    district = DISTRICTS.get(district_id)
    return district.name if district else district_id


def _day(day: date, hours: Sequence[Hour], districts: int, zone: ZoneInfo) -> Day:
    inlet, loss = _sums(hours)
    return Day(day, inlet, inlet - loss, len(hours), districts * hours_of(day, zone))


def _balance(
    district_id: str, by_day: dict[date, list[Hour]], first: date, last: date, zone: ZoneInfo
) -> Balance | None:
    """The average day of a district in [first, last]; None when no hour of these days is known."""
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    known = [hour for day in days for hour in by_day.get(day, ()) if hour.district_id == district_id]
    if not known:
        return None
    inlet, loss = _sums(known)
    per_day = 24 / len(known)
    expected = sum(hours_of(day, zone) for day in days)
    meters = max(hour.meters for hour in known)
    return Balance(inlet * per_day, (inlet - loss) * per_day, len(known), expected, meters)


def _before(balance: Balance | None) -> Balance | None:
    return balance if balance and balance.coverage >= MIN_COVERAGE_BEFORE else None


def _sums(hours: Sequence[Hour]) -> tuple[float, float]:
    return sum(hour.inlet or 0.0 for hour in hours), sum(hour.loss or 0.0 for hour in hours)


def _last_judged(nights: Sequence[Night]) -> date | None:
    return max((night.night for night in nights if night.complete and night.loss_lph is not None), default=None)
