"""Freshness: the time from a reading's record in Kafka to its hour in the table of flows.

It is the sum of the sink's commit interval, the start of a run, and the run's tasks. Each part can be shortened, at a
cost (docs/schedules.md).
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.bench_stack import BenchStack, fresh_stack, say
from benchmarks.results import print_result
from include.water.topics import METER_READINGS, MeterReading
from stack import Stack
from stack.stack import PROJECT

LANE = "aggregate_meter_readings"
SERVICES = ("postgres", "kafka", "objectstore", "connect")
PAUSE_SECONDS = 7.0
LOST_AFTER_SECONDS = 300.0
# The time of a run in addition to its tasks, for runs that claimed something.
SCHEDULING = """
    select extract(epoch from max(end_date) - min(start_date)) - sum(extract(epoch from end_date - start_date))
    from task_instance where dag_id = :dag_id and state = 'success' and task_id <> 'wait_for_readings'
    group by run_id having count(*) filter (where task_id = 'publish') = 1
"""


def measure_freshness(stack: Stack, probes: int, commit_seconds: int | None = None) -> dict[str, Any]:
    """Start Airflow on this stack, send readings one by one, and wait until each can be seen.

    Every probe is a meter of its own: it can be seen when its row is in `water.meter_hours`. `commit_seconds` overrides
    the sink's commit interval of `connectors/`.

    Returns:
        The seconds of each probe, and other figures.
    """
    everything = Stack(stack.folder, report=say, services=(*SERVICES, "airflow"))
    everything.up()
    os.environ.update(everything.environment())
    if commit_seconds is not None:
        # After Airflow's start: the project's preparation, which runs with it, applies the committed settings.
        _set_commit_interval(stack.folder / "connectors", commit_seconds)
    bench = BenchStack(everything)
    bench.run_only({LANE}, PROJECT / "dags")
    waiting: dict[str, float] = {}
    seconds: list[float] = []
    sent = 0
    due = time.time()
    while sent < probes or waiting:
        if sent < probes and time.time() >= due:
            meter = f"M-8{sent:05d}"
            (stamp,) = bench.send(METER_READINGS.name, [_reading(meter)])
            waiting[meter] = stamp
            sent += 1
            due = time.time() + PAUSE_SECONDS
        for meter in _seen() & set(waiting):
            seconds.append(time.time() - waiting.pop(meter))
            say(f"probe {len(seconds)} of {probes}: {seconds[-1]:.1f} s")
        if waiting and time.time() - min(waiting.values()) > LOST_AFTER_SECONDS:
            raise TimeoutError(f"not seen after {LOST_AFTER_SECONDS:.0f} s: {', '.join(waiting)}")
        time.sleep(0.2)
    with bench.metadata.connect() as connection:
        scheduling = [float(row) for row in connection.scalars(text(SCHEDULING), {"dag_id": LANE})]
    return {
        "freshness_p50_s": round(statistics.median(seconds), 1),
        "freshness_p95_s": round(statistics.quantiles(seconds, n=20, method="inclusive")[-1], 1),
        "scheduling_s_per_run": round(statistics.median(scheduling), 1),
        "runs": len(scheduling),
    }


def _set_commit_interval(own: Path, seconds: int) -> None:
    from include.streams.landing.connectors import FOLDER as CONNECTORS
    from include.streams.landing.connectors import TEMPLATE, apply
    from include.water.topics import TOPICS

    shutil.copytree(CONNECTORS, own)
    settings = json.loads((own / TEMPLATE).read_text())
    settings["iceberg.control.commit.interval-ms"] = str(1000 * seconds)
    (own / TEMPLATE).write_text(json.dumps(settings))
    apply(TOPICS, folder=own)


def _reading(meter_id: str) -> bytes:
    event = MeterReading(version=1, meter_id=meter_id, district_id="harbour", read_at=datetime.now(UTC), litres_total=1)
    return METER_READINGS.serialize(event)[1]


def _seen() -> set[str]:
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake import engine
    from include.streams.lake.catalog import load_catalog

    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0).timestamp() - 7200
    since = datetime.fromtimestamp(hour, UTC).isoformat()
    try:
        table = load_catalog().load_table("water.meter_hours")
    except NoSuchTableError:
        return set()
    with engine.connect() as connection:
        rows = engine.scan(connection, table, row_filter=f"hour >= '{since}' and readings > 0", columns=["meter_id"])
        return {meter for (meter,) in rows.fetchall()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.water.freshness", description=__doc__)
    parser.add_argument("--probes", type=int, default=30, help="readings to send (default: %(default)s)")
    parser.add_argument(
        "--commit-seconds", type=int, default=10, help="the sink's commit interval (default: %(default)s)"
    )
    options = parser.parse_args()
    with fresh_stack(SERVICES) as stack:
        figures = measure_freshness(stack, options.probes, options.commit_seconds)
    print_result("freshness", {"commit_seconds": options.commit_seconds, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
