"""What `make bench-events` measures, each with a way to send to it and a way to see from outside what was done."""

import json
import time
from abc import ABC, abstractmethod

from benchmarks.consumers import LAG_TOPIC, MESSAGES_TOPIC, SHARED_STREAM_TOPIC, STOCK_TOPIC
from benchmarks.stand import Stand
from include.streams.contracts import Topic


class Lane(ABC):
    """One way from a message to its effect."""

    # A lane that may strand messages is not waited for when nothing has come for so long.
    quiet_seconds: float | None = None
    # Of a rival: its Dag, which is active only while it is measured.
    dag_id: str | None = None

    @abstractmethod
    def send(self, it: Stand, numbers: list[str]) -> float:
        """Send a message for each number; the time of the first, by the broker's clock."""

    @abstractmethod
    def effects(self, it: Stand) -> int:
        """How many effects can be seen."""

    def done(self, it: Stand) -> int:
        """How many messages are wholly done; beyond its effect a message may have something to deliver."""
        return self.effects(it)

    @abstractmethod
    def numbers(self, it: Stand) -> list[str]:
        """The number of each effect; one that is there twice was done twice."""

    def single(self, it: Stand, number: str) -> tuple[float, float] | None:
        """When the message was sent and when its effect was seen; None when it was not within 20 s."""
        before = self.effects(it)
        sent_at = self.send(it, [number])
        seen, seen_at = it.wait_for_count(lambda: self.effects(it), before + 1, timeout=20)
        return (sent_at, seen_at) if seen > before else None

    def burst(self, it: Stand, prefix: str, count: int) -> float:
        """Messages a second, from the first sent to the last done."""
        before = self.done(it)
        started = self.send(it, [f"{prefix}-{n}" for n in range(count)])
        done, ended = it.wait_for_count(lambda: self.done(it), before + count, timeout=300, quiet=self.quiet_seconds)
        return (done - before) / (ended - started)


class EffectLane(Lane):
    """A Dag whose effect is a row of `bench_effects`, started by messages of a topic of its own."""

    def __init__(self, topic: Topic, *, quiet_seconds: float | None = None, dag_id: str | None = None) -> None:
        self.name = topic.name
        self.quiet_seconds = quiet_seconds
        self.dag_id = dag_id

    def send(self, it: Stand, numbers: list[str]) -> float:
        return min(it.send(self.name, [json.dumps({"version": 1, "number": n}).encode() for n in numbers]))

    def effects(self, it: Stand) -> int:
        return it.effects(self.name)

    def numbers(self, it: Stand) -> list[str]:
        return [n for (n,) in it.query("select number from bench_effects where lane = :lane", lane=self.name)]

    def together(self, it: Stand) -> set[str]:
        """Numbers that were only seen by runs which had several messages."""
        query = "select number from bench_effects where lane = :lane group by number having min(messages_of_run) > 1"
        return {number for (number,) in it.query(query, lane=self.name)}


class FloorLane(EffectLane):
    """A Dag of one task with the same effect, triggered through the REST API."""

    def __init__(self) -> None:
        self.name = "floor"

    def send(self, it: Stand, numbers: list[str]) -> float:
        started = time.time()
        for number in numbers:
            it.request("POST", "/dags/bench_floor/dagRuns", {"logical_date": None, "conf": {"number": number}})
        return started


LANES: dict[str, Lane] = {
    "ours": EffectLane(LAG_TOPIC),
    "per message": EffectLane(MESSAGES_TOPIC),
    "stock": EffectLane(STOCK_TOPIC, quiet_seconds=30, dag_id="bench_stock"),
    "shared stream": EffectLane(SHARED_STREAM_TOPIC, quiet_seconds=30, dag_id="bench_shared_stream"),
    "floor": FloorLane(),
}
