"""The lanes that `make bench-events` measures: how to send to each, and how to see its effects from outside."""

import json
import time
from abc import ABC, abstractmethod

from benchmarks.bench_stack import BenchStack
from benchmarks.consumers import LAG_TOPIC, MESSAGES_TOPIC, SHARED_STREAM_TOPIC, STOCK_TOPIC
from include.streams.contracts import Topic


class Lane(ABC):
    """One way from a message to its effect."""

    # Stop waiting for a lane that may lose messages after this time without a new effect.
    quiet_seconds: float | None = None
    # The Dag of a provider's trigger; it is active only while it is measured.
    dag_id: str | None = None

    @abstractmethod
    def send(self, bench: BenchStack, numbers: list[str]) -> float:
        """Send a message for each number; the time of the first, by the broker's clock."""

    @abstractmethod
    def effects(self, bench: BenchStack) -> int:
        """How many effects can be seen."""

    def done(self, bench: BenchStack) -> int:
        """How many messages are completely done: some lanes deliver something after the effect."""
        return self.effects(bench)

    @abstractmethod
    def numbers(self, bench: BenchStack) -> list[str]:
        """The message number of each effect; a number that occurs twice had its effect twice."""

    def single(self, bench: BenchStack, number: str) -> tuple[float, float] | None:
        """(when the message was sent, when its effect was seen); None when it was not seen within 20 s."""
        before = self.effects(bench)
        sent_at = self.send(bench, [number])
        seen, seen_at = bench.wait_for_count(lambda: self.effects(bench), before + 1, timeout=20)
        return (sent_at, seen_at) if seen > before else None

    def burst(self, bench: BenchStack, prefix: str, count: int) -> float:
        """Messages a second, from the first sent to the last done."""
        before = self.done(bench)
        started = self.send(bench, [f"{prefix}-{n}" for n in range(count)])
        done, ended = bench.wait_for_count(
            lambda: self.done(bench), before + count, timeout=300, quiet=self.quiet_seconds
        )
        return (done - before) / (ended - started)


class EffectLane(Lane):
    """A Dag whose effect is a row of `bench_effects`, started by messages of a topic of its own."""

    def __init__(self, topic: Topic, *, quiet_seconds: float | None = None, dag_id: str | None = None) -> None:
        self.name = topic.name
        self.quiet_seconds = quiet_seconds
        self.dag_id = dag_id

    def send(self, bench: BenchStack, numbers: list[str]) -> float:
        return min(bench.send(self.name, [json.dumps({"version": 1, "number": n}).encode() for n in numbers]))

    def effects(self, bench: BenchStack) -> int:
        return bench.effects(self.name)

    def numbers(self, bench: BenchStack) -> list[str]:
        return [n for (n,) in bench.query("select number from bench_effects where lane = :lane", lane=self.name)]

    def together(self, bench: BenchStack) -> set[str]:
        """Numbers of messages that were only in runs with several messages."""
        query = "select number from bench_effects where lane = :lane group by number having min(messages_of_run) > 1"
        return {number for (number,) in bench.query(query, lane=self.name)}


class FloorLane(EffectLane):
    """A Dag of one task with the same effect, triggered through the REST API."""

    def __init__(self) -> None:
        self.name = "floor"

    def send(self, bench: BenchStack, numbers: list[str]) -> float:
        started = time.time()
        for number in numbers:
            bench.request("POST", "/dags/bench_floor/dagRuns", {"logical_date": None, "conf": {"number": number}})
        return started


LANES: dict[str, Lane] = {
    "ours": EffectLane(LAG_TOPIC),
    "per message": EffectLane(MESSAGES_TOPIC),
    "stock": EffectLane(STOCK_TOPIC, quiet_seconds=30, dag_id="bench_stock"),
    "shared stream": EffectLane(SHARED_STREAM_TOPIC, quiet_seconds=30, dag_id="bench_shared_stream"),
    "floor": FloorLane(),
}
