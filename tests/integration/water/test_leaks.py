"""Leaks on a real PostgreSQL, broker and object store: trained, judged, reported once, produced."""

from __future__ import annotations

import importlib.util
import json
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import delete, select

from include.project import PROJECT
from include.streams.kafka.connection import client_config
from include.streams.kafka.producer import DeliveryFailed
from include.streams.lake import buckets
from include.streams.models.store import ModelStore
from include.streams.operations.database import begin
from include.water.leaks import confirmed, detection, training
from include.water.leaks.detection import Night
from include.water.leaks.features import features
from include.water.leaks.model import NAME, champion
from include.water.leaks.scoring import LeakPeriod
from include.water.simulators.crews import confirm_planted
from include.water.tables import confirmed_leaks, judged_nights, leaks
from include.water.topics import LEAKS_DETECTED, LeakDetected
from tests.conftest import PROJECT as ROOT
from tests.integration.water.test_seismic_feed import ends, read
from tests.unit.water.leak_data import simulated

pytestmark = pytest.mark.integration

DAG_FILE = ROOT / "dags" / "batch" / "detect_leaks.py"


@pytest.fixture
def tables(landing_services) -> None:
    PROJECT.prepare()
    with begin() as connection:
        for table in (leaks, judged_nights, confirmed_leaks):
            connection.execute(delete(table))


@pytest.fixture
def store(landing_services, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    name = f"test-{uuid.uuid4().hex[:8]}"
    remote = buckets.bucket(name)
    remote._remote.client.create_bucket(name)
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", name)
    return ModelStore(NAME, remote)


def night(day: int, *, litres: float = 500.0, alarm: bool = True, data: str = "a", district: str = "valley") -> Night:
    return Night(district, date(2026, 11, day), data, 0.8, alarm, 0.7, litres)


def record(*nights: Night, version: str = "v1") -> dict[str, int]:
    with begin() as connection:
        return detection.record(connection, version, nights)


def reported() -> list[str]:
    with begin() as connection:
        return detection.unproduced(connection)


def test_a_leak_of_many_nights_is_reported_once(tables):
    record(night(1), night(2), night(3, alarm=False), night(4))
    record(night(5), night(6))
    assert reported() == ["valley/2026-11-01/1"]
    record(night(20), night(20, district="harbour"))
    assert reported() == ["valley/2026-11-01/1", "harbour/2026-11-20/1", "valley/2026-11-20/1"]


def test_a_repeated_judgement_reports_no_leak_again(tables):
    record(night(1), night(2))
    detection.record_produced(reported())
    assert record(night(1), night(2)) == {"judged": 0, "alarms": 0, "new_leaks": 0}
    assert record(night(1, data="b", litres=550), night(2))["judged"] == 1
    assert record(night(1, data="b"), night(2), version="v2")["judged"] == 2
    # An earlier night that is found later belongs to the same leak.
    record(night(1, alarm=False, data="c"), Night("valley", date(2026, 10, 31), "a", 0.9, True, 0.9, 500.0))
    assert reported() == []


def test_a_leak_that_has_doubled_is_reported_as_another_leak(tables):
    record(night(1, litres=150), night(2, litres=300), night(3, litres=560), night(4, litres=900))
    assert reported() == ["valley/2026-11-01/1", "valley/2026-11-03/1"]
    record(night(5, litres=1_050))
    assert len(reported()) == 2
    record(night(6, litres=1_200))
    assert reported()[-1] == "valley/2026-11-06/1"


def record_and_be_killed(night: Night) -> None:
    with begin() as connection:
        detection.record(connection, "v1", [night])
        raise KeyboardInterrupt


def test_the_next_run_produces_the_leaks_of_a_killed_run(tables):
    with pytest.raises(KeyboardInterrupt):
        record_and_be_killed(night(1))
    assert reported() == []
    record(night(1))
    keys = reported()
    # Killed before the leak was produced, or before that was recorded: the same message, byte for byte.
    assert list(detection.messages(keys)) == list(detection.messages(reported()))
    detection.record_produced(keys)
    detection.record_produced(keys)
    assert reported() == []


def operator():
    spec = importlib.util.spec_from_file_location("detect_leaks", DAG_FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.detect_leaks().get_task("produce")


def test_the_dags_task_produces_valid_leaks(tables):
    since = {LEAKS_DETECTED.name: ends(LEAKS_DETECTED.name)}
    record(night(1), night(1, district="harbour"))
    produce = operator()
    produce.producer_function_args = [reported()]
    produce.execute({})
    events = [LEAKS_DETECTED.parse(record.value()) for record in read(LEAKS_DETECTED.name, since)]
    assert all(isinstance(event, LeakDetected) for event in events)
    assert {event.event_id for event in events} == {"valley/2026-11-01/1", "harbour/2026-11-01/1"}


def test_a_failed_delivery_fails_the_task_and_keeps_the_leak_open(tables, monkeypatch):
    record(night(1))
    produce = operator()
    produce.producer_function_args = [reported()]
    produce.topic = "no.such.topic"
    impatient = {**client_config(), "message.timeout.ms": 1500}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": impatient}))
    with pytest.raises(DeliveryFailed):
        produce.execute({})
    assert reported() == ["valley/2026-11-01/1"]


def test_the_last_confirmation_of_a_leak_counts(tables):
    first = date(2026, 11, 1)
    with begin() as connection:
        confirmed.confirm(connection, [LeakPeriod("valley", first, confirmed.FOREVER)], "WO-1")
        assert confirmed.confirmed(connection) == [LeakPeriod("valley", first, confirmed.FOREVER)]
        confirmed.confirm(connection, [LeakPeriod("valley", first, date(2026, 11, 9))], "WO-1")
        assert confirmed.confirmed(connection) == [LeakPeriod("valley", first, date(2026, 11, 9))]


def test_planted_leaks_are_recorded_as_confirmed(tables):
    until = datetime(2026, 11, 22, tzinfo=UTC)
    assert confirm_planted(until, until - timedelta(days=60)) == confirm_planted(until, until - timedelta(days=60))
    with begin() as connection:
        assert len(connection.execute(select(confirmed_leaks)).all()) >= 12


def test_from_no_champion_to_a_champion_and_back(tables, store: ModelStore):
    nights, leaks = simulated()
    rows = nights.rows.join(features(nights.rows))
    assert champion(store).version == "baseline"
    assert "confirmed leaks" in training.train_on(store, nights, [], "run-0").reasons[0]

    outcome = training.train_on(store, nights, leaks, "run-1")
    assert outcome.promoted, outcome.reasons
    detector = champion(store)
    assert detector.version == outcome.version
    judged = detection.judge(detector, rows, rows["night"].max().date())
    assert any(night.alarm for night in judged)
    assert min(night.night for night in judged) == rows["night"].max().date() - timedelta(days=29)
    record(*judged, version=detector.version)
    assert record(*judged, version=detector.version)["judged"] == 0

    assert "unchanged data" in training.train_on(store, nights, leaks, "run-2").reasons[0]
    fewer = replace(nights, rows=nights.rows[nights.rows["night"] < nights.rows["night"].max()])
    assert "too little is new" in training.train_on(store, fewer, leaks, "run-3").reasons[0]
    blocked = training.train_on(store, fewer, leaks, "run-4", force=True)
    assert not blocked.promoted
    assert any("does not beat the champion" in reason for reason in blocked.reasons)

    store.roll_back(None, store.history(), reason="a test")
    assert champion(store).version == "baseline"
    again = training.train_on(store, fewer, leaks, "run-5", force=True)
    assert not again.promoted
    assert any("which was withdrawn" in reason for reason in again.reasons)


def test_detect_finds_no_leak_in_an_empty_lake(tables, store: ModelStore):
    assert detection.detect() == []
    assert not training.train_leak_model("run").promoted
