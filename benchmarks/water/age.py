"""`make bench-age`: the cost of a lane after a year of data, compared with its cost on the first day.

Every figure is a ratio, aged / fresh, of medians that are measured in turn in one run. Old data are created by writing
metadata and by bulk inserts:

- a landing table with 60,000 snapshots (a week of commits, every ten seconds) and 1,000,000 files of one offset each,
  compared with one that has forty files and the snapshots of half an hour; the newest forty files are the same. Both
  are measured after a run of the Dag `expire_snapshots`, which runs every ten minutes (`expiry_seconds`: the time of
  its first run on all snapshots).
- a clean table with 20,000,000 rows, 5,000,000 of them on the day that the run touches, compared with one that holds a
  single run. The run has the newest 200,000 readings of a utility whose meters are read every quarter of an hour. The
  aged tables have the snapshots that `expire_snapshots` leaves. Commit (with the search for duplicates) and aggregation
  are tasks in processes of their own.
- the operational database with 5,000,000 inbox rows and 500,000 closed claims, and Airflow's database with 300,000 old
  keys and runs, compared with empty ones. One Airflow has one database: messages are sent before the rows are added,
  with the rows, and again when the rows are deleted.

look: three lookups of a sensor's trigger, the first of which finds a new commit. plan: the task that claims. claim: one
message, until it is handled. single message, run per message: from the broker to the effect, through Airflow.
"""

import argparse
import contextlib
import gc
import json
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks import aged_database
from benchmarks.bench_stack import bench_stack, fresh_stack, say
from benchmarks.results import print_result
from benchmarks.water import aged_lake
from benchmarks.water.aged_lake import Side, Utility
from benchmarks.water.task_processes import run_task

if TYPE_CHECKING:
    from include.streams.landing.xcom import ValidatedUnit
    from include.streams.validators.coordinates import LogRange

FRESH, AGED = Side("fresh"), Side("aged")
SIDES = (FRESH, AGED)
SERVICES = ("postgres", "kafka", "objectstore")
PARTS = ("landing", "clean", "claims", "messages")
CLAIMS_AT_ONCE = 15


class Figures:
    """Seconds by figure and side."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}

    def note(self, name: str, side: Side, seconds: float) -> None:
        self.seconds.setdefault(name, {}).setdefault(side.name, []).append(seconds)
        say(f"{name}, {side.name}: {seconds:.3f} s")

    def median(self, name: str, side: Side) -> float:
        return statistics.median(self.seconds[name][side.name])

    def ratios(self) -> dict[str, float]:
        by_name = {f"{name}_ratio": self.median(name, AGED) / self.median(name, FRESH) for name in self.seconds}
        return {name: round(ratio, 2) for name, ratio in {**by_name, "max_ratio": max(by_name.values())}.items()}


# Functions that are measured in processes of their own, by name.


def plan(side: str, name: str) -> int:
    """Plan a run of a lane; returns how many files its units have."""
    from include.streams.landing import tasks

    return sum(len(unit["files"]) for unit in tasks.plan(Side(side).lane(name), "run"))


def commit(side: str, results: "list[ValidatedUnit]", run_id: str) -> int:
    """Commit the run; returns how many of its rows are clean."""
    from include.streams.landing import tasks

    return tasks.commit(Side(side).lane("commit"), results, run_id)["clean"]


def aggregate(side: str, ranges: "list[LogRange]") -> int:
    """Compute the flows that the run's readings touch; returns the number of rows of meter hours."""
    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect
    from include.streams.landing.tables import clean_table
    from include.water.flows.aggregation import aggregate_tables

    readings = load_catalog().load_table(clean_table(Side(side).topic))
    with connect() as connection:
        return aggregate_tables(connection, readings, aged_lake.flow_tables(Side(side)), ranges)["meter_hours"]


def claim_messages(side: str, count: int) -> float:
    """Claim and handle single messages, one after the other; returns the median of the seconds."""
    from benchmarks.consumers import LAG, LAG_TOPIC, MESSAGES_TOPIC
    from include.streams.kafka.consumers import Consumer
    from include.streams.kafka.producer import AcknowledgedProducer
    from include.streams.kafka.tasks import claim_messages

    # A topic for each side, because a group's committed offsets are Kafka's.
    topic = LAG_TOPIC if side == FRESH.name else MESSAGES_TOPIC
    consumer = Consumer(name=f"age_{side}", topics=(topic,), effect=LAG.effect)
    seconds = []
    for _ in range(count):
        with AcknowledgedProducer() as producer:
            value = json.dumps({"version": 1, "number": uuid.uuid4().hex}).encode()
            producer.send(topic.name, key=b"k", value=value)
        began = time.perf_counter()
        claim_messages(consumer, uuid.uuid4().hex)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


# The parts


def landing_part(figures: Figures, options: argparse.Namespace) -> dict[str, float]:
    from include.streams.landing.readiness import Lane, check_readiness
    from include.streams.landing.tables import load_landing_table
    from include.streams.landing.upkeep import SNAPSHOTS_KEPT, expire_landing_snapshots

    say(f"landing tables: {options.files:,} old files, {options.snapshots:,} snapshots")
    begins = {
        # The snapshots of its first half hour are kept: as many as the other side has.
        FRESH: aged_lake.make_landing(FRESH, 0, min(options.snapshots, SNAPSHOTS_KEPT // aged_lake.COMMIT_INTERVAL)),
        AGED: aged_lake.make_landing(AGED, options.files, options.snapshots),
    }
    began = time.monotonic()
    expired = expire_landing_snapshots([AGED.topic])
    expiry = time.monotonic() - began
    say(f"snapshots expired in {expiry:.1f} s: {expired}")
    for n in range(-1, options.repeat):
        for side in SIDES:
            prepare_lane(side, f"plan-{n}", begins[side])
            done = run_task("benchmarks.water.age:plan", [(side.name, f"plan-{n}")])
            if done.results != [aged_lake.NEW_FILES * aged_lake.PARTITIONS]:
                raise RuntimeError(f"{side.name}: {done.results} files are planned")
            # The first call reads files that no process has read before; it is not counted.
            if n >= 0:
                figures.note("plan", side, done.work)
    ends = begins[AGED] + aged_lake.NEW_FILES * aged_lake.NEW_FILE_OFFSETS
    lanes = {}
    for side in SIDES:
        end = ends - begins[AGED] + begins[side]
        prepare_lane(side, "look", end)
        lane = side.lane("look")
        lanes[side] = Lane(lane.name, side.topic.name, "run", lane.conn_id, 300.0, 3600.0)
    # This process has built the tables; a triggerer has not. Without this, its garbage collector would visit a
    # million file entries during a lookup, and more often on the side with more manifests.
    gc.collect()
    gc.freeze()
    for n in range(-1, 3 * options.repeat):
        for side in SIDES:
            # The lane has claimed these offsets: a lookup finds nothing to do.
            table = load_landing_table(side.topic)
            began = time.perf_counter()
            aged_lake.append(table, [aged_lake.data_file(table, 0, begins[side], 1)])
            committed = time.perf_counter()
            for _ in range(3):
                check_readiness(lanes[side], verify_too=False)
            looked = time.perf_counter()
            if n >= 0:
                figures.note("look", side, looked - committed)
                figures.note("landing_commit", side, committed - began)
    return {"expiry_seconds": round(expiry, 1)}


def prepare_lane(side: Side, name: str, begins: int) -> None:
    """A lane that has claimed everything below this offset."""
    from sqlalchemy import insert

    from include.streams.kafka.claims import lock_consumer
    from include.streams.landing.tables import load_landing_table, topic_id
    from include.streams.operations.database import begin
    from include.streams.operations.tables import positions

    values = {"consumer": side.lane(name).name, "topic": side.topic.name, "next_offset": begins}
    of_topic = topic_id(load_landing_table(side.topic))
    rows = [{**values, "partition": number, "topic_id": of_topic} for number in range(aged_lake.PARTITIONS)]
    with begin() as connection:
        lock_consumer(connection, values["consumer"])
        connection.execute(insert(positions), rows)


def written_tables(side: Side) -> list[Any]:
    """The clean table and those of the flows."""
    from include.streams.lake.catalog import load_catalog
    from include.streams.landing.tables import clean_table

    return [load_catalog().load_table(clean_table(side.topic)), *aged_lake.flow_tables(side).values()]


class State:
    """The current state of a side's tables, to restore it after a run."""

    def __init__(self, side: Side) -> None:
        self._tables = written_tables(side)
        self._snapshots = [table.current_snapshot() for table in self._tables]

    def restore(self) -> None:
        for table, snapshot in zip(self._tables, self._snapshots, strict=True):
            if table.refresh().current_snapshot() != snapshot:
                assert snapshot is not None
                table.manage_snapshots().rollback_to_snapshot(snapshot.snapshot_id).commit()


def clean_part(figures: Figures, options: argparse.Namespace) -> dict[str, float]:
    if not options.with_landing:
        for side in SIDES:
            aged_lake.make_landing(side, 0, 1)
    utility = Utility(options.meters, options.days, options.readings)
    aged_lake.fill_clean(AGED, utility)
    aged_lake.fill_flows(AGED, utility)
    for table in written_tables(AGED):
        aged_lake.add_snapshots(table, options.kept_snapshots)
    # The hour before the run is aggregated on both sides.
    for side, ranges in ((FRESH, aged_lake.fill_first_run(FRESH, utility)), (AGED, aged_lake.last_ranges(utility))):
        aggregate(side.name, ranges)
    runs = {side: aged_lake.stage(side, utility, "run") for side in SIDES}
    states = {side: State(side) for side in SIDES}
    for n in range(-1, options.repeat):
        for side in SIDES:
            units, ranges = runs[side]
            committed = run_task("benchmarks.water.age:commit", [(side.name, units, "run")])
            if committed.results != [options.readings]:
                raise RuntimeError(f"{side.name}: {committed.results} clean rows of {options.readings} readings")
            aggregated = run_task("benchmarks.water.age:aggregate", [(side.name, ranges)])
            if n >= 0:
                figures.note("commit", side, committed.work)
                figures.note("aggregation", side, aggregated.work)
            states[side].restore()
    return {}


def claims_part(figures: Figures, options: argparse.Namespace) -> dict[str, float]:
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url

    from benchmarks.consumers import MESSAGES_TOPIC, TABLES, TOPICS
    from include.streams.kafka.offsets import GroupOffsets
    from include.streams.kafka.topics import create_topics
    from include.streams.operations.database import engine

    create_topics(TOPICS)
    variable = "AIRFLOW_CONN_OPERATIONS_DB"
    fresh = os.environ[variable]
    name = "operations_aged"
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"create database {name}"))
        url = engine().url.set(database=name)
    connections = {FRESH: fresh, AGED: _with_database(fresh, name)}
    for side in SIDES:
        with _environment(**{variable: connections[side]}):
            run_task("include.streams.operations.migrate:upgrade", [()])
    aged = create_engine(make_url(url))
    for database in (aged, engine()):
        with database.begin() as connection:
            connection.execute(text(TABLES))
    with GroupOffsets("age") as group:
        topic_id = group.fetch_topic_ids([MESSAGES_TOPIC.name])[MESSAGES_TOPIC.name]
    say(f"operational database: {options.inbox:,} inbox rows, {options.claims:,} closed claims")
    aged_database.age(
        aged,
        consumer="age_aged",
        topic=MESSAGES_TOPIC.name,
        topic_id=topic_id,
        inbox=options.inbox,
        claims=options.claims,
    )
    for n in range(-1, options.repeat):
        for side in SIDES:
            with _environment(**{variable: connections[side]}):
                done = run_task("benchmarks.water.age:claim_messages", [(side.name, CLAIMS_AT_ONCE)])
            if n >= 0:
                figures.note("claim", side, done.results[0])
    return {}


def _with_database(connection: str, name: str) -> str:
    if connection.startswith("{"):
        return json.dumps({**json.loads(connection), "schema": name})
    before, _, query = connection.partition("?")
    return before.rpartition("/")[0] + f"/{name}" + (f"?{query}" if query else "")


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ[name] for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.update(before)


def messages_part(figures: Figures, options: argparse.Namespace) -> dict[str, float]:
    from sqlalchemy import text

    from benchmarks.consumers import MESSAGES_TOPIC
    from benchmarks.history import add_metadata
    from benchmarks.lanes import LANES
    from include.streams.kafka.offsets import GroupOffsets

    lanes = {"ours": "single_message", "per message": "run_per_message"}
    with bench_stack() as bench:
        bench.wait_for_dags()
        for lane in lanes:
            LANES[lane].single(bench, f"warm-{lane}")

        def measure(side: Side, prefix: str) -> None:
            for lane in lanes:
                LANES[lane].single(bench, f"warm-{prefix}-{lane}")
            for n in range(options.singles):
                for lane, name in lanes.items():
                    time.sleep(1 + random.random())
                    times = LANES[lane].single(bench, f"{prefix}-{n}")
                    if times is None:
                        raise RuntimeError(f"{lane}: a message had no effect within 20 s")
                    figures.note(name, side, times[1] - times[0])
            for n in range(options.bursts):
                rate = LANES["per message"].burst(bench, f"{prefix}-burst-{n}", options.burst_size)
                figures.note("run_per_message_burst", side, 1 / rate)

        measure(FRESH, "before")
        say(f"Airflow's metadata: {options.history:,} old keys and runs; {options.inbox:,} inbox rows")
        with bench.metadata.begin() as connection:
            add_metadata(connection, options.history)
        name = MESSAGES_TOPIC.name
        with GroupOffsets("age") as group:
            topic_id = group.fetch_topic_ids([name])[name]
        values = {"consumer": "bench_messages", "topic": name, "topic_id": topic_id}
        aged_database.age(bench.operations, inbox=options.inbox, claims=options.claims, **values)
        _vacuum(bench.metadata)
        measure(AGED, "aged")
        aged_database.rejuvenate(bench.operations)
        with bench.metadata.begin() as connection:
            for statement in REJUVENATE:
                connection.execute(text(statement))
        _vacuum(bench.metadata)
        measure(FRESH, "after")
    return {}


# Deletes the rows that `add_metadata` has added; referring rows first.
REJUVENATE = (
    "delete from partitioned_asset_key_log where created_at < now() - interval '12 hours'",
    "delete from asset_partition_dag_run where created_at < now() - interval '12 hours'",
    "delete from asset_event where \"timestamp\" < now() - interval '12 hours'",
    "delete from task_instance where run_id like 'asset_triggered__old-%'",
    "delete from dag_run where run_id like 'asset_triggered__old-%'",
)


def _vacuum(engine: Any) -> None:
    from sqlalchemy import text

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum (analyze)"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.water.age", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, help_text in (
        ("files", 1_000_000, "old files of the landing table"),
        ("snapshots", 60_000, "snapshots of it"),
        ("meters", 52_084, "of the utility; 96 readings a day each"),
        ("days", 4, "of readings in the clean table"),
        ("kept-snapshots", 320, "of the clean table and of each table of flows: a week's, and all of half an hour"),
        ("readings", 200_000, "of the run that is measured"),
        ("inbox", 5_000_000, "old rows"),
        ("claims", 500_000, "closed ones"),
        ("history", 300_000, "old keys and runs of Airflow"),
        ("repeat", 5, "measurements of each task"),
        ("singles", 10, "single messages of each lane, three times"),
        ("bursts", 2, "of one run per message, three times"),
        ("burst-size", 80, "messages"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{help_text} (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: not among {', '.join(PARTS)}")
    figures, more = Figures(), {}
    options.with_landing = "landing" in parts
    if set(parts) - {"messages"}:
        with fresh_stack(SERVICES):
            from include.streams.operations.migrate import upgrade

            upgrade()
            for name, part in (("landing", landing_part), ("clean", clean_part), ("claims", claims_part)):
                if name in parts:
                    more |= part(figures, options)
    if "messages" in parts:
        more |= messages_part(figures, options)
    print(f"\n{'':24}{'fresh s':>10}{'aged s':>10}{'ratio':>8}")
    for name in figures.seconds:
        fresh, aged = figures.median(name, FRESH), figures.median(name, AGED)
        print(f"{name:24}{fresh:10.3f}{aged:10.3f}{aged / fresh:8.2f}")
    sizes = {name: getattr(options, name) for name in ("files", "snapshots", "readings", "inbox", "claims", "history")}
    print_result("bench-age", {**figures.ratios(), **more, **sizes, "clean_rows": options.meters * 96 * options.days})
    return 0


if __name__ == "__main__":
    sys.exit(main())
