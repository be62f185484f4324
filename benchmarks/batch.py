"""What validating landed readings and committing them costs, against bare DuckDB over the same files.

    python -m benchmarks.batch [--readings 1000000] [--files 8]

Bare DuckDB reads the same files, parses the JSON with explicit columns and writes Parquet, to the same store. Ours
checks every rule of the contract, drops duplicates, and commits to the clean table. Each in a process of its own, the
same number of times, in turn; the best of each counts. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2026, 11, 1, tzinfo=UTC)
METERS = 1_000
DISTRICTS = ("harbour", "hillside", "lakeview", "old-town", "riverbend", "southfield", "valley", "westshore")
STRUCTURE = {
    "version": "BIGINT",
    "meter_id": "VARCHAR",
    "district_id": "VARCHAR",
    "read_at": "TIMESTAMPTZ",
    "litres_total": "BIGINT",
    "battery_percent": "BIGINT",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--step", choices=("prepare", "ours", "bare"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step = {"prepare": prepare, "ours": ours, "bare": bare}[arguments.step]
        print(json.dumps(step(arguments.readings, arguments.files)))
        return

    from stack import Stack

    with tempfile.TemporaryDirectory(prefix="bench-batch-") as folder:
        stack = Stack(Path(folder), services=("postgres", "kafka", "objectstore"), report=_say)
        stack.up()
        try:
            found = {}
            for size in (arguments.readings // 10, arguments.readings):
                found[size] = _measured(stack.environment(), size, arguments.files, arguments.times)
        finally:
            stack.remove()
    small, whole = found[arguments.readings // 10], found[arguments.readings]
    print(json.dumps({
        "readings": arguments.readings,
        "ratio_validate": round(whole["bare"] / whole["validate"], 2),
        "ratio_validate_and_commit": round(whole["bare"] / (whole["validate"] + whole["commit"]), 2),
        "growth": round((whole["validate"] + whole["commit"]) / (small["validate"] + small["commit"]), 1),
        "seconds": whole,
        "seconds_for_a_tenth": small,
        "peak_mb": whole["peak_mb"],
    }))  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _measured(environment: dict[str, str], readings: int, files: int, times: int) -> dict[str, float]:
    def step(name: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.batch", "--readings", str(readings), "--files", str(files)]
        done = subprocess.run(
            [*command, "--step", name], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        _say(f"{name}: {done.stdout.strip().splitlines()[-1]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    step("prepare")
    tries = [step(name) for _ in range(times) for name in ("bare", "ours")]
    best = {name: min(t[name] for t in tries if name in t) for name in ("bare", "validate", "commit")}
    return {**best, "peak_mb": max(t["peak_mb"] for t in tries if "validate" in t)}


def prepare(readings: int, files: int) -> dict[str, Any]:
    """Land the readings, as the sink would: files of one Kafka partition each."""
    import pyarrow as pa

    from include.kafka.topics import create_topics
    from include.landing.clean import ensure_clean_table
    from include.landing.tables import create_landing_table
    from include.operations.migrate import upgrade
    from include.water.topics import METER_READINGS, TOPICS

    upgrade()
    create_topics(TOPICS)
    table = create_landing_table(METER_READINGS)
    table.delete("partition >= 0")
    ensure_clean_table(METER_READINGS).delete("kafka_partition >= 0")
    each = readings // files
    partitions = METER_READINGS.partitions
    with table.transaction() as transaction:
        for number in range(files):
            values = [_reading(number * each + n) for n in range(each)]
            first = number // partitions * each
            columns = {
                "topic": [METER_READINGS.name] * each,
                "partition": pa.array([number % partitions] * each, pa.int32()),
                "offset": pa.array(range(first, first + each), pa.int64()),
                "timestamp": pa.array([START] * each, pa.timestamp("us", "UTC")),
                "value": values,
            }
            transaction.append(pa.table(columns))
    return {}


def _reading(number: int) -> str:
    meter = number % METERS
    at = (START + timedelta(minutes=15 * (number // METERS))).isoformat().replace("+00:00", "Z")
    battery = "null" if number % 3 else str(number % 100)
    return (
        f'{{"version":1,"meter_id":"M-{meter:06}","district_id":"{DISTRICTS[meter % 8]}","read_at":"{at}",'
        f'"litres_total":{1_000_000 + number * 3},"battery_percent":{battery}}}'
    )


def ours(readings: int, files: int) -> dict[str, Any]:
    """Validate every file as a unit, then commit."""
    from sqlalchemy import insert

    from include.kafka.claims import lock_consumer
    from include.landing.clean import commit_clean
    from include.landing.tables import load_landing_table, topic_id
    from include.landing.validation import validate_unit
    from include.operations.database import begin
    from include.operations.tables import claim_ranges, claims
    from include.water.consumers import AGGREGATE_METER_READINGS as CONSUMER

    table = load_landing_table(CONSUMER.topic)
    run_id = f"bench-{time.time()}"
    units = _units(table, files)
    with begin() as connection:
        lock_consumer(connection, CONSUMER.name)
        new = insert(claims).values(consumer=CONSUMER.name, run_id=run_id).returning(claims.c.id)
        claim_id = connection.execute(new).scalar_one()
        for partition in {part["partition"] for unit in units for part in unit["ranges"]}:
            ends = [part["end"] for unit in units for part in unit["ranges"] if part["partition"] == partition]
            connection.execute(insert(claim_ranges).values(
                claim_id=claim_id, topic=CONSUMER.topic.name, partition=partition, topic_id=topic_id(table),
                start_offset=0, readable_from=0, end_offset=max(ends),
            ))  # fmt: skip
    # Imports and first connections are the task's start, not its data.
    validate_unit(CONSUMER, {**units[0], "claim_id": claim_id, "unit": 10_000}, run_id)
    began = time.perf_counter()
    counts = [validate_unit(CONSUMER, {**unit, "claim_id": claim_id}, run_id) for unit in units]
    validated = time.perf_counter()
    summary = commit_clean(CONSUMER, counts, run_id)
    ended = time.perf_counter()
    assert summary["clean"] == readings // files * files, summary
    _forget(claim_id)
    return {
        "validate": round(validated - began, 3),
        "commit": round(ended - validated, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _forget(claim_id: int) -> None:
    from sqlalchemy import delete

    from include.lake.catalog import load_catalog
    from include.landing.tables import clean_table
    from include.operations.database import begin
    from include.operations.tables import claims
    from include.water.topics import METER_READINGS

    with begin() as connection:
        connection.execute(delete(claims).where(claims.c.id == claim_id))
    load_catalog().load_table(clean_table(METER_READINGS)).delete("kafka_partition >= 0")


def _units(table: Any, files: int) -> list[dict[str, Any]]:
    """Units of up to two hundred thousand readings, as the lane plans them."""
    from pyiceberg.conversions import from_bytes

    partition, offset = table.schema().find_field("partition"), table.schema().find_field("offset")
    parts = []
    for task in table.scan().plan_files():
        low = from_bytes(offset.field_type, task.file.lower_bounds[offset.field_id])
        high = from_bytes(offset.field_type, task.file.upper_bounds[offset.field_id])
        number = from_bytes(partition.field_type, task.file.lower_bounds[partition.field_id])
        parts.append({"path": task.file.file_path, "partition": number, "start": low, "end": high + 1})
    return [
        {"unit": n, "files": [part], "ranges": [{name: part[name] for name in ("partition", "start", "end")}]}
        for n, part in enumerate(parts)
    ]


def bare(readings: int, files: int) -> dict[str, Any]:
    """DuckDB, as one would write it by hand."""
    from include.lake.engine import connect
    from include.landing.tables import load_landing_table
    from include.water.topics import METER_READINGS

    paths = [task.file.file_path for task in load_landing_table(METER_READINGS).scan().plan_files()]
    with connect() as connection:
        listed = ", ".join(f"'{path}'" for path in paths)
        connection.execute(f"select count(value) from read_parquet(['{paths[0]}'])")
        began = time.perf_counter()
        connection.execute(
            f"copy (select unnest(json_transform(value, '{json.dumps(STRUCTURE)}')), partition, \"offset\", "
            f"\"timestamp\" from read_parquet([{listed}])) to 'gs://landing/bare/{os.getpid()}.parquet' "
            "(format parquet, compression zstd)"
        )
        return {
            "bare": round(time.perf_counter() - began, 3),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


if __name__ == "__main__":
    main()
