"""The rows of the flow tables if every meter were read at every moment: the ground truth.

With complete readings, the pipeline's results differ by less than the liter that a counter shows.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from include.water.flows.definition import EXPECTED_READINGS, night_of
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, METER_HOURS, schema_of
from include.water.simulators.network import DAY_SECONDS, Network
from include.water.simulators.planted import EPOCH, seconds_of

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

HOUR = timedelta(hours=1)


def meter_hours(network: Network, start: datetime, until: datetime) -> pyarrow.Table:
    """The hours of every meter that are within [start, until)."""
    hours, litres = _flows(network, start, until)
    rows = [
        {
            "meter_id": meter.meter_id,
            "district_id": meter.district_id,
            "hour": hour,
            "litres": round(float(flow), 3),
            "readings": EXPECTED_READINGS,
            "expected_readings": EXPECTED_READINGS,
        }
        for meter, flows in zip(network.meters, litres, strict=True)
        for hour, flow in zip(hours, flows, strict=True)
    ]
    return _table(METER_HOURS, rows)


def district_hours(network: Network, start: datetime, until: datetime) -> pyarrow.Table:
    rows = [
        {
            "district_id": district_id,
            "hour": hour,
            "inlet_litres": round(inlet, 3),
            "metered_litres": round(metered, 3),
            "loss_litres": round(inlet - metered, 3),
            "meters_reporting": meters,
            "meters_known": meters,
            "missing_readings": 0,
        }
        for district_id, hour, inlet, metered, meters in _districts(network, start, until)
    ]
    return _table(DISTRICT_HOURS, rows)


def district_nights(network: Network, start: datetime, until: datetime) -> pyarrow.Table:
    """The nights that are completely within [start, until)."""
    windows: dict[tuple[str, object], list[tuple[float, float]]] = {}
    for district_id, hour, inlet, metered, _ in _districts(network, start, until):
        if night := night_of(hour):
            windows.setdefault((district_id, night), []).append((inlet, metered))
    whole = _whole_nights(start, until)
    rows = [
        {
            "district_id": district_id,
            "night": night,
            "min_night_flow_lph": round(min(inlet for inlet, _ in flows), 3),
            "metered_night_flow_lph": round(sum(metered for _, metered in flows) / len(flows), 3),
            "night_loss_lph": round(sum(inlet - metered for inlet, metered in flows) / len(flows), 3),
            "hours": len(flows),
            "complete": True,
        }
        for (district_id, night), flows in windows.items()
        if night in whole
    ]
    return _table(DISTRICT_NIGHTS, rows)


def _flows(network: Network, start: datetime, until: datetime) -> tuple[list[datetime], NDArray]:
    """The full hours in [start, until), and the liters of each meter (row) in each hour (column)."""
    import numpy as np

    first, last = -(-seconds_of(start) // 3600), seconds_of(until) // 3600
    hours = np.arange(first, last)
    rows = list(range(len(network.meters)))
    parts = []
    for day in np.unique(hours * 3600 // DAY_SECONDS).astype(int):
        edges = np.arange(day * 24, day * 24 + 25) * 3600.0
        used = network.used(int(day), np.tile(edges, (len(rows), 1)), rows)
        parts.append(np.diff(used, axis=1)[:, np.isin(edges[:-1] / 3600, hours)])
    return [EPOCH + int(hour) * HOUR for hour in hours], np.hstack(parts)


def _districts(network: Network, start: datetime, until: datetime):
    """(district, hour, inlet liters, metered liters, customers' meters), by district and hour."""
    hours, litres = _flows(network, start, until)
    inside: dict[str, list[int]] = {}
    for row, meter in enumerate(network.meters):
        if meter.kind != "inlet":
            inside.setdefault(meter.district_id, []).append(row)
    for row, meter in enumerate(network.meters):
        if meter.kind == "inlet":
            rows = inside[meter.district_id]
            metered = litres[rows].sum(axis=0)
            for n, hour in enumerate(hours):
                yield meter.district_id, hour, float(litres[row, n]), float(metered[n]), len(rows)


def _whole_nights(start: datetime, until: datetime) -> set[date]:
    nights = {night for n in range((until - start) // HOUR) if (night := night_of(start + n * HOUR))}
    # A span that begins or ends within a night's window covers only a part of that night.
    return nights - {night_of(start - HOUR), night_of(until)}


def _table(name: str, rows: list[dict]) -> pyarrow.Table:
    import pyarrow
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    schema = schema_to_pyarrow(schema_of(name), include_field_ids=False)
    return pyarrow.Table.from_pylist(rows, schema=schema)
