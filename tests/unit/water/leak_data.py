"""Nights of the simulated network, with its planted leaks as confirmed leaks."""

from __future__ import annotations

from datetime import timedelta
from functools import cache

import pandas as pd

from include.water.leaks.nights import Nights, with_least_loss
from include.water.leaks.scoring import LeakPeriod
from include.water.simulators.crews import planted_as_confirmed
from include.water.simulators.network import Network
from include.water.simulators.planted import EPOCH
from tests.unit.water.exact_flows import district_hours, district_nights


@cache
def simulated(seed: int = 1, days: int = 120) -> tuple[Nights, tuple[LeakPeriod, ...]]:
    network = Network(seed)
    start = EPOCH + timedelta(days=200)
    until = start + timedelta(days=days)
    nights = district_nights(network, start, until).to_pandas()
    nights["night"] = pd.to_datetime(nights["night"])
    nights = with_least_loss(nights[nights["complete"]], district_hours(network, start, until).to_pandas())
    return Nights(nights, {"snapshots": {"a": "1"}}), tuple(planted_as_confirmed(network, until, start))
