"""What `make bench-events` measures of the example: its own effect in Airflow, and the same in a plain consumer."""

from datetime import UTC, datetime

from benchmarks.lanes import Lane
from benchmarks.stand import Stand
from benchmarks.water.plain import PLAIN_TOPIC
from include.streams.contracts import Topic
from include.water.sites import DISTRICTS
from include.water.topics import LEAKS_DETECTED, LeakDetected


class AlertLane(Lane):
    """Leaks that become alerts, each with a message and a request in the outbox: the example's own effect."""

    def __init__(self, topic: Topic, prefix: str) -> None:
        self.topic, self.prefix = topic, prefix

    def send(self, it: Stand, numbers: list[str]) -> float:
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
        return min(it.send(self.topic.name, list(values), keys=list(keys)))

    def effects(self, it: Stand) -> int:
        return it.query("select count(*) from alerts where alert_id like :p", p=f"leak:{self.prefix}/%")[0][0]

    def done(self, it: Stand) -> int:
        # A request to a connection that is not defined waits a minute for a second look, and is done with.
        waiting = """
            select coalesce(max(number), 0) from
                (select count(*) as number from outbox
                 where state = 'pending' and coalesce(last_error, '') not like '% is not defined'
                 group by kind) as kinds
        """
        return self.effects(it) - it.query(waiting)[0][0]

    def numbers(self, it: Stand) -> list[str]:
        start = f"leak:{self.prefix}/"
        query = "select alert_id, revision from alerts where alert_id like :p"
        # Two revisions of one leak: its message was acted on twice.
        return [i.removeprefix(start) for i, revision in it.query(query, p=start + "%") for _ in range(revision)]


LANES: dict[str, Lane] = {
    "alerts": AlertLane(LEAKS_DETECTED, "bench"),
    "plain": AlertLane(PLAIN_TOPIC, "plain"),
}
