"""Compares the set-based validation of a foreign contract with that of a plain contract, over the same messages.

    python -m benchmarks.foreign [--messages 400000] [--documents 6000]

Messages are small and flat. Both contracts check the same fields; the plain contract also checks that there are no
others. Documents are nested, about 9 kB each, and six values of each are picked; their set-based validation is compared
with the contract's parser, which reads one document after the other. No services are needed. The last line is a JSON
object.

- own (the plain contract), foreign: messages per second; the median of RUNS runs. Each run does the work of a task: it
  validates the messages as a set and writes them to a Parquet file.
- ratio: foreign / own.
- documents, documents_parsed: documents per second, by the fast path and by the parser.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from benchmarks.results import print_result
from include.streams.contracts import At, Contract, ForeignContract, Topic
from include.streams.contracts.types import Identifier, Line, UtcTime

RUNS = 5


class Measured(Contract):
    version: Literal[1]
    meter: Annotated[Identifier, Field(max_length=20)]
    district: Literal["harbour", "hills"]
    read_at: UtcTime
    litres: Annotated[int, Field(ge=0, le=10**12)]
    battery: Annotated[int, Field(ge=0, le=100)] | None = None

    event_id_sql: ClassVar[str | None] = "meter || '@' || utc_text(read_at)"

    @property
    def event_id(self) -> str:
        return f"{self.meter}@{self.read_at:%Y-%m-%dT%H:%M:%SZ}"


class Picked(ForeignContract):
    """The same fields of the same messages."""

    version: Literal[1]
    meter: Annotated[Identifier, Field(max_length=20)]
    district: Literal["harbour", "hills"]
    read_at: UtcTime
    litres: Annotated[int, Field(ge=0, le=10**12)]
    battery: Annotated[int, Field(ge=0, le=100)] | None = None

    event_id_sql: ClassVar[str | None] = "meter || '@' || utc_text(read_at)"

    @property
    def event_id(self) -> str:
        return f"{self.meter}@{self.read_at:%Y-%m-%dT%H:%M:%SZ}"


class Nested(ForeignContract):
    """Six values of a large document."""

    number: Annotated[int, At("order.number"), Field(ge=0, le=10**12)]
    name: Annotated[Line, At("order.customer.name"), Field(max_length=100)]
    city: Annotated[Line, At("order.customer.address.city"), Field(max_length=100)] | None = None
    placed_at: Annotated[UtcTime, At("order.placed_at")]
    state: Literal["open", "closed"]
    score: Annotated[float, At("meta.score"), Field(ge=0, le=1)] | None = None

    event_id_sql: ClassVar[str | None] = "number::varchar"

    @property
    def event_id(self) -> str:
        return str(self.number)


def topic(contract: type[Contract], key: str | None) -> Topic:
    return Topic("measured", contract, key=key, partitions=1, retention=None)


OWN, FOREIGN, NESTED = topic(Measured, "meter"), topic(Picked, None), topic(Nested, None)


def message(number: int) -> str:
    minutes, meter = divmod(number, 5_000)
    time_of_day = f"{minutes // 60 % 24:02}:{minutes % 60:02}"
    return json.dumps(
        {
            "version": 1,
            "meter": f"M-{meter:06}",
            "district": "harbour" if meter % 2 else "hills",
            "read_at": f"2026-01-02T{time_of_day}:05Z",
            "litres": 1_000_000 + number,
            "battery": number % 101,
        },
        separators=(",", ":"),
    )


def document(number: int) -> str:
    links = {f"{kind}_url": f"https://api.example/orders/{number}/{kind}{{/id}}" for kind in range(60)}
    lines = [{"article": f"A-{n}", "text": "a line of the order, as customers see it", "n": n} for n in range(30)]
    return json.dumps(
        {
            "state": "open",
            "links": links,
            "order": {
                "number": number,
                "lines": lines,
                "customer": {"name": f"Customer {number}", "address": {"city": "Köln", "zip": "50667"}, **links},
                "placed_at": "2026-01-02T03:04:05+01:00",
            },
            "meta": {"score": 0.5, "tags": ["a", "b"]},
        },
        ensure_ascii=False,
    )


def rate(run: Callable[[], object], count: int) -> float:
    """Items a second: the median of RUNS runs."""
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return count / statistics.median(seconds)


def measure(messages: int, documents: int) -> dict[str, Any]:
    import duckdb
    import pyarrow as pa

    from include.streams.lake.engine import quoted
    from include.streams.validators import rows

    with duckdb.connect(config={"threads": 2}) as connection, tempfile.TemporaryDirectory(prefix="foreign-") as folder:
        connection.execute("set timezone = 'UTC'")
        connection.execute(rows.MACROS)

        def landed(name: str, texts: list[str]) -> None:
            count = len(texts)
            columns = {
                "partition": pa.array([0] * count, pa.int32()),
                "offset": pa.array(range(count), pa.int64()),
                "timestamp": pa.array([None] * count, pa.timestamp("us", "UTC")),
                "value": texts,
            }
            connection.register("texts", pa.table(columns))
            connection.execute(f"copy texts to '{folder}/{name}.parquet' (format parquet, compression zstd)")
            connection.execute(f"create view {name} as from '{folder}/{name}.parquet'")

        def fast_path(of: Topic, source: str) -> Callable[[], None]:
            target = Path(folder) / "fast.parquet"

            def run() -> None:
                query = rows.fast_path_sql(of, f"from {source}")
                connection.execute(f"copy ({query}) to '{target}' (format parquet, compression zstd)")

            run()
            undecided = connection.execute(
                f"select count(*) from '{target}' where {quoted(rows.NEEDS_PARSER)}"
            ).fetchone()
            if undecided != (0,):
                raise AssertionError(f"{undecided} messages are not decided in the set")
            return run

        landed("flat", [message(number) for number in range(messages)])
        texts = [document(number) for number in range(documents)]
        landed("nested", texts)
        own, foreign = (rate(fast_path(of, "flat"), messages) for of in (OWN, FOREIGN))
        parsed = [text.encode() for text in texts[:1_000]]
        return {
            "own": round(own),
            "foreign": round(foreign),
            "ratio": round(foreign / own, 2),
            "documents": round(rate(fast_path(NESTED, "nested"), documents)),
            "documents_parsed": round(rate(lambda: [NESTED.parse(value) for value in parsed], len(parsed))),
            "document_bytes": len(parsed[0]),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=400_000)
    parser.add_argument("--documents", type=int, default=6_000)
    options = parser.parse_args()
    print_result("bench-foreign", measure(options.messages, options.documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
