"""The standard lane, measured: landing, the tasks of a run compared with DuckDB alone, and freshness.

Each task runs in a process of its own, which is forked from a worker, as in Airflow. Airflow's own time for a task is
not counted: queueing, the start of its supervisor, and the parsing of the Dag file. DuckDB alone is
`benchmarks/water/duckdb_alone.py`, a program without claims, contracts, dead letters, suite or commits.

The figures, where "the DuckDB program" reads the landed files from the object store and writes to it, as the tasks do:

ratio_vs_duckdb
    Seconds of the DuckDB program after its imports / seconds, after their imports, of the tasks that turn landed files
    into clean rows and flows (validate, commit, aggregate).
ratio_vs_duckdb_whole_run
    Seconds of the DuckDB program from the start of its process to its end / the sum of the seconds of all tasks of the
    run, each from the start of its process to its end. Both share the object store, the landed files in it, and the SQL
    of the flows.
ratio_vs_duckdb_nothing_shared
    Like ratio_vs_duckdb_whole_run, but the DuckDB program reads copies of the files from the local disk and writes to
    the local disk, so it needs no client of an object store.
growth
    Seconds of all tasks of the large run, after their imports / the same of a run with a tenth of the readings.
run_seconds
    The sum of the seconds of all tasks of the run, each from the start of its process to its end.
data_tasks_seconds
    Seconds of validate, commit and aggregate, after their imports.
imports_seconds
    The part of run_seconds in which the tasks imported modules.
preload_seconds
    The seconds in which a worker preloaded libraries, once for all its tasks; not part of run_seconds.
duckdb_seconds, duckdb_process_seconds, duckdb_local_process_seconds
    Seconds of the DuckDB program: after its imports; of its whole process; of its whole process with local files.
landing_records_per_s
    Readings per second, from the first sent to Kafka until the last is in the landing table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench_stack import fresh_stack, say
from benchmarks.results import print_result
from benchmarks.water.freshness import measure_freshness
from benchmarks.water.task_processes import LIBRARIES, Worker, worker
from include.water.consumers import AGGREGATE_METER_READINGS as CONSUMER
from include.water.simulators.meters import NO_FAULTS, Readings
from include.water.simulators.network import Network
from include.water.topics import METER_READINGS
from stack.stack import PROJECT

SERVICES = ("postgres", "kafka", "objectstore", "connect")
UNTIL = datetime(2026, 6, 1, tzinfo=UTC)
# Runs of the large size; the median is reported. Each has other weeks, because a reading counts once.
RUNS, WEEKS_APART = 3, timedelta(weeks=4)

# The task that finds no gap reads metadata only.
METADATA_LIBRARIES = ("psycopg", "pyiceberg.catalog.sql", "pyiceberg.io.fsspec")
SUITE_LIBRARIES = (*LIBRARIES, "google.cloud.storage")
DATA_TASKS = ("validate", "commit", "aggregate")


class Alone(NamedTuple):
    """A run of the DuckDB program: clean rows, seconds after its imports, seconds of its process."""

    clean: int
    seconds: float
    process: float


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


def data_tasks(tasks: Worker, run_id: str) -> dict[str, Any]:
    """One run of the lane, task by task: {"seconds": {task: ...}, "work", "run", "imports", "peak_mb", ...}."""
    seconds: dict[str, float] = {}
    work: dict[str, float] = {}
    peaks: list[float] = []

    def task(label: str, name: str, *calls: tuple, libraries: tuple[str, ...] = LIBRARIES) -> list[Any]:
        done = tasks.run(name, calls, libraries)
        seconds[label], work[label] = done.seconds, done.work
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
        "work": work,
        "run": sum(seconds.values()),
        "imports": sum(seconds.values()) - sum(work.values()),
        "peak_mb": max(peaks),
        "clean": summary["clean"],
        "units": len(units),
        "files": files,
    }


def duckdb_alone(files: list[str], target: str, store: dict[str, Any] | None) -> Alone:
    """Run the DuckDB program three times; returns the median, because everything is compared with it."""
    request = json.dumps({"files": files, "target": target, "store": store})
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.water.duckdb_alone"],
            input=request, stdout=subprocess.PIPE, text=True, check=True, cwd=PROJECT, timeout=600,
        )  # fmt: skip
        process = time.perf_counter() - began
        runs.append(Alone(**json.loads(done.stdout.splitlines()[-1]), process=process))
    return sorted(runs, key=lambda run: run.seconds)[1]


def measure(tasks: Worker, count: int, until: datetime, name: str) -> dict[str, Any]:
    say(f"{name}: sending {count:,} readings")
    rate = land(count, until)
    say(f"{name}: landed, {rate:,.0f} records a second; running the tasks")
    # While the sink is idle.
    time.sleep(3)
    ours = data_tasks(tasks, f"benchmark {name}")
    alone = duckdb_alone(ours["files"], f"gs://landing/benchmark/{name.replace('/', '-')}", store_of_files())
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        local = duckdb_alone(copies(ours["files"], Path(folder)), folder, None)
    figures = {
        **ours,
        "landing": rate,
        "tasks": sum(ours["work"].values()),
        "data_tasks": sum(ours["work"][task] for task in DATA_TASKS),
        "alone": alone,
        "local": local,
    }
    say(f"{name}: {ours['units']} units, {len(ours['files'])} files, {ours['run']:.1f} s: {_text(ours['seconds'])}")
    say(f"{name}: imports {ours['imports']:.1f} s; {figures['data_tasks']:.2f} s of the tasks that DuckDB does too")
    say(f"{name}: DuckDB alone {alone.seconds:.2f} s, its process {alone.process:.2f} s, local {local.process:.2f} s")
    if not ours["clean"] == alone.clean == local.clean == count:
        raise RuntimeError(
            f"{count} sent, {ours['clean']} clean rows of ours, {alone.clean} and {local.clean} of DuckDB"
        )
    return figures


def store_of_files() -> dict[str, Any]:
    """The arguments of a gcsfs filesystem for the landed files."""
    from include.streams.lake.stores import store_in_use

    properties = store_in_use().file_properties()
    return {
        "project": properties["gcs.project-id"],
        "token": properties["gcs.oauth2.token"],
        "endpoint_url": properties["gcs.service.host"],
    }


def copies(files: list[str], folder: Path) -> list[str]:
    """Copy landed files to a local folder; returns their paths."""
    import gcsfs

    paths = [str(folder / f"{number}.parquet") for number in range(len(files))]
    gcsfs.GCSFileSystem(**store_of_files()).get(files, paths)
    return paths


def _text(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.water.batch", description="measure the standard lane")
    parser.add_argument("--readings", type=int, default=1_000_000, help="of the large run (default: %(default)s)")
    parser.add_argument("--no-preloading", action="store_true", help="each task imports its libraries itself")
    parser.add_argument("--probes", type=int, default=30, help="readings that freshness is told by; 0: not measured")
    options = parser.parse_args()
    with fresh_stack(SERVICES) as stack:
        from include.project import PROJECT

        for line in PROJECT.prepare():
            say(line)
        with worker(not options.no_preloading) as tasks:
            # A first small run creates topics, connector and caches.
            measure(tasks, 5_000, UNTIL - timedelta(days=400), "warm-up")
            small = measure(tasks, options.readings // 10, UNTIL - timedelta(days=200), "small")
            runs = [
                measure(tasks, options.readings, UNTIL - n * WEEKS_APART, f"large {RUNS - n}/{RUNS}")
                for n in reversed(range(RUNS))
            ]
            preload_seconds = tasks.preload_seconds
        large = sorted(runs, key=lambda figures: figures["alone"].seconds / figures["data_tasks"])[RUNS // 2]
        fresh = measure_freshness(stack, options.probes) if options.probes else {}

    def ratios(seconds: Callable[[dict[str, Any]], tuple[float, float]]) -> list[float]:
        return sorted(round(alone / ours, 2) for alone, ours in map(seconds, runs))

    by_data_tasks = ratios(lambda figures: (figures["alone"].seconds, figures["data_tasks"]))
    by_run = ratios(lambda figures: (figures["alone"].process, figures["run"]))
    nothing_shared = ratios(lambda figures: (figures["local"].process, figures["run"]))
    result = {
        # Each the median of the large runs.
        "ratio_vs_duckdb": by_data_tasks[RUNS // 2],
        "ratio_vs_duckdb_whole_run": by_run[RUNS // 2],
        "ratio_vs_duckdb_nothing_shared": nothing_shared[RUNS // 2],
        "ratios_vs_duckdb": by_data_tasks,
        "ratios_vs_duckdb_whole_run": by_run,
        # Without imports, which would make the ratio smaller.
        "growth": round(large["tasks"] / small["tasks"], 2),
        "landing_records_per_s": round(large["landing"]),
        **fresh,
        "peak_mb": round(max(small["peak_mb"], large["peak_mb"])),
        "readings": options.readings,
        "run_seconds": round(large["run"], 1),
        "data_tasks_seconds": round(large["data_tasks"], 1),
        "seconds": {name: round(value, 2) for name, value in large["seconds"].items()},
        "seconds_small": {name: round(value, 2) for name, value in small["seconds"].items()},
        "imports_seconds": round(large["imports"], 2),
        "preload_seconds": round(preload_seconds, 1),
        "duckdb_seconds": round(large["alone"].seconds, 2),
        "duckdb_process_seconds": round(large["alone"].process, 2),
        "duckdb_local_process_seconds": round(large["local"].process, 2),
        "duckdb_seconds_small": round(small["alone"].seconds, 2),
        "units": large["units"],
        "files": len(large["files"]),
    }
    print(f"{'':8}{'run s':>8}{'data tasks s':>14}{'DuckDB s':>10}{'imports s':>11}{'landing /s':>12}{'peak MB':>9}")
    for name, figures in (("small", small), ("large", large)):
        print(
            f"{name:8}{figures['run']:8.1f}{figures['data_tasks']:14.1f}{figures['alone'].seconds:10.1f}"
            f"{figures['imports']:11.1f}{figures['landing']:12,.0f}{figures['peak_mb']:9.0f}"
        )
    print("whole run and DuckDB alone share the object store, the landed files in it, and the SQL of the flows")
    print_result("bench-batch", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
