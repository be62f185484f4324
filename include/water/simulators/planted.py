"""Everything in the simulated network that follows from the seed: meters, leaks, running taps, replaced meters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from include.water.sites import DISTRICTS

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
LAST_DAY = 365 * 6  # days after EPOCH: the end of a network's time

# One in ten meters of each district is simulated: few enough for a laptop.
HOUSEHOLDS_SHARE = 10

# A leak begins every 4 days, in each district in turn: at any time some leaks are new, some old, some repaired.
LEAK_EVERY_DAYS = 4
# Days until a leak is repaired: so long that nearly every day has a burst that is worth an alert.
BURST_DAYS, SLOW_LEAK_DAYS = (10.0, 14.0), (6.0, 12.0)
SLOW_LEAK_GROWS_SECONDS = 5 * 86_400.0
SWAP_EVERY_DAYS = 6
# Mains and hydrants are flushed at night, every 23 days in each district: the water is unmetered, but not a leak.
FLUSH_EVERY_DAYS = 23


@dataclass(frozen=True)
class Meter:
    """A meter; `kind` is inlet, house, apartments or business.

    An inlet meter measures its district and has no customer.
    """

    meter_id: str
    district_id: str
    kind: str
    litres_a_day: float = 0.0
    customer_id: str | None = None


@dataclass(frozen=True)
class Flow:
    """Water that runs from `start` to `end`, in addition to customers' usual use.

    It grows to `litres_per_hour` within `grows_seconds`; a burst has its full flow at once.
    """

    start: datetime
    end: datetime
    litres_per_hour: float
    grows_seconds: float

    def litres(self, seconds: NDArray) -> NDArray:
        """The liters that have run out by these moments (seconds after EPOCH)."""
        import numpy as np

        first, last = seconds_of(self.start), seconds_of(self.end)
        running = np.clip(seconds, first, last) - first
        if self.grows_seconds:
            growing = np.minimum(running, self.grows_seconds)
            running = running - growing + growing**2 / (2 * self.grows_seconds)
        return self.litres_per_hour / 3600 * running


@dataclass(frozen=True)
class PlantedLeak(Flow):
    """A leak in the network, which no customer's meter measures; `kind` is burst or slow."""

    district_id: str
    kind: str


@dataclass(frozen=True)
class RunningTap(Flow):
    """A tap that does not close, behind a customer's meter."""

    meter_id: str


@dataclass(frozen=True)
class MeterSwap:
    """The meter was replaced: its counter starts again at 0."""

    meter_id: str
    at: datetime


def seconds_of(moment: datetime) -> float:
    return (moment - EPOCH).total_seconds()


def random_for(seed: int, *what: int) -> Generator:
    import numpy as np

    return np.random.default_rng([seed, *what])


def plan_meters(seed: int, share: int) -> Iterator[Meter]:
    """Each district's inlet meter, and one in `share` of its customers' meters."""
    random = random_for(seed, 1)
    customers = 0
    for number, district in enumerate(DISTRICTS.values()):
        yield Meter(district.inlet_meter_id, district.district_id, "inlet")
        for n in range(max(district.meters // share, 1)):
            kind = str(random.choice(["house", "apartments", "business"], p=[0.86, 0.08, 0.06]))
            mean = {"house": 380.0, "apartments": 4_500.0, "business": 2_800.0}[kind]
            customers += 1
            litres_a_day = round(float(mean * random.lognormal(-0.06, 0.35)), 1)
            yield Meter(
                f"M-{number:02d}{n:04d}", district.district_id, kind, litres_a_day, customer_id=f"C-{customers:06d}"
            )


def plan_leaks(seed: int) -> Iterator[PlantedLeak]:
    """The leaks, sorted by their beginning; never two at the same time in a district."""
    order = random_for(seed, 2).permutation(list(DISTRICTS))
    for number in range(LAST_DAY // LEAK_EVERY_DAYS):
        random = random_for(seed, 3, number)
        start = EPOCH + timedelta(days=LEAK_EVERY_DAYS * number, seconds=int(random.integers(2 * 86_400)))
        slow = (number + number // len(order)) % 2 == 1
        # The smallest slow leaks are hard to distinguish from a night in which more people were awake.
        size = random.lognormal(6.2, 0.7) if slow else max(random.lognormal(6.9, 0.6), 500)
        yield PlantedLeak(
            start,
            start + timedelta(seconds=int(86_400 * random.uniform(*(SLOW_LEAK_DAYS if slow else BURST_DAYS)))),
            round(float(min(size, 15_000)), 1),
            SLOW_LEAK_GROWS_SECONDS if slow else 0.0,
            district_id=str(order[number % len(order)]),
            kind="slow" if slow else "burst",
        )


def plan_running_taps(seed: int, households: Sequence[Meter]) -> Iterator[RunningTap]:
    """Taps that run for days, every few weeks, in some households."""
    last = EPOCH + timedelta(days=LAST_DAY)
    for number, meter in enumerate(households):
        random = random_for(seed, 4, number)
        if random.random() > 0.06:
            continue
        start = EPOCH + timedelta(seconds=int(random.integers(30 * 86_400)))
        while start < last:
            end = start + timedelta(seconds=int(86_400 * random.uniform(3, 12)))
            yield RunningTap(start, end, round(float(random.uniform(8, 40)), 1), 0.0, meter_id=meter.meter_id)
            start = end + timedelta(seconds=int(86_400 * random.uniform(10, 40)))


def plan_flushing(seed: int) -> Iterator[tuple[str, Flow]]:
    """(district, flow): some hours of a night each."""
    for number, district_id in enumerate(DISTRICTS):
        random = random_for(seed, 12, number)
        for day in range(int(random.integers(FLUSH_EVERY_DAYS)), LAST_DAY, FLUSH_EVERY_DAYS):
            start = EPOCH + timedelta(days=day, seconds=int(random.integers(6 * 3600, 12 * 3600)))
            end = start + timedelta(seconds=int(random.integers(1 * 3600, 5 * 3600)))
            yield district_id, Flow(start, end, round(float(random.uniform(300, 1_500)), 1), 0.0)


def plan_swaps(seed: int, households: Sequence[Meter]) -> Iterator[MeterSwap]:
    random = random_for(seed, 5)
    for number in range(LAST_DAY // SWAP_EVERY_DAYS):
        # During working hours.
        at = EPOCH + timedelta(days=SWAP_EVERY_DAYS * number, seconds=int(random.integers(16 * 3600, 24 * 3600)))
        yield MeterSwap(households[int(random.integers(len(households)))].meter_id, at)
