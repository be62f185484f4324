"""The standard lane, measured: landing, the data tasks beside bare DuckDB over the same files, and freshness.

Each data task runs in a process of its own, as in Airflow, its imports included; what Airflow adds between them is
reported apart. DuckDB does the same work in one process: reads the landed files, parses, drops duplicates, writes clean
rows and the hourly flows as Parquet to the same store; without claims, contracts, dead letters or commits.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from benchmarks.freshness import measure_freshness
from benchmarks.stand import FOLDER, say
from include.water.consumers import AGGREGATE_METER_READINGS as CONSUMER
from include.water.simulators.meters import NO_FAULTS, Readings
from include.water.simulators.network import Network
from include.water.topics import METER_READINGS
from stack import Stack

SERVICES = ("postgres", "kafka", "objectstore", "connect")
UNTIL = datetime(2026, 6, 1, tzinfo=UTC)
# As many mapped tasks at once as the machine has cores.
TASKS_AT_ONCE = 2


class Done(NamedTuple):
    """What a task returned, how long it took and how much memory its process had at most."""

    result: Any
    seconds: float
    peak_mb: float


def run_task(name: str, *arguments: Any) -> Done:
    """Call "package.module:function" in a fresh process."""
    # Not fork: a task's process has imported nothing of ours.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (name, *arguments))


def _timed(name: str, *arguments: Any) -> Done:
    began = time.perf_counter()
    result = resolve_name(name)(*arguments)
    seconds = time.perf_counter() - began
    return Done(result, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def land(count: int, until: datetime) -> float:
    """Send readings and wait until all are in the landing table; records a second, from the first one sent."""
    from include.kafka.producer import AcknowledgedProducer
    from include.landing.landed import Landed
    from include.landing.tables import load_landing_table

    network = Network(seed=3)
    interval = timedelta(minutes=30)
    span = interval * -(-count // len(network.meters))
    messages = []
    for message in Readings(network, until - span, until, interval=interval, faults=NO_FAULTS):
        messages.append(message)
        if len(messages) == count:
            break

    def landed() -> int:
        found = Landed(load_landing_table(METER_READINGS))
        return sum(file.records for p in found.partitions for file in found.files(p, 0))

    before, began = landed(), time.monotonic()
    with AcknowledgedProducer() as producer:
        for key, value in messages:
            producer.send(METER_READINGS.name, key=key, value=value)
    while (now := landed() - before) < len(messages):
        if time.monotonic() - began > 600:
            raise TimeoutError(f"{now} of {len(messages)} readings have landed after ten minutes")
        time.sleep(0.2)
    return len(messages) / (time.monotonic() - began)


def data_tasks(run_id: str) -> dict[str, Any]:
    """One run of the lane, task by task: {"seconds": {task: ...}, "peak_mb", "clean", "files": the landed ones}."""
    seconds: dict[str, float] = {}
    peaks: list[float] = []

    def task(name: str, *arguments: Any) -> Any:
        done = run_task(name, *arguments)
        label = name.rpartition(":")[2]
        seconds[label] = seconds.get(label, 0.0) + done.seconds
        peaks.append(done.peak_mb)
        return done.result

    units = task("include.landing.tasks:plan", CONSUMER, run_id)
    began = time.perf_counter()
    with ThreadPoolExecutor(TASKS_AT_ONCE) as threads:
        mapped = list(
            threads.map(lambda unit: run_task("include.landing.tasks:validate", CONSUMER, unit, run_id), units)
        )
    seconds["validate"] = time.perf_counter() - began
    peaks += [done.peak_mb for done in mapped]
    summary = task("include.water.flows.replaced:commit", CONSUMER, [done.result for done in mapped], run_id)
    task("include.landing.tasks:check", CONSUMER, summary)
    task("include.water.flows.aggregation:aggregate", summary)
    task("include.landing.tasks:close", CONSUMER, summary, run_id)
    files = sorted({file["path"] for unit in units for file in unit["files"]})
    return {
        "seconds": seconds,
        "peak_mb": max(peaks),
        "clean": summary["clean"],
        "units": len(units),
        "files": files,
    }


def bare_duckdb(files: list[str], target: str) -> int:
    """The same rows and flows, by DuckDB alone; how many rows were clean."""
    from include.lake import engine
    from include.water.flows import queries
    from include.water.flows.hours import reached

    paths = ", ".join(engine.literal(path) for path in files)
    with engine.connect() as connection:
        connection.execute(
            f"""
            create table parsed as
            select distinct on (meter_id, read_at) * from (
                select partition, "offset", timestamp, unnest(from_json(value, '{{
                    "version": "INTEGER", "meter_id": "VARCHAR", "district_id": "VARCHAR", "read_at": "TIMESTAMPTZ",
                    "litres_total": "BIGINT", "battery_percent": "INTEGER"}}'))
                from read_parquet([{paths}])
            )
            """
        )
        connection.execute(
            "create view readings as select meter_id, district_id, read_at, litres_total from parsed "
            "where version = 1 and litres_total between 0 and 1000000000000 and meter_id is not null"
        )
        connection.execute(f"copy parsed to '{target}/clean.parquet' (format parquet, compression zstd)")
        hours = [
            hour for (hour,) in connection.execute("select distinct date_trunc('hour', read_at) from parsed").fetchall()
        ]
        for name, parameters in (
            (queries.METER_HOURS, queries.for_meter_hours(reached(hours))),
            (queries.DISTRICT_HOURS, queries.for_district_hours(reached(hours))),
        ):
            rows = queries.run(connection, name, parameters)
            connection.register(name, rows)
            connection.execute(f"copy {name} to '{target}/{name}.parquet' (format parquet, compression zstd)")
        return connection.execute("select count(*) from readings").fetchall()[0][0]


def measure(count: int, until: datetime, name: str) -> dict[str, Any]:
    say(f"{name}: sending {count:,} readings")
    rate = land(count, until)
    say(f"{name}: landed, {rate:,.0f} records a second; running the data tasks")
    # Without the sink's own work beside it.
    time.sleep(3)
    ours = data_tasks(f"benchmark {name}")
    total = sum(ours["seconds"].values())
    say(f"{name}: {ours['units']} units, {len(ours['files'])} files, {total:.1f} s: " + _text(ours["seconds"]))
    bare = run_task("benchmarks.batch:bare_duckdb", ours["files"], f"gs://landing/benchmark/{name}")
    say(f"{name}: bare DuckDB {bare.seconds:.1f} s, {bare.peak_mb:.0f} MB")
    if not ours["clean"] == bare.result == count:
        raise RuntimeError(f"{count} sent, {ours['clean']} clean rows of ours, {bare.result} of DuckDB")
    return {"landing": rate, "ours": total, "bare": bare.seconds, **ours}


def _text(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--readings", type=int, default=1_000_000, help="of the large run (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=30, help="readings that freshness is told by; 0: not measured")
    options = parser.parse_args()
    folder = Path(FOLDER)
    Stack(folder).remove()
    stack = Stack(folder, services=SERVICES, report=say)
    try:
        stack.up()
        os.environ.update(stack.environment())
        from include.water.services import prepare

        for line in prepare():
            say(line)
        # The first of everything is slow: topics, connector, caches.
        measure(5_000, UNTIL - timedelta(days=400), "warm-up")
        small = measure(options.readings // 10, UNTIL - timedelta(days=200), "small")
        large = measure(options.readings, UNTIL, "large")
        fresh = measure_freshness(stack, options.probes) if options.probes else {}
    finally:
        stack.remove()
    result = {
        "ratio_vs_duckdb": round(large["bare"] / large["ours"], 2),
        "growth": round(large["ours"] / small["ours"], 2),
        "landing_records_per_s": round(large["landing"]),
        **fresh,
        "peak_mb": round(max(small["peak_mb"], large["peak_mb"])),
        "readings": options.readings,
        "seconds": {name: round(value, 2) for name, value in large["seconds"].items()},
        "seconds_small": {name: round(value, 2) for name, value in small["seconds"].items()},
        "duckdb_seconds": round(large["bare"], 2),
        "duckdb_seconds_small": round(small["bare"], 2),
        "units": large["units"],
        "files": len(large["files"]),
    }
    print(f"{'':16}{'ours s':>10}{'DuckDB s':>10}{'landing /s':>12}{'peak MB':>9}")
    for name, found in (("small", small), ("large", large)):
        values = f"{found['ours']:10.1f}{found['bare']:10.1f}{found['landing']:12,.0f}{found['peak_mb']:9.0f}"
        print(f"{name:16}{values}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
