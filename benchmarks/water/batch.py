"""The standard lane, measured: landing, the data tasks compared with DuckDB alone on the same files, and freshness.

Each task runs in a process of its own, as in Airflow. Its time is counted after its imports, which take about a second,
whatever the data; the imports are reported separately. `ratio_vs_duckdb` compares the tasks that turn landed files into
clean rows and flows with one process of DuckDB that does the same: it reads the landed files, parses, drops duplicates,
and writes clean rows, hourly flows and nights as Parquet to the same store, without claims, contracts, dead letters or
commits. `ratio_vs_duckdb_whole_run` compares the whole run, including imports, planning, the suite and closing.
"""

import argparse
import gc
import importlib
import multiprocessing
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from pkgutil import resolve_name
from typing import Any, NamedTuple

from benchmarks.bench_stack import fresh_stack, say
from benchmarks.results import print_result
from benchmarks.water.freshness import measure_freshness
from include.water.consumers import AGGREGATE_METER_READINGS as CONSUMER
from include.water.simulators.meters import NO_FAULTS, Readings
from include.water.simulators.network import Network
from include.water.topics import METER_READINGS

SERVICES = ("postgres", "kafka", "objectstore", "connect")
UNTIL = datetime(2026, 6, 1, tzinfo=UTC)
# Runs of the large size; the median is reported. Each has other weeks, because a reading counts once.
RUNS, WEEKS_APART = 3, timedelta(weeks=4)
# As many mapped tasks at once as the machine has cores.
TASKS_AT_ONCE = 2


# The imports in the bodies of the tasks.
LIBRARIES = (
    "duckdb",
    "psycopg",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.fsspec",
    "pyiceberg.io.pyarrow",
    # Which gcsfs imports with the first upload.
    "gcsfs.extended_gcsfs",
)
# The task that finds no gap reads metadata only.
METADATA_LIBRARIES = ("psycopg", "pyiceberg.catalog.sql", "pyiceberg.io.fsspec")
SUITE_LIBRARIES = (*LIBRARIES, "google.cloud.storage", "great_expectations")
DATA_TASKS = ("validate", "commit", "aggregate")


class Done(NamedTuple):
    """The results of a task's calls, their seconds, the seconds of their imports, and the most memory of a process."""

    results: list[Any]
    seconds: float
    imports: float
    peak_mb: float


def run_task(name: str, calls: list[tuple], libraries: tuple[str, ...] = LIBRARIES) -> Done:
    """Call "package.module:function" with each of `calls` in new processes, as many at once as Airflow would run."""
    # Not fork: a task's process has imported nothing of the project.
    context = multiprocessing.get_context("spawn")
    workers = min(TASKS_AT_ONCE, len(calls))
    ready, imports = context.Barrier(workers + 1), context.SimpleQueue()
    with context.Pool(workers, _import, (libraries, ready, imports)) as pool:
        ready.wait()
        began = time.perf_counter()
        done = pool.starmap(_call, [(name, *arguments) for arguments in calls], chunksize=1)
        seconds = time.perf_counter() - began
    peak = max(peak for _, peak in done)
    return Done([result for result, _ in done], seconds, max(imports.get() for _ in range(workers)), peak)


def _import(libraries: tuple[str, ...], ready: Any, imports: Any) -> None:
    # Airflow's own imports, which a task's process has when the task begins.
    importlib.import_module("airflow.sdk.execution_time.task_runner")
    importlib.import_module("airflow.sdk.execution_time.supervisor")
    # As Airflow's executor does before it forks.
    gc.freeze()
    began = time.perf_counter()
    for library in libraries:
        importlib.import_module(library)
    # Part of the imports' cost, which would otherwise be paid during the work.
    gc.collect()
    imports.put(time.perf_counter() - began)
    ready.wait()


def _call(name: str, *arguments: Any) -> tuple[Any, float]:
    result = resolve_name(name)(*arguments)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def land(count: int, until: datetime) -> float:
    """Send readings and wait until all have landed; returns records per second, from the first record sent."""
    from include.streams.kafka.producer import AcknowledgedProducer
    from include.streams.landing.index import LandingIndex
    from include.streams.landing.tables import load_landing_table

    network = Network(seed=3, share=1)
    interval = timedelta(minutes=30)
    span = interval * -(-count // len(network.meters))
    messages = []
    for message in Readings(network, until - span, until, interval=interval, faults=NO_FAULTS):
        messages.append(message)
        if len(messages) == count:
            break

    def landed() -> int:
        index = LandingIndex(load_landing_table(METER_READINGS))
        return sum(file.records for p in index.partitions for file in index.files(p, 0))

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
    """One run of the lane, task by task: {"seconds": {task: ...}, "imports", "peak_mb", "clean", "units", "files"}."""
    seconds: dict[str, float] = {}
    imports: list[float] = []
    peaks: list[float] = []

    def task(label: str, name: str, *calls: tuple, libraries: tuple[str, ...] = LIBRARIES) -> list[Any]:
        done = run_task(name, list(calls), libraries)
        seconds[label] = done.seconds
        imports.append(done.imports)
        peaks.append(done.peak_mb)
        return done.results

    task("repair_gaps", "include.streams.landing.tasks:repair_gaps", (CONSUMER, run_id), libraries=METADATA_LIBRARIES)
    (units,) = task("plan", "include.streams.landing.tasks:plan", (CONSUMER, run_id))
    counts = task("validate", "include.streams.landing.tasks:validate", *((CONSUMER, unit, run_id) for unit in units))
    (summary,) = task("commit", "include.water.flows.replaced:commit", (CONSUMER, counts, run_id))
    task("check", "include.streams.landing.tasks:check", (CONSUMER, summary), libraries=SUITE_LIBRARIES)
    task("aggregate", "include.water.flows.aggregation:aggregate", (summary,))
    task("close", "include.streams.landing.tasks:close", (CONSUMER, summary, run_id))
    files = sorted({file["path"] for unit in units for file in unit["files"]})
    return {
        "seconds": seconds,
        "imports": sum(imports),
        "peak_mb": max(peaks),
        "clean": summary["clean"],
        "units": len(units),
        "files": files,
    }


def bare_duckdb(files: list[str], target: str) -> int:
    """Compute the same rows and flows with DuckDB alone; returns how many rows are clean."""
    from include.streams.lake import engine
    from include.water.flows import queries
    from include.water.flows.hours import hours_in_reach

    paths = ", ".join(engine.literal(path) for path in files)
    with engine.connect() as connection:
        connection.execute(
            f"""
            create table parsed as
            select distinct on (meter_id, read_at) *,
                meter_id || '@' || strftime(read_at, '%Y-%m-%dT%H:%M:%SZ') as event_id
            from (
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
        for name in queries.run_all(connection, hours_in_reach(hours)):
            connection.execute(f"copy {name} to '{target}/{name}.parquet' (format parquet, compression zstd)")
        return connection.execute("select count(*) from readings").fetchall()[0][0]


def measure(count: int, until: datetime, name: str) -> dict[str, Any]:
    say(f"{name}: sending {count:,} readings")
    rate = land(count, until)
    say(f"{name}: landed, {rate:,.0f} records a second; running the data tasks")
    # While the sink is idle.
    time.sleep(3)
    ours = data_tasks(f"benchmark {name}")
    seconds = ours["seconds"]
    # The median of three, because everything is compared with it; it takes only a second or two.
    bare = sorted(
        (
            run_task("benchmarks.water.batch:bare_duckdb", [(ours["files"], f"gs://landing/benchmark/{name}")])
            for _ in range(3)
        ),
        key=lambda done: done.seconds,
    )[1]
    (clean,) = bare.results
    figures = {
        **ours,
        "landing": rate,
        "tasks": sum(seconds.values()),
        "data_tasks": sum(seconds[task] for task in DATA_TASKS),
        "bare": bare.seconds,
        "bare_imports": bare.imports,
    }
    say(f"{name}: {ours['units']} units, {len(ours['files'])} files, {figures['tasks']:.1f} s: {_text(seconds)}")
    say(f"{name}: imports {ours['imports']:.1f} s; {figures['data_tasks']:.2f} s of the tasks that DuckDB does too")
    say(f"{name}: bare DuckDB {bare.seconds:.1f} s, imports {bare.imports:.1f} s, {bare.peak_mb:.0f} MB")
    if not ours["clean"] == clean == count:
        raise RuntimeError(f"{count} sent, {ours['clean']} clean rows of ours, {clean} of DuckDB")
    return figures


def _text(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.water.batch", description=__doc__)
    parser.add_argument("--readings", type=int, default=1_000_000, help="of the large run (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=30, help="readings that freshness is told by; 0: not measured")
    options = parser.parse_args()
    with fresh_stack(SERVICES) as stack:
        from include.project import PROJECT

        for line in PROJECT.prepare():
            say(line)
        # A first small run creates topics, connector and caches.
        measure(5_000, UNTIL - timedelta(days=400), "warm-up")
        small = measure(options.readings // 10, UNTIL - timedelta(days=200), "small")
        runs = [
            measure(options.readings, UNTIL - n * WEEKS_APART, f"large {RUNS - n}/{RUNS}")
            for n in reversed(range(RUNS))
        ]
        large = sorted(runs, key=lambda figures: figures["bare"] / figures["data_tasks"])[RUNS // 2]
        fresh = measure_freshness(stack, options.probes) if options.probes else {}
    result = {
        "ratio_vs_duckdb": round(large["bare"] / large["data_tasks"], 2),
        "ratios_vs_duckdb": sorted(round(figures["bare"] / figures["data_tasks"], 2) for figures in runs),
        "ratio_vs_duckdb_whole_run": round(
            (large["bare"] + large["bare_imports"]) / (large["tasks"] + large["imports"]), 2
        ),
        # Without imports, which would make the ratio smaller.
        "growth": round(large["tasks"] / small["tasks"], 2),
        "landing_records_per_s": round(large["landing"]),
        **fresh,
        "peak_mb": round(max(small["peak_mb"], large["peak_mb"])),
        "readings": options.readings,
        "run_seconds": round(large["tasks"] + large["imports"], 1),
        "data_tasks_seconds": round(large["data_tasks"], 1),
        "seconds": {name: round(value, 2) for name, value in large["seconds"].items()},
        "seconds_small": {name: round(value, 2) for name, value in small["seconds"].items()},
        "imports_seconds": round(large["imports"], 2),
        "duckdb_seconds": round(large["bare"], 2),
        "duckdb_seconds_small": round(small["bare"], 2),
        "units": large["units"],
        "files": len(large["files"]),
    }
    print(f"{'':8}{'run s':>8}{'data tasks s':>14}{'DuckDB s':>10}{'imports s':>11}{'landing /s':>12}{'peak MB':>9}")
    for name, figures in (("small", small), ("large", large)):
        print(
            f"{name:8}{figures['tasks']:8.1f}{figures['data_tasks']:14.1f}{figures['bare']:10.1f}{figures['imports']:11.1f}"
            f"{figures['landing']:12,.0f}{figures['peak_mb']:9.0f}"
        )
    print_result("bench-batch", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
