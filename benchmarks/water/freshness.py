"""How old data are when they can be seen: from a reading's record in Kafka to its hour in the table of flows.

The sink commits every so often, then a run of the lane starts, then its tasks follow one another: each part can be
shortened, and each costs something (docs/schedules.md).
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

from benchmarks.results import print_result
from benchmarks.stand import Stand, fresh_stack, say
from include.water.topics import METER_READINGS, MeterReading
from stack import Stack
from stack.stack import PROJECT

LANE = "aggregate_meter_readings"
SERVICES = ("postgres", "kafka", "objectstore", "connect")
PAUSE_SECONDS = 7.0
LOST_AFTER_SECONDS = 300.0
# Of the runs in which something was done: how long the run took beyond its tasks.
SCHEDULING = """
    select extract(epoch from max(end_date) - min(start_date)) - sum(extract(epoch from end_date - start_date))
    from task_instance where dag_id = :dag_id and state = 'success' and task_id <> 'wait_for_readings'
    group by run_id having count(*) filter (where task_id = 'publish') = 1
"""


def measure_freshness(stack: Stack, probes: int, commit_seconds: int | None = None) -> dict[str, Any]:
    """Start Airflow on this stack, send readings one by one, wait until each is seen; seconds.

    Every probe is a meter of its own, so its row in `water.meter_hours` is the moment at which it can be seen.
    `commit_seconds`: the sink's commit interval, if it is not to be that of `connectors/`.
    """
    everything = Stack(stack.folder, report=say, services=(*SERVICES, "airflow"))
    everything.up()
    os.environ.update(everything.environment())
    if commit_seconds is not None:
        # Now: the project's own preparation, which starts with Airflow, applies the committed settings.
        _set_commit_interval(stack.folder / "connectors", commit_seconds)
    it = Stand(everything)
    for dag_id in it.wait_for_dags(PROJECT / "dags") - {LANE}:
        it.pause(dag_id)
    waiting: dict[str, float] = {}
    seconds: list[float] = []
    sent = 0
    due = time.time()
    while sent < probes or waiting:
        if sent < probes and time.time() >= due:
            meter = f"M-8{sent:05d}"
            (stamp,) = it.send(METER_READINGS.name, [_reading(meter)])
            waiting[meter] = stamp
            sent += 1
            due = time.time() + PAUSE_SECONDS
        for meter in _seen() & set(waiting):
            seconds.append(time.time() - waiting.pop(meter))
            say(f"probe {len(seconds)} of {probes}: {seconds[-1]:.1f} s")
        if waiting and time.time() - min(waiting.values()) > LOST_AFTER_SECONDS:
            raise TimeoutError(f"not seen after {LOST_AFTER_SECONDS:.0f} s: {', '.join(waiting)}")
        time.sleep(0.2)
    with it.metadata.connect() as connection:
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
        found = measure_freshness(stack, options.probes, options.commit_seconds)
    print_result("freshness", {"commit_seconds": options.commit_seconds, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
