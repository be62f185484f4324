"""The definition of the flows in plain Python with exact fractions: slow, and written independently of the SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
UTILITY = ZoneInfo("America/Los_Angeles")


@dataclass(frozen=True)
class Reading:
    meter_id: str
    district_id: str
    read_at: datetime
    litres: int


@dataclass(frozen=True)
class MeterHour:
    district_id: str
    litres: Fraction | None
    readings: int


@dataclass(frozen=True)
class DistrictHour:
    inlet: Fraction | None
    metered: Fraction | None
    loss: Fraction | None
    reporting: int
    known: int
    missing: int


@dataclass(frozen=True)
class Night:
    least: Fraction | None
    metered: Fraction | None
    loss: Fraction | None
    hours: int
    complete: bool


def meter_hours(readings: Iterable[Reading]) -> dict[tuple[str, datetime], MeterHour]:
    """By meter and hour. The flow between two neighboring readings is constant."""
    by_meter: dict[str, dict[datetime, Reading]] = defaultdict(dict)
    for reading in readings:
        by_meter[reading.meter_id].setdefault(reading.read_at, reading)
    hours = {}
    for meter_id, by_time in by_meter.items():
        ordered = [by_time[moment] for moment in sorted(by_time)]
        covered: dict[datetime, timedelta] = defaultdict(timedelta)
        litres: dict[datetime, Fraction] = defaultdict(Fraction)
        count: dict[datetime, int] = defaultdict(int)
        last: dict[datetime, Reading] = {}
        for reading in ordered:
            count[_hour(reading.read_at)] += 1
            last[_hour(reading.read_at)] = reading
        for before, after in pairwise(ordered):
            length = after.read_at - before.read_at
            if length > timedelta(hours=3) or after.litres < before.litres:
                continue
            hour = _hour(before.read_at)
            while hour < after.read_at:
                part = min(after.read_at, hour + HOUR) - max(before.read_at, hour)
                covered[hour] += part
                litres[hour] += (after.litres - before.litres) * Fraction(part // US, length // US)
                if hour not in last or last[hour].read_at < before.read_at:
                    last[hour] = before
                hour += HOUR
        for hour in {*covered, *count}:
            known = litres[hour] if covered[hour] == HOUR else None
            hours[meter_id, hour] = MeterHour(last[hour].district_id, known, count[hour])
    return hours


def district_hours(
    hours: dict[tuple[str, datetime], MeterHour], inlets: dict[str, str]
) -> dict[tuple[str, datetime], DistrictHour]:
    """By district and hour; `inlets`: district -> inlet meter."""
    inlet_meters = set(inlets.values())
    seen = defaultdict(set)
    at_hour = defaultdict(dict)
    for (meter_id, hour), flow in hours.items():
        at_hour[flow.district_id, hour][meter_id] = flow
        if flow.readings and meter_id not in inlet_meters:
            for days in range(8):
                seen[flow.district_id, hour.date() + days * DAY].add(meter_id)
    rows = {}
    for (district_id, hour), flows in at_hour.items():
        inlet = flows.get(inlets.get(district_id, ""))
        customers = [flow for meter_id, flow in flows.items() if meter_id not in inlet_meters]
        reporting = [flow.litres for flow in customers if flow.litres is not None]
        known = len(seen[district_id, hour.date()])
        metered = sum(reporting, Fraction()) if reporting else None
        enough = bool(reporting) and Fraction(len(reporting)) >= Fraction(95, 100) * known
        loss = inlet.litres - metered if inlet and inlet.litres is not None and enough else None
        missing = max(known - sum(min(flow.readings, 1) for flow in customers), 0)
        if district_id in inlets and not (inlet and inlet.readings):
            missing += 1
        rows[district_id, hour] = DistrictHour(
            inlet.litres if inlet else None, metered, loss, len(reporting), known, missing
        )
    return rows


def nights(rows: dict[tuple[str, datetime], DistrictHour]) -> dict[tuple[str, date], Night]:
    windows: dict[tuple[str, date], list[DistrictHour]] = defaultdict(list)
    for (district_id, hour), row in rows.items():
        local = hour.astimezone(UTILITY)
        if 1 <= local.hour <= 4:
            windows[district_id, local.date() - DAY].append(row)
    nights_of_districts = {}
    for (district_id, night), flows in windows.items():
        morning = datetime(night.year, night.month, night.day, tzinfo=UTILITY) + DAY
        window = (morning.replace(hour=5).timestamp() - morning.replace(hour=1).timestamp()) // 3600
        inlet = [row.inlet for row in flows if row.inlet is not None]
        lost = [row for row in flows if row.loss is not None]
        nights_of_districts[district_id, night] = Night(
            min(inlet, default=None),
            Fraction(sum(row.metered for row in lost), len(lost)) if lost else None,
            Fraction(sum(row.loss for row in lost), len(lost)) if lost else None,
            len(inlet),
            len(inlet) == window,
        )
    return nights_of_districts


US = timedelta(microseconds=1)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
