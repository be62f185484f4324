"""The example's lanes in `make bench-events`: its own effect in Airflow, and the same effect in a plain consumer."""

from datetime import UTC, datetime

from benchmarks.bench_stack import BenchStack
from benchmarks.lanes import Lane
from benchmarks.water.plain import PLAIN_TOPIC
from include.streams.contracts import Topic
from include.water.sites import DISTRICTS
from include.water.topics import LEAKS_DETECTED, LeakDetected


class AlertLane(Lane):
    """Leaks that become alerts, each with a message and a request in the outbox: the example's own effect."""

    def __init__(self, topic: Topic, prefix: str) -> None:
        self.topic, self.prefix = topic, prefix

    def send(self, bench: BenchStack, numbers: list[str]) -> float:
        districts, now = list(DISTRICTS), datetime.now(UTC)
        leaks = [
            LeakDetected(
                version=1,
                leak_key=f"{self.prefix}/{number}",
                district_id=districts[n % len(districts)],
                night=now.date(),
                litres_per_hour=20_000,
                confidence=0.99,
                model_version="bench",
                detected_at=now,
            )
            for n, number in enumerate(numbers)
        ]
        keys, values = zip(*(LEAKS_DETECTED.serialize(leak) for leak in leaks), strict=True)
        return min(bench.send(self.topic.name, list(values), keys=list(keys)))

    def effects(self, bench: BenchStack) -> int:
        return bench.query("select count(*) from alerts where alert_id like :p", p=f"leak:{self.prefix}/%")[0][0]

    def done(self, bench: BenchStack) -> int:
        # A request to an undefined connection is looked up again after a minute, and then skipped.
        waiting = """
            select coalesce(max(number), 0) from
                (select count(*) as number from outbox
                 where state = 'pending' and coalesce(last_error, '') not like '% is not defined'
                 group by kind) as kinds
        """
        return self.effects(bench) - bench.query(waiting)[0][0]

    def numbers(self, bench: BenchStack) -> list[str]:
        start = f"leak:{self.prefix}/"
        query = "select alert_id, revision from alerts where alert_id like :p"
        # Two revisions of one leak mean that its message had its effect twice.
        return [i.removeprefix(start) for i, revision in bench.query(query, p=start + "%") for _ in range(revision)]


LANES: dict[str, Lane] = {
    "alerts": AlertLane(LEAKS_DETECTED, "bench"),
    "plain": AlertLane(PLAIN_TOPIC, "plain"),
}
