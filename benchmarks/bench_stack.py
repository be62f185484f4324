"""A local stack for benchmarks, with their Dags, and functions to send messages and to see effects from outside."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from sqlalchemy import Engine, create_engine, text

from stack import Stack
from stack.stack import PROJECT

FOLDER = PROJECT / ".stack" / "benchmarks"
DAGS = PROJECT / "benchmarks" / "dags"
_DAG = re.compile(r"^@dag\(.*?^def (\w+)", re.MULTILINE | re.DOTALL)


def say(line: str) -> None:
    """Print progress to stderr, because the last line of stdout is the result."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


class BenchStack:
    """A running stack, with connections to its services."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        endpoints = stack.endpoints()
        self.airflow: dict[str, str] = endpoints["airflow"]
        url = endpoints["databases"]["operations_db"].replace("postgresql://", "postgresql+psycopg://")
        self.operations: Engine = create_engine(url, pool_pre_ping=True)
        self.metadata: Engine = create_engine(endpoints["databases"]["airflow_metadata"], pool_pre_ping=True)
        # One producer for all messages: the first call of a client waits half a second for its connection, and a
        # message's timestamp is the time of its produce call.
        config = {**endpoints["kafka"]["client_config"], "acks": "all", "enable.idempotence": True, "log_level": 2}
        self.producer = Producer(config)
        self._token = ""

    # Messages

    def send(
        self, topic: str, values: list[bytes], pause: float = 0.0, keys: Sequence[bytes | None] | None = None
    ) -> list[float]:
        """Produce one value after the other with a pause, and wait for the acknowledgements.

        Returns:
            The timestamps of the messages, in seconds.
        """
        stamps: list[float] = []

        def delivered(error, message) -> None:
            if error is not None:
                raise RuntimeError(f"not delivered: {error}")
            stamps.append(message.timestamp()[1] / 1000)

        for value, key in zip(values, keys or [None] * len(values), strict=True):
            while True:
                try:
                    self.producer.produce(topic, value, key, on_delivery=delivered)
                    break
                except BufferError:
                    # The client's queue is full: acknowledgements make room.
                    self.producer.poll(0.1)
            self.producer.poll(pause)
        self.producer.flush(120)
        if len(stamps) != len(values):
            raise RuntimeError(f"{len(values) - len(stamps)} messages were not acknowledged")
        return stamps

    def read(self, topic: str) -> list[tuple[dict[str, bytes | None], bytes]]:
        """(headers, value) of every record of a topic, read by an independent consumer."""
        config = self.stack.endpoints()["kafka"]["client_config"]
        reader = Consumer({**config, "group.id": "independent", "enable.partition.eof": True})
        partitions = reader.list_topics(topic, timeout=20).topics[topic].partitions
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        records, ended = [], 0
        while ended < len(partitions):
            record = reader.poll(20)
            if record is None:
                raise TimeoutError(f"topic {topic}: no end within 20 s")
            if record.error() is not None:
                ended += 1
                continue
            records.append((dict(record.headers() or ()), record.value()))
        reader.close()
        return records

    def records(self, topic: str, header: str) -> list[tuple[bytes | None, bytes]]:
        """(a header, the value) of every record of a topic."""
        return [(headers.get(header), value) for headers, value in self.read(topic)]

    def dead_letters(self, topic: str) -> set[tuple[str, int, int]]:
        """(topic, partition, offset) of the messages in a dead-letter topic, from the headers of its records."""
        names = ("dlq.topic", "dlq.partition", "dlq.offset")
        places = [tuple((headers.get(name) or b"").decode() for name in names) for headers, _ in self.read(topic)]
        return {(name, int(partition), int(offset)) for name, partition, offset in places if name}

    # Effects, seen from another session

    def query(self, statement: str, **values: Any) -> list[tuple]:
        with self.operations.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement), values)]

    def execute(self, statement: str, **values: Any) -> None:
        with self.operations.begin() as connection:
            connection.execute(text(statement), values)

    def effects(self, lane: str) -> int:
        return self.query("select count(*) from bench_effects where lane = :lane", lane=lane)[0][0]

    # Airflow

    def request(self, method: str, path: str, body: dict | None = None) -> dict:
        """Airflow's REST API."""
        if not self._token:
            login = {"username": self.airflow["username"], "password": self.airflow["password"]}
            self._token = self._http("POST", "/auth/token", login, {})["access_token"]
        return self._http(method, f"/api/v2{path}", body, {"Authorization": f"Bearer {self._token}"})

    def _http(self, method: str, path: str, body: dict | None, headers: dict[str, str]) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.airflow["url"] + path, data, {"Content-Type": "application/json", **headers}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")

    def runs(self, dag_id: str) -> dict[str, int]:
        """{state: number} of a Dag's runs."""
        with self.metadata.connect() as connection:
            query = text("select state, count(*) from dag_run where dag_id = :dag_id group by 1")
            return {state: number for state, number in connection.execute(query, {"dag_id": dag_id})}

    def wait_for_dags(self, folder: Path = DAGS) -> set[str]:
        """Wait until every Dag file is parsed, because an earlier run would be lost; returns the ids of the Dags."""
        wanted = {name for path in folder.rglob("*.py") for name in _DAG.findall(path.read_text())}

        def known() -> set[str]:
            return {dag["dag_id"] for dag in self.request("GET", "/dags?limit=100")["dags"]}

        self.wait_until(lambda: wanted <= known(), f"the Dag files of {folder} to be read", 90)
        return wanted

    @contextlib.contextmanager
    def connection(self, conn_id: str, url: str) -> Iterator[None]:
        """Define an HTTP connection in Airflow for the duration of the block."""
        self.request("POST", "/connections", {"connection_id": conn_id, "conn_type": "http", "host": url})
        try:
            yield
        finally:
            self.request("DELETE", f"/connections/{conn_id}")

    def restart_with(self, environment: dict[str, str]) -> "BenchStack":
        """Restart the processes of the same stack, with additional settings."""
        self.stack.down()
        stack = Stack(
            self.stack.folder,
            services=self.stack.service_names,
            report=say,
            environment={**self.stack.overrides, **environment},
        )
        stack.up()
        os.environ.update(stack.environment())
        return BenchStack(stack)

    def run_only(self, dag_ids: set[str], folder: Path) -> None:
        """Wait until every Dag file of a folder is parsed, and pause its other Dags."""
        for dag_id in self.wait_for_dags(folder) - dag_ids:
            self.pause(dag_id)

    def pause(self, dag_id: str, is_paused: bool = True) -> None:
        self.request("PATCH", f"/dags/{dag_id}?update_mask=is_paused", {"is_paused": is_paused})

    @contextlib.contextmanager
    def watching(self, dag_id: str) -> Iterator[None]:
        """Unpause a Dag and wait until the watcher of its asset, which has the Dag's name, is in the triggerer.

        All triggers that poll Kafka with the provider's hooks share one thread of the triggerer. The stock trigger
        occupies this thread: another trigger would get one message a second. So only one is active at a time.
        """
        self._watch(dag_id, True)
        try:
            yield
        finally:
            self._watch(dag_id, False)

    def _watch(self, dag_id: str, wanted: bool) -> None:
        self.pause(dag_id, not wanted)
        # Airflow adds and removes watchers when it parses the file.
        self.request("PUT", f"/parseDagFile/{self.request('GET', f'/dags/{dag_id}')['file_token']}")
        query = text("select count(*) from asset_watcher join asset on asset.id = asset_id where asset.name = :name")

        def is_watched() -> bool:
            with self.metadata.connect() as connection:
                return bool(connection.scalar(query, {"name": dag_id}))

        self.wait_until(lambda: is_watched() == wanted, f"the watcher of {dag_id} to {'come' if wanted else 'go'}", 120)

    def wait_for_count(
        self,
        count: Callable[[], int],
        wanted: int,
        timeout: float,
        *,
        quiet: float | None = None,
        pause: float = 0.005,
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[int, float]:
        """Wait until a count is `wanted`, time is up, or the count has not changed for `quiet` seconds.

        `progress` is called with each new count.

        Returns:
            (the count, the time at which it was reached).
        """
        deadline = time.time() + timeout
        seen, seen_at = count(), time.time()
        while seen < wanted and time.time() < deadline and (quiet is None or time.time() - seen_at < quiet):
            time.sleep(pause)
            if (now := count()) != seen:
                seen, seen_at = now, time.time()
                progress(seen)
        return seen, seen_at

    def wait_until(self, true: Callable[[], Any], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:.0f} s for {what}")
            time.sleep(0.2)


@contextlib.contextmanager
def fresh_stack(services: tuple[str, ...]) -> Iterator[Stack]:
    """A new stack with these services, removed at the end of the block with everything in its folder.

    This process gets the stack's environment. The logs of a failed run are kept.
    """
    # TERM, and Ctrl-C also in a shell's background, must not leave the stack's processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Removes what a killed run left, including its processes.
    Stack(FOLDER).remove()
    stack = Stack(FOLDER, services=services, report=say)
    try:
        stack.up()
        os.environ.update(stack.environment())
        yield stack
    except BaseException:
        if (logs := FOLDER / "logs").exists():
            kept = FOLDER.parent / "benchmarks-failed-logs"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(logs, kept)
            say(f"logs are kept in {kept}")
        raise
    finally:
        stack.remove()


@contextlib.contextmanager
def bench_stack(
    environment: dict[str, str] | None = None, dags: Path = DAGS, services: tuple[str, ...] = ("postgres", "kafka")
) -> Iterator[BenchStack]:
    """A new stack with the benchmarks' Dags (or those of another folder), topics and tables, removed at the end.

    `services` are started in addition to Airflow.
    """
    from benchmarks.consumers import SHARED_STREAM_CONN_ID, STOCK_CONN_ID, TABLES, TOPICS

    settings = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        # More than any burst: with the default of 1,024, a burst of 1,100 makes the shared stream's trigger fail.
        "AIRFLOW__TRIGGERER__SHARED_STREAM_SUBSCRIBER_QUEUE_SIZE": "100000",
        **(environment or {}),
    }
    # Without Airflow at first: the topics must exist before it starts, because the stock trigger does not wait for its
    # topic.
    with fresh_stack(services) as stack:
        rival = {**stack.endpoints()["kafka"]["client_config"], "auto.offset.reset": "earliest"}
        for conn_id, extra in (
            (STOCK_CONN_ID, {"group.id": "stock"}),
            # It refuses to start without.
            (SHARED_STREAM_CONN_ID, {"group.id": "shared-stream", "enable.auto.commit": "false"}),
        ):
            connection = {"conn_type": "kafka", "extra": {**rival, **extra}}
            settings[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)
        from include.streams.kafka.topics import create_topics

        create_topics(TOPICS)
        stack = Stack(FOLDER, services=(*services, "airflow"), report=say, environment=settings)
        stack.up()
        os.environ.update(stack.environment())
        bench = BenchStack(stack)
        bench.execute(TABLES)
        yield bench
