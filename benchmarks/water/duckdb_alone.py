"""The standard lane's work as a plain DuckDB program: `python -m benchmarks.water.duckdb_alone`.

It reads the landed files, parses them, drops duplicates, and writes clean rows, hourly flows and nights as Parquet,
without claims, contracts, dead letters, suite or commits. Its standard input is a JSON object: `files`, `target`, and
`store`, the arguments of the files' gcsfs filesystem; null for local files. Its last line of output is a JSON object
with `clean`, the number of clean rows, and `seconds`, the time after the imports.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import duckdb

from include.water.flows import queries
from include.water.flows.hours import hours_in_reach


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def compute(files: list[str], target: str, store: dict[str, Any] | None) -> int:
    """Compute the rows and flows; returns how many rows are clean."""
    paths = ", ".join(map(literal, files))
    # Two threads, as the tasks of the lane have.
    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        if store is not None:
            import gcsfs

            connection.register_filesystem(gcsfs.GCSFileSystem(**store))
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
        connection.execute(f"copy parsed to {literal(f'{target}/clean.parquet')} (format parquet, compression zstd)")
        hours = [
            hour for (hour,) in connection.execute("select distinct date_trunc('hour', read_at) from parsed").fetchall()
        ]
        for name in queries.run_all(connection, hours_in_reach(hours)):
            path = literal(f"{target}/{name}.parquet")
            connection.execute(f"copy {name} to {path} (format parquet, compression zstd)")
        return connection.execute("select count(*) from readings").fetchall()[0][0]


def main() -> int:
    options = json.load(sys.stdin)
    if options["store"] is not None:
        # An import, not work.
        import gcsfs.extended_gcsfs  # noqa: F401
    began = time.perf_counter()
    clean = compute(**options)
    print(json.dumps({"clean": clean, "seconds": time.perf_counter() - began}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
