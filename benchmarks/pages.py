"""Measures the Streams page with a large project, on a real PostgreSQL.

    python -m benchmarks.pages [--consumers 500] [--topics 200] [--letters 100000]

It fills a new database with a day of a busy project, and requests each view as a browser does, from an application that
has read nothing before. Kafka, Kafka Connect and the store are not there: the page names them and shows the rest. The
last line is a JSON object.

- slowest_view_ms: the slowest view, the median of its requests. The goal is 500.
- views: {view: median in milliseconds}.
- first_ms: the very first request of the process, which opens the connections to the database.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import create_engine, text

from benchmarks.bench_stack import say
from benchmarks.results import print_result
from include.streams import Consumer, Contract, LandingConsumer, Package, Project, Registry, Topic
from stack import Stack

REQUESTS = 7


class Order(Contract):
    version: Literal[1]
    number: str

    @property
    def event_id(self) -> str:
        return self.number


def project_of(consumers: int, topics: int) -> Project:
    """A project with these numbers of consumers and landed topics; every tenth consumer reads a landing table."""
    landed = [
        Topic(f"landed-{n:03}", Order, key="number", partitions=6, retention=timedelta(days=7), landed=True)
        for n in range(topics)
    ]
    standard = [LandingConsumer(name=f"batch_{n:03}", topic=landed[n]) for n in range(min(topics, consumers // 10))]
    event = consumers - len(standard)
    plain = [
        Topic(f"topic-{n:03}", Order, key="number", partitions=6, retention=timedelta(days=7)) for n in range(event)
    ]
    lane = [
        Consumer(name=f"consumer_{n:03}", topics=(topic,), effect="benchmarks.dags.effects:count")
        for n, topic in enumerate(plain)
    ]
    registry = Registry(*plain, *landed)
    return Project(Package(name="large", topics=registry, consumers=tuple(lane), landing_consumers=tuple(standard)))


# Each statement gets the numbers of the arguments. A consumer of the event lane has its topic's number.
FILL = """
insert into consumers (name) select name from all_consumers;
insert into positions (consumer, topic, partition, topic_id, next_offset)
select name, topic, p, topic, 100000 from all_consumers, generate_series(0, 5) p;
insert into consumer_samples (consumer, topic, sampled_at, lag, age_seconds)
select name, topic, now() - n * interval '5 minutes', greatest(0, (random() * 900 - 700)::int), null
from all_consumers, generate_series(0, 575) n;
insert into landing_samples (topic, sampled_at, connector, cause, not_landed, topic_id, table_rows, committed_at)
select topic, now() - n * interval '3 minutes', 'RUNNING (task 0 RUNNING)', '', (random() * 2000)::int, topic, 1000000,
    now()
from all_landed, generate_series(0, 959) n;
insert into landing_gaps (topic, topic_id, partition, start_offset, end_offset, state)
select topic, topic, n % 6, n * 1000, n * 1000 + 10, 'no_record' from all_landed, generate_series(1, 500) n;
insert into outcome_intervals (starts_at)
select date_bin('15 minutes', now() - interval '5 minutes', 'epoch') - n * interval '15 minutes'
from generate_series(1, 190) n;
insert into outcome_counts (starts_at, consumer, topic, outcome, reason, messages)
select starts_at, name, topic, outcome, reason, 500 from outcome_intervals, all_consumers,
    (values ('handled', ''), ('duplicate', ''), ('dead_letter', 'wrong_type')) as o (outcome, reason);
insert into claims (consumer, run_id, claimed_at, closed_at)
select name, 'asset_triggered__' || n || '-' || number, now() - n * interval '20 minutes',
    case when number % 5 > 0 or n > 3 then now() - n * interval '19 minutes' end
from all_consumers, generate_series(1, 72) n;
insert into claim_ranges (claim_id, topic, partition, topic_id, start_offset, readable_from, end_offset)
select id, topic, p, topic, 1000 * id, 1000 * id, 1000 * id + 500
from claims join all_consumers on name = consumer, generate_series(0, 5) p;
insert into handled_ranges (claim_id, topic, partition, start_offset, end_offset)
select claim_id, topic, partition, start_offset, end_offset - (closed_at is null)::int * 100
from claim_ranges join claims on id = claim_id;
insert into alarms (source, kind, message)
select name, 'lag', 'many messages behind (docs/runbooks/lag-grows.md)' from all_consumers where number % 20 = 0;
"""
INBOX = """
insert into inbox (consumer, topic_id, partition, "offset", topic, contract, event_id, outcome, run_id, recorded_at)
select name, topic, p % 6, p, topic, 'Order', name || p, 'handled', 'run', now() - p % 86400 * interval '1 second'
from all_consumers, generate_series(1, 2000) p
"""


def fill(url: str, project: Project, letters: int) -> None:
    consumers = [(c.name, c.topics[0].name) for c in project.consumers]
    consumers += [(c.name, c.topic.name) for c in project.landing_consumers]
    with create_engine(url).begin() as connection:
        connection.execute(text("create temp table all_consumers (number bigint, name text, topic text)"))
        connection.execute(text("create temp table all_landed (topic text)"))
        rows = [{"number": n, "name": name, "topic": topic} for n, (name, topic) in enumerate(consumers)]
        connection.execute(text("insert into all_consumers values (:number, :name, :topic)"), rows)
        landed = [{"topic": topic} for topic in project.landed_topics]
        connection.execute(text("insert into all_landed values (:topic)"), landed)
        for statement in (*FILL.strip().split(";\n"), INBOX):
            connection.execute(text(statement.rstrip(";\n")))
    with create_engine(url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum (analyze)"))


def measure(project: Project, views: Mapping[str, str]) -> dict[str, Any]:
    """Request each view several times, each time from a new application."""
    from airflow.api_fastapi.core_api import security
    from starlette.testclient import TestClient

    # The checks of the login are Airflow's own, and not measured.
    security.requires_access_view = lambda view: lambda: None  # type: ignore[assignment,return-value]
    from include.streams.streams_page.app import make_app

    first, medians = 0.0, {}
    for view, path in views.items():
        took = []
        for _ in range(REQUESTS):
            client = TestClient(make_app(project))
            began = time.perf_counter()
            answer = client.get(path)
            took.append(1000 * (time.perf_counter() - began))
            answer.raise_for_status()
            first = first or took[0]
        medians[view] = round(statistics.median(took))
        say(f"{view}: {medians[view]} ms ({len(answer.content) // 1000} kB)")
    return {"slowest_view_ms": max(medians.values()), "views": medians, "first_ms": round(first)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--consumers", type=int, default=500)
    parser.add_argument("--topics", type=int, default=200)
    parser.add_argument("--letters", type=int, default=100_000)
    arguments = parser.parse_args()
    project = project_of(arguments.consumers, arguments.topics)
    views = {
        "overview": "/state",
        "consumer": f"/state/consumers/{project.consumers[5].name}",
        "landed topic": f"/state/topics/{project.landed_topics[0]}",
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        stack = Stack(Path(folder) / "stack", services=("postgres",))
        stack.up()
        try:
            for name, value in stack.environment().items():
                if name.startswith("AIRFLOW_CONN_"):
                    patch.setenv(name, value)
            from include.streams.operations.migrate import upgrade

            upgrade()
            say("filling the database")
            url = stack.endpoints()["databases"]["operations_db"].replace("postgresql://", "postgresql+psycopg://")
            fill(url, project, arguments.letters)
            result = measure(project, views)
        finally:
            stack.remove()
    print_result("bench-pages", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
