"""The standard lane under faults: readings land in object storage while processes are killed and services are down.

Some readings are late, some are sent twice, and some messages break their contract. Meters and producers have faults,
too: clocks that run ahead, a meter that sends every second, random dates, an event id with other content, junk,
transactions, timestamps that Kafka Connect refuses (`odd_readings.py`). Afterwards every reading must be in the clean
table once, and every bad message in the dead letters. The flow of every hour and night must equal the flow that is
computed at once from all sent readings. An alarm must have named each faulty meter and record.
"""

import argparse
import collections
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import Engine, create_engine, text

from benchmarks.bench_stack import BenchStack, bench_stack, say
from benchmarks.kills import kill, kill_program, kill_task, kill_task_at, task_processes
from benchmarks.results import print_result
from benchmarks.water.odd_readings import ALARMS, OddReadings
from include.streams.contracts import ContractViolation
from include.water.simulators.meters import Faults, Readings
from include.water.simulators.network import Network
from include.water.topics import METER_READINGS
from stack.stack import PROJECT

LANE = "aggregate_meter_readings"
DAG_IDS = {LANE, "watch_connectors", "maintain"}
SERVICES = ("postgres", "kafka", "objectstore", "connect")
AWAY_SECONDS = 30
# How long a fault waits for a task to hit: a run of the lane takes about half a minute, or minutes when its readings
# are of two thousand days.
HIT_SECONDS = 900
SECONDS_FOR_A_FAULT = 40


class Traffic:
    """Readings of some weeks, sent in their order of arrival, never faster than `allowed`."""

    def __init__(self, bench: BenchStack, messages: int) -> None:
        network = Network(seed=7)
        # Some readings are missing, so the span is a little longer than the number of readings requires.
        days = 1.01 * messages / (24 * len(network.meters))
        until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        faults = Faults(bad=max(1, messages // 20_000))
        self._readings = Readings(network, until - timedelta(days=days), until, faults=faults)
        self._it = bench
        self.total = messages
        self.sent: list[bytes | None] = []
        # The share of all messages that may have been sent by now.
        self.allowed = 0.0
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        waiting: list[tuple[bytes, bytes | None]] = []
        for message in self._readings:
            waiting.append(message)
            if len(waiting) == 1_000:
                self._flush(waiting)
                while len(self.sent) > self.allowed * self.total:
                    time.sleep(0.2)
        self._flush(waiting)

    def _flush(self, waiting: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in waiting:
            self._it.producer.produce(METER_READINGS.name, key=key, value=value)
            self._it.producer.poll(0)
        if left := self._it.producer.flush(120):
            raise RuntimeError(f"{left} readings were not acknowledged")
        self.sent += [value for _, value in waiting]
        waiting.clear()

    def finish(self) -> None:
        self.allowed = float("inf")
        self._thread.join()


class Lake:
    """The lane's tables, read from outside."""

    def __init__(self, bench: BenchStack) -> None:
        url = bench.stack.endpoints()["databases"]["landing_catalog"]
        self.engine: Engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), pool_pre_ping=True)

    def version(self, table: str) -> str | None:
        """A value that changes with every commit of the table."""
        namespace, name = table.split(".")
        query = text(
            "select metadata_location from iceberg_tables where table_namespace = :namespace and table_name = :name"
        )
        with self.engine.connect() as connection:
            return connection.scalar(query, {"namespace": namespace, "name": name})

    def rows(self, table: str, columns: str = "*") -> list[tuple]:
        from include.streams.lake import engine
        from include.streams.lake.catalog import load_catalog

        with engine.connect() as connection:
            relation = engine.scan(connection, load_catalog().load_table(table))
            return relation.project(columns).fetchall()


def kill_after_commit(bench: BenchStack, lake: Lake, task_id: str, table: str) -> bool:
    """Kill a task right after it has committed the table."""
    deadline = time.monotonic() + HIT_SECONDS
    while time.monotonic() < deadline:
        if not (pids := task_processes(bench, LANE, task_id)):
            time.sleep(0.02)
            continue
        before, ends = lake.version(table), time.monotonic() + 60
        while time.monotonic() < ends:
            if lake.version(table) != before:
                if kill(pids[:1]):
                    return True
                break
            time.sleep(0.003)
    return False


def faults(lake: Lake, odd: OddReadings) -> dict[str, Callable[[BenchStack], bool]]:
    def store_away(bench: BenchStack) -> bool:
        bench.stack.stop("objectstore")
        time.sleep(AWAY_SECONDS)
        bench.stack.start("objectstore")
        return True

    def database_restarted(bench: BenchStack) -> bool:
        bench.stack.restart("postgres")
        return True

    return {
        "connect": lambda bench: kill_program(bench, "connect"),
        "mapped task": lambda bench: kill_task(bench, LANE, "validate", seconds=HIT_SECONDS),
        "commit task before its commit": lambda bench: kill_task_at(
            bench, "iceberg_tables", LANE, "commit_clean", database=lake.engine, seconds=HIT_SECONDS
        ),
        "commit task after its commit": lambda bench: kill_after_commit(
            bench, lake, "commit_clean", "clean.meter_readings"
        ),
        "aggregating task between its writes": lambda bench: kill_after_commit(
            bench, lake, "aggregate", "water.meter_hours"
        ),
        "scheduler": lambda bench: kill_program(bench, "scheduler"),
        "object store away": store_away,
        "PostgreSQL restarted": database_restarted,
        **odd.faults(),
    }


def end_offsets(bench: BenchStack) -> int:
    """The sum of the ends of the topic's partitions: transactions take offsets too."""
    reader = Consumer({**bench.stack.endpoints()["kafka"]["client_config"], "group.id": "ends"})
    try:
        numbers = reader.list_topics(METER_READINGS.name, timeout=20).topics[METER_READINGS.name].partitions
        parts = [TopicPartition(METER_READINGS.name, number) for number in numbers]
        return sum(reader.get_watermark_offsets(part, timeout=20)[1] for part in parts)
    finally:
        reader.close()


def wait_until_done(bench: BenchStack, timeout: float) -> None:
    """Wait until all sent messages are claimed and every claim is closed, or until time is up."""
    ends = end_offsets(bench)
    deadline = time.monotonic() + timeout
    last = ""
    while time.monotonic() < deadline:
        try:
            ((claimed,),) = bench.query(
                "select coalesce(sum(next_offset), 0) from positions where consumer = :c", c=LANE
            )
            ((opened,),) = bench.query("select count(*) from claims where consumer = :c and closed_at is null", c=LANE)
        except Exception as error:
            say(f"cannot look: {type(error).__name__}")
        else:
            if claimed >= ends and not opened:
                return
            line = f"claimed {claimed} of {ends}, {opened} claims open, runs {bench.runs(LANE)}"
            if line != last:
                say(line)
                last = line
        time.sleep(5)


def expected(values: list[bytes | None]) -> tuple[dict[str, Any], list[bytes | None]]:
    """({event id: reading} of all sent readings, messages that break the contract or contradict a reading)."""
    good: dict[str, Any] = {}
    bad: list[bytes | None] = []
    for value in values:
        try:
            event = METER_READINGS.parse(value)
        except ContractViolation:
            bad.append(value)
        else:
            if good.setdefault(event.event_id, event) != event:
                bad.append(value)
    return good, bad


def flows_in_one_go(readings: list[Any]) -> dict[str, list[tuple]]:
    """The flow tables, computed from all readings at once."""
    import duckdb
    import pyarrow

    from include.water.flows import queries
    from include.water.flows.hours import HOUR, hours_in_reach, known_meter_days

    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        columns = {
            "meter_id": [r.meter_id for r in readings],
            "district_id": [r.district_id for r in readings],
            "read_at": [r.read_at for r in readings],
            "litres_total": [r.litres_total for r in readings],
        }
        connection.register("readings", pyarrow.table(columns))
        read = sorted({r.read_at.replace(minute=0, second=0, microsecond=0) for r in readings})
        hours = hours_in_reach(read)
        counted = {day + n * HOUR for day in known_meter_days(hours) for n in range(24)}
        queries.run_all(connection, hours, sorted({*hours, *counted}))
        return {name: connection.sql(f"from {name}").fetchall() for name in TABLES}


TABLES = ("meter_hours", "meter_days", "district_hours", "district_nights")


def count(bench: BenchStack, lake: Lake, sent: list[bytes | None]) -> dict[str, Any]:
    good, bad = expected(sent)
    clean = [event_id for (event_id,) in lake.rows("clean.meter_readings", "event_id")]
    wrong = {}
    for name, computed in flows_in_one_go(list(good.values())).items():
        stored = lake.rows(f"water.{name}")
        differing = collections.Counter(computed)
        differing.subtract(collections.Counter(stored))
        wrong[name] = sum(map(abs, differing.values()))
    records = bench.records(METER_READINGS.dead_letter_name, "dlq.offset")
    coordinates = {offset for offset, _ in records}
    kept = collections.Counter(value for _, value in records)
    ((letters,),) = bench.query("select count(*) from inbox where consumer = :c and outcome = 'dead_letter'", c=LANE)
    kinds = {kind for (kind,) in bench.query("select kind from alarms")}
    opened = bench.query("select concat_ws(' ', source, kind, nullif(key, '')) from alarms where closed_at is null")
    say(f"{sum(kept.values())} dead letters with {len(coordinates)} different offsets, {letters} on record")
    return {
        "sent": len(sent),
        "clean": len(clean),
        "dead_lettered": letters,
        "duplicates": len(sent) - len(bad) - len(good),
        "lost": len(set(good) - set(clean)) + len(set(bad) - set(kept)) + max(0, len(bad) - letters),
        "twice": len(clean) - len(set(clean)) + len(set(clean) - set(good)),
        "wrong_rows": wrong,
        "alarms_missing": [kind for kind in ALARMS if kind not in kinds],
        "alarms_open": sorted(alarm for (alarm,) in opened),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.water.faults_batch", description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000, help="to send under faults (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each fault hits (default: %(default)s)")
    options = parser.parse_args()
    kills: collections.Counter[str] = collections.Counter()
    environment = {"AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30"}
    with bench_stack(environment, dags=PROJECT / "dags", services=SERVICES) as bench:
        bench.run_only(DAG_IDS, PROJECT / "dags")
        lake = Lake(bench)
        traffic = Traffic(bench, options.messages)
        odd = OddReadings(bench)
        by_name = faults(lake, odd)
        for n in range(options.rounds):
            for m, (name, fault) in enumerate(by_name.items()):
                done = n * len(by_name) + m
                traffic.allowed = (done + 1) / (options.rounds * len(by_name))
                began = time.monotonic()
                kills[name] += fault(bench)
                say(f"round {n + 1}: {name} hit {kills[name]} times; {len(traffic.sent)} sent, runs {bench.runs(LANE)}")
                time.sleep(max(0.0, began + SECONDS_FOR_A_FAULT - time.monotonic()))
        traffic.finish()
        say("all is sent; waiting for the lane")
        wait_until_done(bench, timeout=1_800)
        result = {**count(bench, lake, [*traffic.sent, *odd.sent]), "kills": dict(kills), "runs": bench.runs(LANE)}
    for name, value in result.items():
        print(f"{name:20} {value}")
    print_result("faults-batch", result)
    hit = all(kills[name] >= options.rounds for name in by_name)
    right = result["lost"] == result["twice"] == 0 and not any(result["wrong_rows"].values())
    right &= not result["alarms_missing"]
    return 0 if right and hit else 1


if __name__ == "__main__":
    sys.exit(main())
