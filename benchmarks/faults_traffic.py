"""The traffic of `make faults`: good messages, identified by number; bad messages, by topic, partition and offset."""

import contextlib
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import wire
from benchmarks.bench_stack import BenchStack
from benchmarks.consumers import FAULTS_MESSAGES_TOPIC, FAULTS_TOPICS, Probe
from benchmarks.odd_records import KINDS
from include.streams.contracts import Topic
from include.streams.contracts.breaking import broken

BURST = 250
BAD_IN_A_BURST = 3
ODD_IN_A_BURST = 2
# The messages of a burst that each start a run.
RUNS_IN_A_BURST = 8
# A broker that was killed is back well before.
SEND_SECONDS = 180
Coordinates = tuple[str, int, int]


@dataclass(frozen=True)
class Sent:
    """A good message: its broker timestamp, the current fault, and whether the fault concerned its partition."""

    at: float
    topic: str
    part: str
    fault: str
    is_concerned: bool


class Traffic:
    """Sends numbered messages in bursts, in a thread, and records the messages that the broker has acknowledged."""

    def __init__(self, bench: BenchStack) -> None:
        self.bench = bench
        self.good: dict[str, Sent] = {}
        self.bad: set[Coordinates] = set()
        self.odd: Counter[str] = Counter()
        # The part of the run, and its current or last fault.
        self.part, self.fault = "", "none"
        # Partitions that a fault concerns now.
        self.concerned: set[tuple[str, int]] = set()
        self._numbers = itertools.count()
        self._ways = itertools.cycle(range(100))
        self._topics = itertools.cycle(FAULTS_TOPICS)
        self._kinds = itertools.cycle(KINDS)
        self._bootstrap = bench.stack.endpoints()["kafka"]["bootstrap_servers"]

    @property
    def sent(self) -> int:
        return len(self.good) + len(self.bad)

    def burst(self, good: int, bad: int, runs: int = 0, odd: int = 0) -> None:
        """Send to one of the chunked topics; `runs` messages and a bad one to the other topic; odd records to any."""
        self._send(next(self._topics), good, bad)
        if runs:
            self._send(FAULTS_MESSAGES_TOPIC, runs, 1)
        for _ in range(odd):
            self._send_odd()

    def _send(self, topic: Topic, good: int, bad: int) -> None:
        numbers: list[str | None] = [f"{topic.name}-{next(self._numbers)}" for _ in range(good)]
        numbers += [None] * bad
        random.shuffle(numbers)
        left = len(numbers)

        def delivered(number: str | None):
            def done(error: Any, message: Any) -> None:
                nonlocal left
                if error is not None:
                    raise RuntimeError(f"not delivered: {error}")
                left -= 1
                place = (message.topic(), message.partition())
                if number is None:
                    self.bad.add((*place, message.offset()))
                else:
                    self._note(number, message.timestamp()[1] / 1000, place)

            return done

        for number in numbers:
            value = self._spoil(topic) if number is None else json.dumps({"version": 1, "number": number}).encode()
            self.bench.producer.produce(topic.name, value, on_delivery=delivered(number))
            self.bench.producer.poll(0)
        self.bench.producer.flush(SEND_SECONDS)
        if left:
            raise RuntimeError(f"{left} messages were not acknowledged within {SEND_SECONDS} s")

    def _send_odd(self) -> None:
        kind, number = next(self._kinds), f"odd-{next(self._numbers)}"
        # The lane of one run per message gets every kind, too.
        topic = random.choice((*FAULTS_TOPICS, FAULTS_MESSAGES_TOPIC))
        place = (topic.name, random.randrange(topic.partitions))
        deadline = time.monotonic() + SEND_SECONDS
        while True:
            at = time.time()
            try:
                # Without an answer, the record may have been written all the same. Its number counts once.
                offset = wire.produce(self._bootstrap, *place, kind.make(number))
                break
            except (OSError, wire.ProduceRefused):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        self.odd[kind.name] += 1
        if kind.is_good:
            self._note(number, at, place)
        else:
            self.bad.add((*place, offset))

    def _note(self, number: str, at: float, place: tuple[str, int]) -> None:
        self.good[number] = Sent(at, place[0], self.part, self.fault, place in self.concerned)

    def _spoil(self, topic: Topic) -> bytes:
        """A value that breaks the contract; each call in another way."""
        values = [value for value in broken(topic, Probe(version=1, number="bad")).values() if value]
        return values[next(self._ways) % len(values)]

    @contextlib.contextmanager
    def steady(self, size: int, pause: float, until: int | None = None) -> Iterator[threading.Thread]:
        """Send bursts of `size` in the background until the block ends, or until `total` messages are sent."""
        failures: list[BaseException] = []
        ended = threading.Event()

        def work() -> None:
            try:
                while not ended.is_set() and (until is None or self.sent < until):
                    good = size if until is None else min(size, until - self.sent)
                    runs = max(1, RUNS_IN_A_BURST * size // BURST)
                    self.burst(max(1, good - BAD_IN_A_BURST), BAD_IN_A_BURST, runs, ODD_IN_A_BURST)
                    ended.wait(pause)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield thread
            if until is not None:
                thread.join()
        finally:
            ended.set()
            thread.join()
        if failures:
            raise failures[0]

    def waits(self) -> dict[str, dict[str, float]]:
        """{part: {"fault, topic": the longest wait}} from the broker to the effect, in seconds.

        Only good messages whose partition no fault concerned; the fault is the last one before the message was sent.
        """
        longest_waits: dict[str, dict[str, float]] = {}
        acted_at = dict(
            self.bench.query("select number, extract(epoch from min(at))::float8 from bench_effects group by number")
        )
        for number, sent in self.good.items():
            if number in acted_at and not sent.is_concerned:
                longest, name = longest_waits.setdefault(sent.part, {}), f"{sent.fault}, {sent.topic}"
                longest[name] = round(max(longest.get(name, 0.0), acted_at[number] - sent.at), 2)
        return longest_waits
