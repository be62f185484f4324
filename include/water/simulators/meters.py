"""The readings of the simulated meters as messages in order of arrival: some are late, repeated, missing or broken.

readings = Readings(Network(seed=1), start, until, faults=Faults(bad=2))
for key, value in readings:
    producer.send("meter.readings", key=key, value=value)
readings.counts["duplicates"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from include.streams.contracts.breaking import broken
from include.streams.kafka.producer import AcknowledgedProducer
from include.water.simulators.network import DAY_SECONDS, Network
from include.water.simulators.planted import EPOCH, Meter, random_for, seconds_of
from include.water.topics import METER_READINGS, MeterReading

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

Message = tuple[bytes, bytes | None]


@dataclass(frozen=True)
class Faults:
    """The faults between meter and topic: shares of all readings, and the number of broken messages.

    Attributes:
        missing: The share of single readings that never arrive.
        outages: The share of the days of all meters that lose some hours' readings.
        late: The share of readings that arrive up to `late_hours` late. All others arrive within two minutes, so that
            the readings of one meter stay in order and those of different meters mix.
        late_hours: The longest delay of a late reading.
        duplicates: The share of readings that arrive twice.
        bad: How many messages for each reason that a contract can give, spread over the whole time.
    """

    missing: float = 0.005
    outages: float = 0.004
    late: float = 0.01
    late_hours: float = 60.0
    duplicates: float = 0.003
    bad: int = 0


NO_FAULTS = Faults(missing=0, outages=0, late=0, duplicates=0)


class Readings:
    """The messages of one span, [start, until). A second iteration gives the same messages and restarts the counts.

    Each meter is read every `interval`, at a second of its own. `counts` has the messages so far: `readings` (without
    duplicates), `duplicates` and `bad`; how many of the readings were `late`; and how many are `missing`.

    Args:
        network: The simulated network.
        start: The beginning of the span.
        until: The end of the span.
        interval: The time between two readings of a meter; a divisor of a day.
        faults: What goes wrong; by default `Faults()`.

    Raises:
        ValueError: The interval or the span is invalid.
    """

    def __init__(
        self,
        network: Network,
        start: datetime,
        until: datetime,
        *,
        interval: timedelta = timedelta(hours=1),
        faults: Faults | None = None,
    ) -> None:
        seconds = int(interval.total_seconds())
        if seconds < 1 or DAY_SECONDS % seconds:
            raise ValueError(f"interval: {interval}; a day must be a multiple of it, and it must be whole seconds")
        if start >= until:
            raise ValueError(f"until: {until} is not after {start}")
        self.network, self.start, self.until, self.interval_seconds = network, start, until, seconds
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Message]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Message]]:
        """The same messages, in lists of about a day's messages."""
        import numpy as np

        self.counts.clear()
        first, last = seconds_of(self.start), seconds_of(self.until)
        waiting = (np.empty(0), np.empty(0, dtype=object))
        days = range(int(first // DAY_SECONDS), int(-(-last // DAY_SECONDS)))
        for day in days:
            arrivals, values = self._day(day, first, last)
            arrivals, values = np.concatenate([waiting[0], arrivals]), np.concatenate([waiting[1], values])
            order = np.argsort(arrivals, kind="stable")
            arrivals, values = arrivals[order], values[order]
            # Messages that arrive after the end of this day mix with those of the next day; after the last day, all are
            # sent.
            due = len(arrivals) if day == days[-1] else int(np.searchsorted(arrivals, (day + 1) * DAY_SECONDS))
            waiting = (arrivals[due:], values[due:])
            batch = [(value[25:33], value) for value in values[:due].tolist()]
            yield self._with_bad(batch, day - days[0], len(days))

    def _day(self, day: int, first: float, last: float) -> tuple[NDArray, NDArray]:
        """(arrivals, values) of the readings that are made on one day, including duplicates."""
        import numpy as np

        random = random_for(self.network.seed, 9, day, self.interval_seconds)
        meters = self.network.meters
        grid = day * DAY_SECONDS + np.arange(0, DAY_SECONDS, self.interval_seconds)
        # The second of the interval at which a meter is read: each meter has its own, which never changes.
        phases = random_for(self.network.seed, 10).integers(0, self.interval_seconds, len(meters))
        seconds = grid[None, :] + phases[:, None]
        counters = self.network.counters(day, seconds)
        within = (seconds >= first) & (seconds < last)
        kept = within & ~self._missing(random, seconds, day)
        late = random.random(seconds.shape) < self.faults.late
        delay = np.where(
            late,
            random.uniform(600, self.faults.late_hours * 3600, seconds.shape),
            random.uniform(1, 120, seconds.shape),
        )
        twice = random.random(seconds.shape) < self.faults.duplicates
        again = random.uniform(1, 7_200, seconds.shape)
        self.counts["readings"] += int(kept.sum())
        self.counts["missing"] += int((within & ~kept).sum())
        self.counts["late"] += int((kept & late).sum())
        self.counts["duplicates"] += int((kept & twice).sum())
        values = np.array(self._values(day, seconds[kept], counters[kept], np.nonzero(kept)[0]), dtype=object)
        arrivals = (seconds + delay)[kept]
        copies = twice[kept]
        return (
            np.concatenate([arrivals, arrivals[copies] + again[kept][copies]]),
            np.concatenate([values, values[copies]]),
        )

    def _missing(self, random: Generator, seconds: NDArray, day: int) -> NDArray:
        import numpy as np

        missing = random.random(seconds.shape) < self.faults.missing
        out = random.random(len(seconds)) < self.faults.outages
        begins = day * DAY_SECONDS + random.uniform(0, DAY_SECONDS, len(seconds))
        ends = begins + np.where(out, random.uniform(2, 12, len(seconds)) * 3600, 0)
        return missing | ((seconds >= begins[:, None]) & (seconds < ends[:, None]))

    def _values(self, day: int, seconds: NDArray, counters: NDArray, rows: NDArray) -> list[bytes]:
        """Serialize the readings as the contract does, but twenty times as fast; a test compares both."""
        import numpy as np

        times = np.datetime_as_string(np.datetime64(EPOCH.replace(tzinfo=None), "s") + seconds.astype("timedelta64[s]"))
        batteries = [_battery(meter, day) for meter in self.network.meters]
        heads = [
            b'{"version":1,"meter_id":"%s","district_id":"%s","read_at":"'
            % (m.meter_id.encode(), m.district_id.encode())
            for m in self.network.meters
        ]
        tails = [b',"battery_percent":%s}' % (b"null" if b is None else b"%d" % b) for b in batteries]
        return [
            b'%s%sZ","litres_total":%d%s' % (heads[row], time, litres, tails[row])
            for row, time, litres in zip(rows.tolist(), times.astype("S").tolist(), counters.tolist(), strict=True)
        ]

    def _with_bad(self, batch: list[Message], number: int, of: int) -> list[Message]:
        """Mix the day's share of the broken messages evenly into the batch."""
        first, last = self.faults.bad * number // of, self.faults.bad * (number + 1) // of
        if first == last:
            return batch
        meter = self.network.households[number % len(self.network.households)]
        planted: list[Message] = []
        for _ in range(first, last):
            event = reading(self.network, meter, self.start)
            key, _ = METER_READINGS.serialize(event)
            planted += [(key, value) for value in broken(METER_READINGS, event).values()]
        self.counts["bad"] += len(planted)
        mixed: list[Message] = []
        for n, message in enumerate(planted):
            mixed += [*batch[len(batch) * n // len(planted) : len(batch) * (n + 1) // len(planted)], message]
        return mixed


def send_history(
    days: float, interval: timedelta, *, seed: int, faults: Faults, make_producer: Callable[[], AcknowledgedProducer]
) -> Counter[str]:
    """Send the readings of the last days to the topic.

    The records' timestamps are the current time, because the topic's retention depends on them. A history that is sent
    again repeats the messages of the same hours: consumers drop them as duplicates.

    Args:
        days: How far back the history goes.
        interval: The time between two readings of a meter.
        seed: The seed of the network.
        faults: What goes wrong.
        make_producer: Creates the producer.

    Returns:
        The counts of `Readings`.

    Raises:
        DeliveryFailed: A message was not acknowledged.
    """
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    readings = Readings(Network(seed), until - timedelta(days=days), until, interval=interval, faults=faults)
    with make_producer() as producer:
        for batch in readings.batches():
            for key, value in batch:
                producer.send(METER_READINGS.name, key=key, value=value)
    return readings.counts


def reading(network: Network, meter: Meter, at: datetime) -> MeterReading:
    """The message of a meter at a moment."""
    return MeterReading(
        version=1,
        meter_id=meter.meter_id,
        district_id=meter.district_id,
        read_at=at,
        litres_total=network.counter(meter.meter_id, at),
        battery_percent=_battery(meter, int(seconds_of(at) // DAY_SECONDS)),
    )


def _battery(meter: Meter, day: int) -> int | None:
    """A battery lasts some years and is then replaced; an inlet meter has none."""
    return None if meter.kind == "inlet" else 100 - (int(meter.meter_id[2:]) * 37 + day // 20) % 85
