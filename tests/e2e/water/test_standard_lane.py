"""The standard lane in a real Airflow: readings in Kafka become hourly flows, and a run that must not go on stops it.

Everything is looked at from outside: Airflow through its REST API, tables through a catalog of the tests' own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from include.streams.landing.tables import clean_table, raw_table
from include.water.consumers import AGGREGATE_METER_READINGS
from include.water.simulators.meters import Faults, Readings
from include.water.simulators.network import Network
from include.water.topics import METER_READINGS, MeterReading
from tests.conftest import PROJECT
from tests.e2e.airflow import Airflow, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = AGGREGATE_METER_READINGS.name
DAGS = (DAG,)
# The sink commits every few seconds; a run has seven tasks, on a machine that is busy.
LANE_SECONDS = 300
START = datetime(2026, 3, 2, tzinfo=UTC)
# Meters whose counters all fall, for which the suite stops a run, with three readings each.
FALLING_METERS = 50
FALLING = 3 * FALLING_METERS


class StandardLane:
    """What has happened in the stack's tables, database and Airflow."""

    def __init__(self, stack: Any, airflow: Airflow) -> None:
        endpoints = stack.endpoints()
        self.environment = stack.environment()
        self._kafka = endpoints["kafka"]["client_config"]
        self._databases = endpoints["databases"]
        self.airflow = airflow

    def send(self, *messages: tuple[bytes, bytes | None]) -> None:
        producer = Producer({**self._kafka, "log_level": 2})
        for key, value in messages:
            producer.produce(METER_READINGS.name, key=key, value=value)
            producer.poll(0)
        assert producer.flush(60) == 0

    def send_as_one_batch(self, *messages: tuple[bytes, bytes]) -> None:
        """Send at most 500 messages to one partition, as one record batch: the sink lands all of them in one commit."""
        assert len(messages) <= 500, "a poll of Kafka Connect's consumer returns 500 records"
        producer = Producer({**self._kafka, "log_level": 2, "linger.ms": 2_000})
        for key, value in messages:
            producer.produce(METER_READINGS.name, key=key, value=value, partition=0)
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
        return int(self.query(statement, DAG)[0][0])

    def open_run(self) -> str | None:
        """The run whose claim is open."""
        rows = self.query("select run_id from claims where consumer = %s and closed_at is null", DAG)
        return rows[0][0] if rows else None

    def table(self, name: str) -> Any:
        """A table's rows, as Arrow; from a catalog that is loaded anew."""
        from include.streams.lake.catalog import load_catalog

        with pytest.MonkeyPatch.context() as patch:
            for variable, value in self.environment.items():
                if variable.startswith(("AIRFLOW_CONN_", "STORAGE_", "GCSFS_")):
                    patch.setenv(variable, value)
            return load_catalog.__wrapped__().load_table(name).scan().to_arrow()

    def published(self) -> list[dict[str, Any]]:
        """What the asset's events say, oldest first."""
        # Not through the API: Airflow 3.3 answers with 500 as long as a run that an event has started is queued.
        statement = """
            select asset_event.extra from asset_event join asset on asset.id = asset_id
            where asset.name = 'hourly_flows' order by asset_event.id
        """
        return [extra for (extra,) in self.query(statement, database="airflow_metadata")]

    def states(self, run_id: str) -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in self.airflow.tasks(run_id, DAG)}

    def runs(self) -> dict[str, str]:
        """{run id: state} of the last runs."""
        answer = self.airflow.ask("GET", f"/dags/{DAG}/dagRuns?order_by=-run_after&limit=10")
        return {run["dag_run_id"]: run["state"] for run in answer["dag_runs"]}

    def active_runs(self) -> list[str]:
        return [run_id for run_id, state in self.runs().items() if state in ("queued", "running")]


@pytest.fixture(scope="module")
def lane(whole_stack, airflow: Airflow) -> StandardLane:
    return StandardLane(whole_stack, airflow)


def test_readings_become_hourly_flows_and_the_books_balance(lane: StandardLane):
    readings = Readings(
        Network(seed=5), START, START + timedelta(hours=8), faults=Faults(bad=1, duplicates=0.02, late_hours=3)
    )
    messages = list(readings)
    before, published = lane.offsets(), len(lane.published())
    lane.send(*messages)
    wait_for(lambda: lane.offsets() - before >= len(messages), LANE_SECONDS, "every message is in a finished run")

    sent = {event.event_id for event in _events(messages)}
    clean = lane.table(clean_table(METER_READINGS))
    assert sorted(clean["event_id"].to_pylist()) == sorted(sent)
    good = len(_events(messages))
    # A run closes its claim before its event is there.
    publishes = lambda: sum(event["landed"] for event in lane.published()[published:]) == len(messages)  # noqa: E731
    wait_for(publishes, LANE_SECONDS, "every run says what it has made")
    events = lane.published()[published:]
    total = {name: sum(event[name] for event in events) for name in ("landed", "clean", "dead_lettered", "duplicates")}
    assert total == {
        "landed": len(messages),
        "clean": len(sent),
        "dead_lettered": len(messages) - good,
        "duplicates": good - len(sent),
    }
    hours = lane.table("water.meter_hours")
    known = [row for row in hours.to_pylist() if row["litres"] is not None]
    assert len({row["meter_id"] for row in known}) > 0.9 * len(Network(seed=5).meters)
    assert {row["hour"] for row in known} >= {START + timedelta(hours=n) for n in range(1, 6)}


def test_a_failed_suite_stops_the_lane_until_its_run_is_cleared(lane: StandardLane):
    """What comes meanwhile waits, and the cleared run loses nothing."""
    before, at = lane.offsets(), START + timedelta(days=5)
    failed = _fail_a_run(lane, 100, at)
    # Now: a run closes its claim before its event is there, and the next one comes after both.
    published = len(lane.published())
    states = lane.states(failed)
    assert states["check_sets"] == "failed"
    assert states["aggregate"] == states["publish"] == "upstream_failed"

    def waits() -> bool:
        others = set(lane.active_runs()) - {failed}
        return bool(others) and all(lane.states(run).get("wait_for_readings") == "deferred" for run in others)

    wait_for(waits, LANE_SECONDS, "the next run waits in the triggerer")
    later = [_reading("M-000002", at + timedelta(minutes=n), 20_000_000 + n) for n in range(3)]
    landed = lane.table(raw_table(METER_READINGS)).num_rows
    lane.send(*later)
    lands = lambda: lane.table(raw_table(METER_READINGS)).num_rows == landed + len(later)  # noqa: E731
    wait_for(lands, LANE_SECONDS, "what comes meanwhile has landed")
    assert lane.offsets() == before
    assert lane.open_run() == failed, "nothing new is claimed while a failed run has its claim"
    _accept_and_clear(lane, failed)
    wait_for(lambda: lane.offsets() - before == FALLING + len(later), LANE_SECONDS, "the lane goes on")
    wait_for(
        lambda: sum(event["clean"] for event in lane.published()[published:]) == FALLING + len(later),
        LANE_SECONDS,
        "both runs say what they have made",
    )
    assert lane.open_run() is None
    assert _readings_since(lane, at).total() == FALLING + len(later)


def _fail_a_run(lane: StandardLane, first_meter: int, at: datetime) -> str:
    """The counters of many meters fall: odd, but each reading keeps its contract. The run that has failed."""
    # One batch: in two commits of the sink they would be two runs, of too few meters for the suite to judge.
    lane.send_as_one_batch(
        *(
            _reading(f"M-{first_meter + meter:06d}", at + timedelta(minutes=20 * n), 10_000_000 - 1_000 * n)
            for meter in range(FALLING_METERS)
            for n in range(3)
        )
    )
    return _wait_for_failed_run(lane)


def _accept_and_clear(lane: StandardLane, failed: str) -> None:
    """As a person does. The run that waits, the next of a continuous Dag, is ended by hand: that saves its minutes."""
    (claim_id,) = lane.query("select id from claims where run_id = %s", failed)[0]
    command = [
        sys.executable,
        "-m",
        "include.streams.validators",
        "accept",
        DAG,
        str(claim_id),
        "--reason",
        "a test of meters",
    ]
    subprocess.run(command, check=True, cwd=PROJECT, env={**os.environ, **lane.environment}, capture_output=True)
    lane.airflow.ask(
        "POST", f"/dags/{DAG}/clearTaskInstances",
        dry_run=False, dag_run_id=failed, only_failed=True, include_downstream=True, reset_dag_runs=True,
    )  # fmt: skip
    for waiting in set(lane.active_runs()) - {failed}:
        lane.airflow.ask("PATCH", f"/dags/{DAG}/dagRuns/{waiting}", state="success")
    lane.airflow.wait_for_success(failed, DAG, LANE_SECONDS)


def _readings_since(lane: StandardLane, moment: datetime) -> Counter[str]:
    """{meter: clean readings from then on}"""
    rows = lane.table(clean_table(METER_READINGS)).to_pylist()
    return Counter(row["meter_id"] for row in rows if row["read_at"] >= moment)


def _wait_for_failed_run(lane: StandardLane) -> str:
    def failed() -> str | None:
        run_id = lane.open_run()
        return run_id if run_id and lane.airflow.run(run_id, DAG)["state"] == "failed" else None

    try:
        return wait_for(failed, LANE_SECONDS, "the run fails")
    except AssertionError as error:
        seen = {run_id: lane.states(run_id) for run_id in {*lane.active_runs(), lane.open_run()} if run_id}
        raise AssertionError(f"{error}; open claim of {lane.open_run()}; {seen}") from None


def _reading(meter_id: str, read_at: datetime, litres: int) -> tuple[bytes, bytes]:
    event = MeterReading(version=1, meter_id=meter_id, district_id="harbour", read_at=read_at, litres_total=litres)
    return METER_READINGS.serialize(event)


def _events(messages: list[tuple[bytes, bytes | None]]) -> list[MeterReading]:
    """The events of the messages that keep their contract."""
    from include.streams.contracts import ContractViolation

    found = []
    for _, value in messages:
        try:
            found.append(METER_READINGS.parse(value))
        except ContractViolation:
            continue
    return found  # type: ignore[return-value]
