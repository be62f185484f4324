"""Messages of customers, meters and the leak detection; some of them break their contract."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random

from include.streams import Contract, Topic
from include.streams.contracts.breaking import broken
from include.streams.kafka.producer import AcknowledgedProducer, DeliveryFailed
from include.water.feeds.seismic import to_event
from include.water.simulators.customers import from_old_app, service_requests
from include.water.simulators.meters import Faults, reading, send_history
from include.water.simulators.network import Network
from include.water.simulators.quakes import Quakes
from include.water.sites import DISTRICTS
from include.water.topics import (
    LEAKS_DETECTED,
    METER_READINGS,
    SEISMIC_EVENTS,
    SERVICE_REQUESTS,
    LeakDetected,
    MeterReading,
)

log = logging.getLogger(__name__)

# Messages per second. There are far more leaks than in reality, to show the event lane. With this rate of readings,
# each meter is read about once a minute, which is just within the limit of the standard lane's suite.
RATES = {LEAKS_DETECTED.name: 5.0, SERVICE_REQUESTS.name: 0.5, METER_READINGS.name: 4.0}
# A restarted producer sends an event again: consumers must act on it once.
REPEAT_EVERY = 25
BAD_TOPICS = (LEAKS_DETECTED, SEISMIC_EVENTS, SERVICE_REQUESTS)
HISTORY_INTERVAL = timedelta(hours=1)
TICK_SECONDS = 0.05
REPORT_EVERY_SECONDS = 1.0


@dataclass
class Stream:
    """One kind of message at a rate. It has its own producer, so that acknowledgments are counted per stream."""

    topic: Topic
    rate: float
    events: Iterator[Contract]
    producer: AcknowledgedProducer
    sent: int = 0

    def send_due(self, elapsed_seconds: float) -> list[Contract]:
        """Send the messages that are due by now according to the rate; returns them."""
        due = [next(self.events) for _ in range(int(elapsed_seconds * self.rate) - self.sent)]
        for event in due:
            send(self.producer, self.topic, event)
        self.sent += len(due)
        return due


def send(producer: AcknowledgedProducer, topic: Topic, event: Contract) -> None:
    key, value = topic.serialize(event)
    producer.send(topic.name, key=key, value=value)


@dataclass
class Traffic:
    """Sends messages for some seconds, and keeps a report of what the broker has acknowledged.

    Attributes:
        seconds: How long to send.
        report: The report's file.
        rates: {topic: messages per second}.
        seed: The seed of the network and the messages.
        bad: How many messages for each reason to break a contract are sent to each of BAD_TOPICS, and in the history.
        history_days: Days of meter readings that are sent before everything else.
        stop: Set it to end early.
        make_producer: Creates a producer.
    """

    seconds: float
    report: Path
    rates: dict[str, float]
    seed: int = 1
    bad: int = 1
    history_days: float = 0
    stop: threading.Event = field(default_factory=threading.Event)
    make_producer: Callable[[], AcknowledgedProducer] = AcknowledgedProducer
    # Counts of the history's messages.
    history: Counter[str] = field(default_factory=Counter)

    def run(self) -> bool:
        """Send until the time is over or `stop` is set.

        The report is replaced every second, and once more at the end with "finished": true.

        Returns:
            False if the broker did not acknowledge everything.
        """
        streams = [
            Stream(topic, self.rates[topic.name], events(Random(f"{self.seed}/{topic.name}")), self.make_producer())
            for topic, events in (
                (LEAKS_DETECTED, leaks),
                (SERVICE_REQUESTS, service_requests),
                (METER_READINGS, partial(meter_readings, seed=self.seed)),
            )
            if self.rates.get(topic.name)
        ]
        if self.history_days:
            faults = Faults(bad=self.bad)
            self.history = send_history(
                self.history_days, HISTORY_INTERVAL, seed=self.seed, faults=faults, make_producer=self.make_producer
            )
        repeats = self.make_producer()
        planters = {topic.name: self.make_producer() for topic in BAD_TOPICS}
        producers = [*(stream.producer for stream in streams), repeats, *planters.values()]
        planned = list(self._planned())
        leaks_sent = 0
        start = reported = time.monotonic()
        while (elapsed := time.monotonic() - start) < self.seconds and not self.stop.wait(TICK_SECONDS):
            for stream in streams:
                for event in stream.send_due(elapsed):
                    if stream.topic is LEAKS_DETECTED:
                        leaks_sent += 1
                        if leaks_sent % REPEAT_EVERY == 0:
                            send(repeats, LEAKS_DETECTED, event)
            while planned and planned[0][0] <= elapsed:
                _, topic, key, value = planned.pop(0)
                planters[topic.name].send(topic.name, key=key, value=value)
            if time.monotonic() - reported > REPORT_EVERY_SECONDS:
                self._write(streams, repeats, planters, finished=False)
                reported = time.monotonic()
        complete = all([_flush(producer) for producer in producers])
        self._write(streams, repeats, planters, finished=True)
        return complete

    def _planned(self) -> Iterator[tuple[float, Topic, bytes, bytes | None]]:
        """(second, topic, key, value) of each bad message, spread over the first half of the time."""
        messages: list[tuple[Topic, bytes, bytes | None]] = []
        for _ in range(self.bad):
            request = next(service_requests(Random(self.seed)))
            for topic, event in (
                (LEAKS_DETECTED, next(leaks(Random(self.seed)))),
                (SEISMIC_EVENTS, _quake()),
                (SERVICE_REQUESTS, request),
            ):
                key, _ = topic.serialize(event)
                messages += [(topic, key, value) for value in broken(topic, event).values()]
            messages.append((SERVICE_REQUESTS, SERVICE_REQUESTS.serialize(request)[0], from_old_app(request)))
        for number, (topic, key, value) in enumerate(messages):
            yield self.seconds / 2 * number / len(messages), topic, key, value

    def _write(
        self,
        streams: list[Stream],
        repeats: AcknowledgedProducer,
        planters: dict[str, AcknowledgedProducer],
        *,
        finished: bool,
    ) -> None:
        sent = {stream.topic.name: stream.producer.acknowledged for stream in streams}
        if LEAKS_DETECTED.name in sent:
            sent[LEAKS_DETECTED.name] += repeats.acknowledged
        planted = {name: producer.acknowledged for name, producer in planters.items()}
        if self.history:
            readings = self.history["readings"] + self.history["duplicates"]
            sent[METER_READINGS.name] = sent.get(METER_READINGS.name, 0) + readings
            planted[METER_READINGS.name] = self.history["bad"]
        document = {
            "sent": sent,
            "planted_bad": planted,
            "repeated": {LEAKS_DETECTED.name: repeats.acknowledged},  # included in "sent"
            "finished": finished,
        }
        unfinished = self.report.with_name(f".{self.report.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(document, indent=2) + "\n")
        unfinished.replace(self.report)  # a reader never sees half a report


def run(seconds: float, report: Path, rates: dict[str, float], *, seed: int, bad: int, history_days: float = 0) -> int:
    """Send until the time is over, or until SIGTERM or SIGINT. For the parameters see `Traffic`.

    Returns:
        The exit code.
    """
    traffic = Traffic(seconds, report, rates, seed=seed, bad=bad, history_days=history_days)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: traffic.stop.set())
    return 0 if traffic.run() else 1


def leaks(random: Random) -> Iterator[LeakDetected]:
    """Leaks of last night, each with a key that no earlier run has used."""
    number = time.time_ns() // 1_000_000
    night = (datetime.now(UTC) - timedelta(days=1)).date()
    while True:
        number += 1
        district = random.choice(list(DISTRICTS))
        yield LeakDetected(
            version=1,
            leak_key=LeakDetected.key_for(district, night, number),
            district_id=district,
            night=night,
            litres_per_hour=round(min(random.lognormvariate(6.2, 1.3), 1_000_000), 1),
            confidence=round(random.betavariate(5, 2), 3),
            model_version="simulated",
            detected_at=datetime.now(UTC),
        )


def meter_readings(random: Random, seed: int = 1) -> Iterator[MeterReading]:
    """Current readings of the simulated network's meters, one meter after the other; they continue a sent history."""
    network = Network(seed)
    meters = list(network.meters)
    random.shuffle(meters)
    # The first reading is slow. Compute it now, before messages are due.
    reading(network, meters[0], datetime.now(UTC))
    return (reading(network, meter, datetime.now(UTC)) for meter in cycle(meters))


def _quake() -> Contract:
    now = datetime.now(UTC)
    quakes = Quakes(seed=0, since=now - timedelta(hours=1))
    return to_event(quakes.features(now, timedelta(hours=1))[0])


def _flush(producer: AcknowledgedProducer) -> bool:
    with suppress(DeliveryFailed):
        producer.flush()
        return True
    return False
