"""A landing consumer's lane seen from outside: tables through the tests' own catalog, Airflow through its API."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from include.streams import LandingConsumer
from include.streams.landing.tables import clean_table, raw_table
from tests.conftest import PROJECT
from tests.e2e.airflow import Airflow, wait_for

# The sink commits every few seconds; a run has up to seven tasks, and the machine is busy.
LANE_SECONDS = 300


class StandardLane:
    """The lane in the stack's tables, database and Airflow.

    Args:
        stack: The running stack.
        airflow: Its Airflow.
        consumer: The consumer; its Dag has the same name.
        asset: The name of the asset whose events have the results of runs.
        sensor: The task that waits for landed data.
    """

    def __init__(self, stack: Any, airflow: Airflow, consumer: LandingConsumer, asset: str, sensor: str) -> None:
        endpoints = stack.endpoints()
        self.environment = stack.environment()
        self.dag, self.topic, self.asset, self.sensor = consumer.name, consumer.topic, asset, sensor
        self._kafka = endpoints["kafka"]["client_config"]
        self._databases = endpoints["databases"]
        self.airflow = airflow

    def send(self, *messages: tuple[bytes, bytes | None]) -> None:
        producer = Producer({**self._kafka, "log_level": 2})
        for key, value in messages:
            producer.produce(self.topic.name, key=key, value=value)
            producer.poll(0)
        assert producer.flush(60) == 0

    def send_as_one_batch(self, *messages: tuple[bytes, bytes]) -> None:
        """Send at most 500 messages to one partition, as one record batch: the sink lands all of them in one commit."""
        assert len(messages) <= 500, "a poll of Kafka Connect's consumer returns 500 records"
        producer = Producer({**self._kafka, "log_level": 2, "linger.ms": 2_000})
        for key, value in messages:
            producer.produce(self.topic.name, key=key, value=value, partition=0)
        assert producer.flush(60) == 0

    def query(self, statement: str, *values: Any, database: str = "operations_db") -> list[tuple]:
        with psycopg.connect(self._databases[database], connect_timeout=5) as connection:
            return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]

    def offsets(self) -> int:
        """How many offsets are claimed by runs that are finished."""
        statement = """
            select coalesce(sum(end_offset - start_offset), 0) from claims join claim_ranges on claim_id = id
            where consumer = %s and closed_at is not null
        """
        return int(self.query(statement, self.dag)[0][0])

    def open_run(self) -> str | None:
        """The run whose claim is open."""
        rows = self.query("select run_id from claims where consumer = %s and closed_at is null", self.dag)
        return rows[0][0] if rows else None

    def table(self, name: str) -> Any:
        """A table's rows, as Arrow, from a new catalog."""
        from include.streams.lake.catalog import load_catalog

        with pytest.MonkeyPatch.context() as patch:
            for variable, value in self.environment.items():
                if variable.startswith(("AIRFLOW_CONN_", "STORAGE_", "GCSFS_")):
                    patch.setenv(variable, value)
            return load_catalog.__wrapped__().load_table(name).scan().to_arrow()

    def clean(self) -> Any:
        return self.table(clean_table(self.topic))

    def landed(self) -> int:
        return self.table(raw_table(self.topic)).num_rows

    def published(self) -> list[dict[str, Any]]:
        """The extras of the asset's events, oldest first."""
        # Not through the API: Airflow 3.3 answers with 500 while a run that an event has started is queued.
        statement = """
            select asset_event.extra from asset_event join asset on asset.id = asset_id
            where asset.name = %s order by asset_event.id
        """
        return [extra for (extra,) in self.query(statement, self.asset, database="airflow_metadata")]

    def states(self, run_id: str) -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in self.airflow.tasks(run_id, self.dag)}

    def runs(self) -> dict[str, str]:
        """{run id: state} of the last runs."""
        answer = self.airflow.ask("GET", f"/dags/{self.dag}/dagRuns?order_by=-run_after&limit=10")
        return {run["dag_run_id"]: run["state"] for run in answer["dag_runs"]}

    def active_runs(self) -> list[str]:
        return [run_id for run_id, state in self.runs().items() if state in ("queued", "running")]

    def other_runs_wait(self, failed: str) -> bool:
        others = set(self.active_runs()) - {failed}
        return bool(others) and all(self.states(run).get(self.sensor) == "deferred" for run in others)

    def wait_for_failed_run(self) -> str:
        def failed() -> str | None:
            run_id = self.open_run()
            return run_id if run_id and self.airflow.run(run_id, self.dag)["state"] == "failed" else None

        try:
            return wait_for(failed, LANE_SECONDS, "the run fails")
        except AssertionError as error:
            seen = {run_id: self.states(run_id) for run_id in {*self.active_runs(), self.open_run()} if run_id}
            raise AssertionError(f"{error}; open claim of {self.open_run()}; {seen}") from None

    def accept_and_clear(self, failed: str) -> None:
        """Clear a run like a person. The waiting next run of the continuous Dag is ended by hand, to save minutes."""
        (claim_id,) = self.query("select id from claims where run_id = %s", failed)[0]
        command = [
            sys.executable, "-m", "include.streams.validators", "accept", self.dag, str(claim_id), "--reason", "a test",
        ]  # fmt: skip
        subprocess.run(command, check=True, cwd=PROJECT, env={**os.environ, **self.environment}, capture_output=True)
        self.airflow.ask(
            "POST", f"/dags/{self.dag}/clearTaskInstances",
            dry_run=False, dag_run_id=failed, only_failed=True, include_downstream=True, reset_dag_runs=True,
        )  # fmt: skip
        for waiting in set(self.active_runs()) - {failed}:
            self.airflow.ask("PATCH", f"/dags/{self.dag}/dagRuns/{waiting}", state="success")
        self.airflow.wait_for_success(failed, self.dag, LANE_SECONDS)
