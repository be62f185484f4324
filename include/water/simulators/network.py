"""The ground truth of the simulated meters: the flow at each meter at any moment.

The flow is a function of seed and time, without state. So a history that is sent today agrees with the live stream of
tomorrow, and two processes agree with each other. The inflow of a district is the sum of its customers' meters, the
network's background loss, and leaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from include.water.flows.definition import TIME_ZONE
from include.water.simulators.planted import (
    EPOCH,
    HOUSEHOLDS_SHARE,
    LAST_DAY,
    Flow,
    MeterSwap,
    PlantedLeak,
    RunningTap,
    plan_flushing,
    plan_leaks,
    plan_meters,
    plan_running_taps,
    plan_swaps,
    random_for,
    seconds_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

AnyFlow = TypeVar("AnyFlow", bound=Flow)

DAY_SECONDS = 86_400
BACKGROUND_LOSS_LPH = 2.5  # liters per hour for each meter: weeping joints and fittings, for which nobody digs
# Gardens are watered before dawn, in dry weeks, every second day: as large as a leak at night, but metered.
_WATERING_HOURS, _WATERING_PART = (1, 2, 3, 4), 130.0
_DRY_WEEKS, _GARDENS = 0.35, 0.35

# The parts of a day's use by hour of local time, on weekdays and weekends; lowest at night.
_WEEKDAY = (5, 3, 3, 3, 5, 20, 60, 95, 80, 55, 45, 45, 50, 45, 40, 40, 50, 65, 85, 90, 75, 55, 35, 15)
_WEEKEND = (8, 4, 3, 3, 4, 8, 20, 45, 80, 95, 90, 75, 70, 60, 50, 45, 50, 60, 75, 80, 70, 55, 40, 20)
# The probability that a household uses any water in the hour. So a flow that runs all night is a tap left open.
_AWAKE = (0.35, 0.2, 0.15, 0.15, 0.25, 0.6, *(0.95,) * 16, 0.9, 0.6)
_KEPT_DAYS = 3  # of computed days


class Network:
    """The districts' meters and their counters, from EPOCH on; the same seed gives the same network.

    Args:
        seed: The seed of the network.
        share: One in `share` of each district's customers' meters is simulated.
        leaks: Replaces the leaks that the seed plants.
    """

    def __init__(self, seed: int = 1, *, share: int = HOUSEHOLDS_SHARE, leaks: Iterable[PlantedLeak] | None = None):
        self.seed = seed
        self.meters = tuple(plan_meters(seed, share))
        self.households = tuple(meter for meter in self.meters if meter.customer_id)
        self._leaks = list(plan_leaks(seed) if leaks is None else leaks)
        self._taps = list(plan_running_taps(seed, self.households))
        self._swaps = list(plan_swaps(seed, self.households))
        self._position = {meter.meter_id: position for position, meter in enumerate(self.meters)}
        self._days: dict[int, NDArray] = {}
        self._used_before: dict[MeterSwap, float] = {}

    def planted_leaks(self, start: datetime | None = None, until: datetime | None = None) -> list[PlantedLeak]:
        """The leaks that run at some time in [start, until), sorted by their beginning."""
        return _within(self._leaks, start, until)

    def running_taps(self, start: datetime | None = None, until: datetime | None = None) -> list[RunningTap]:
        return _within(self._taps, start, until)

    def swaps(self, start: datetime, until: datetime) -> list[MeterSwap]:
        return [swap for swap in self._swaps if start <= swap.at < until]

    def counter(self, meter_id: str, at: datetime) -> int:
        """The meter's counter at a moment, in liters."""
        import numpy as np

        seconds = np.array([[seconds_of(at)]])
        return int(self.counters(int(seconds[0, 0] // DAY_SECONDS), seconds, [self._position[meter_id]])[0, 0])

    def counters(self, day: int, seconds: NDArray, positions: list[int] | None = None) -> NDArray:
        """The meters' counters in whole liters, at moments of one day.

        Args:
            day: Days since EPOCH.
            seconds: Seconds since EPOCH, all on that day; a row for each meter.
            positions: The meters, as positions in `self.meters`; by default all.

        Returns:
            The counters, in the shape of `seconds`.
        """
        import numpy as np

        rows = list(range(len(self.meters))) if positions is None else positions
        litres = self.used(day, seconds, rows)
        shown = litres + self._installed_with[rows][:, None]
        for row, position in enumerate(rows):
            for swap in self._swaps_of.get(position, ()):
                if (at := seconds_of(swap.at)) < (day + 1) * DAY_SECONDS:
                    shown[row] = np.where(seconds[row] >= at, litres[row] - self._litres_before(swap), shown[row])
        return np.floor(np.maximum(shown, 0)).astype(np.int64)

    def used(self, day: int, seconds: NDArray, positions: list[int]) -> NDArray:
        """Liters since EPOCH, like `counters`, but exact, and not reset when a meter is replaced."""
        import numpy as np

        within = seconds - day * DAY_SECONDS
        hour = np.clip(within.astype(np.int64) // 3600, 0, 23)
        knots = self._knots(day)[positions]
        low, high = np.take_along_axis(knots, hour, 1), np.take_along_axis(knots, hour + 1, 1)
        litres = low + (high - low) * (within / 3600 - hour)
        for row, position in enumerate(positions):
            for flow in self._flows.get(position, ()):
                if seconds_of(flow.start) < (day + 1) * DAY_SECONDS:
                    litres[row] += flow.litres(seconds[row])
        return litres

    def _knots(self, day: int) -> NDArray:
        """Liters since EPOCH at the day's 25 full hours (UTC), without planted flows: a row for each meter."""
        import numpy as np

        if day not in self._days:
            if not 0 <= day < LAST_DAY:
                raise ValueError(f"the simulated network goes from {EPOCH:%Y-%m-%d} for {LAST_DAY} days")
            midnight = EPOCH + timedelta(days=day)
            local = [(midnight + timedelta(hours=hour)).astimezone(TIME_ZONE) for hour in range(24)]
            parts = np.array([(_WEEKEND if at.weekday() > 4 else _WEEKDAY)[at.hour] for at in local], float)
            awake = np.array([_AWAKE[at.hour] for at in local])
            random = random_for(self.seed, 7, day)
            shape = (len(self.households), 24)
            weights = parts * random.lognormal(0, 0.5, shape)
            hours = [hour for hour, at in enumerate(local) if at.hour in _WATERING_HOURS]
            watering = np.ix_(self._watering(day), hours)
            asleep = (random.random(shape) > awake) & self._are_houses[:, None]
            weights[asleep] = 0
            weights[watering] = _WATERING_PART * random.lognormal(0, 0.4, shape)[watering]
            weights[:, 12] += 1e-9  # avoids a division by zero for a household that uses nothing all day
            shares = np.zeros((len(self.households), 25))
            np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1, out=shares[:, 1:])
            before, after = self._litres_until[day], self._litres_until[day + 1]
            used = before[:, None] + (after - before)[:, None] * shares
            knots = np.empty((len(self.meters), 25))
            knots[self._household_rows] = used
            for number, (inlet, rows) in enumerate(self._served.items()):
                # The loss follows the pressure: it varies within a day, and from day to day.
                within = np.append(0, np.cumsum(random.lognormal(0, 0.3, 24)))
                lost, then = self._lost_until[day, number], self._lost_until[day + 1, number]
                loss = lost + (then - lost) * within / within[-1]
                knots[inlet] = knots[rows].sum(axis=0) + BACKGROUND_LOSS_LPH * 24 * len(rows) * loss
            while len(self._days) >= _KEPT_DAYS:
                del self._days[next(iter(self._days))]
            self._days[day] = knots
        return self._days[day]

    def _litres_before(self, swap: MeterSwap) -> float:
        import numpy as np

        if swap not in self._used_before:
            seconds = np.array([[seconds_of(swap.at)]])
            day = int(seconds[0, 0] // DAY_SECONDS)
            self._used_before[swap] = float(self.used(day, seconds, [self._position[swap.meter_id]])[0, 0])
        return self._used_before[swap]

    @cached_property
    def _litres_until(self) -> NDArray:
        """By day and household: liters since EPOCH, without planted flows."""
        import numpy as np

        mean = np.array([meter.litres_a_day for meter in self.households])
        volumes = random_for(self.seed, 6).lognormal(-0.03, 0.25, (LAST_DAY, len(mean))) * mean
        return np.vstack([np.zeros(len(mean)), np.cumsum(volumes, axis=0)])

    @cached_property
    def _lost_until(self) -> NDArray:
        """By day and district: the background loss since EPOCH, in multiples of a day's mean loss."""
        import numpy as np

        days = random_for(self.seed, 13).lognormal(-0.02, 0.2, (LAST_DAY, len(self._served)))
        return np.vstack([np.zeros(len(self._served)), np.cumsum(days, axis=0)])

    def _watering(self, day: int) -> list[int]:
        """The households (as rows of `households`) that water their gardens in the night of this day."""
        dry = random_for(self.seed, 11, day // 7).random(len(self._served)) < _DRY_WEEKS
        districts = {self.meters[inlet].district_id: n for n, inlet in enumerate(self._served)}
        return [
            row
            for row, meter in enumerate(self.households)
            if self._gardens[row] and dry[n := districts[meter.district_id]] and (day + n) % 2 == 0
        ]

    @cached_property
    def _gardens(self) -> NDArray:
        return (random_for(self.seed, 14).random(len(self.households)) < _GARDENS) & self._are_houses

    @cached_property
    def _installed_with(self) -> NDArray:
        """The value of each counter at EPOCH."""
        return random_for(self.seed, 8).integers(0, 2_000_000, len(self.meters)).astype(float)

    @cached_property
    def _household_rows(self) -> list[int]:
        return [self._position[meter.meter_id] for meter in self.households]

    @cached_property
    def _are_houses(self) -> NDArray:
        import numpy as np

        return np.array([meter.kind == "house" for meter in self.households])

    @cached_property
    def _served(self) -> dict[int, list[int]]:
        """{row of an inlet meter: the rows of the meters behind it}."""
        served: dict[int, list[int]] = {}
        for meter in self.meters:
            if meter.kind == "inlet":
                inside = [m for m in self.households if m.district_id == meter.district_id]
                served[self._position[meter.meter_id]] = [self._position[m.meter_id] for m in inside]
        return served

    @cached_property
    def _flows(self) -> dict[int, list[Flow]]:
        """The planted flows that a meter measures; for an inlet meter, including those behind its customers' meters."""
        inlets = {meter.district_id: self._position[meter.meter_id] for meter in self.meters if meter.kind == "inlet"}
        flows: dict[int, list[Flow]] = {}
        unmetered = [(leak.district_id, leak) for leak in self._leaks] + list(plan_flushing(self.seed))
        for district_id, flow in unmetered:
            flows.setdefault(inlets[district_id], []).append(flow)
        for tap in self._taps:
            position = self._position[tap.meter_id]
            flows.setdefault(position, []).append(tap)
            flows.setdefault(inlets[self.meters[position].district_id], []).append(tap)
        return flows

    @cached_property
    def _swaps_of(self) -> dict[int, list[MeterSwap]]:
        """By row, in order of time: the last swap determines the counter."""
        swaps: dict[int, list[MeterSwap]] = {}
        for swap in self._swaps:
            swaps.setdefault(self._position[swap.meter_id], []).append(swap)
        return swaps


def _within(flows: list[AnyFlow], start: datetime | None, until: datetime | None) -> list[AnyFlow]:
    return [flow for flow in flows if (start is None or flow.end > start) and (until is None or flow.start < until)]
