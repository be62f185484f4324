"""If maintenance Dags fail or do not run, alarms open without them."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from include.streams.operations import database
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.database import begin
from include.streams.operations.heartbeats import beat, report_end, report_failure
from include.streams.operations.migrate import upgrade
from include.streams.operations.tables import alarms, heartbeats
from tests.integration.kafka.test_handling import Receiver

pytestmark = pytest.mark.integration

EVERY = timedelta(minutes=5)
FAILED, SILENT = AlarmKind.dag_failed, AlarmKind.dag_silent


@pytest.fixture(autouse=True)
def no_heartbeats(services):
    upgrade()
    with begin() as connection:
        connection.execute(heartbeats.delete())
        connection.execute(alarms.delete().where(alarms.c.kind.in_((FAILED, SILENT))))


def context(
    dag_id: str = "maintain", error: Exception | None = None, map_index: int = -1, key: str | None = None
) -> dict:
    ti = SimpleNamespace(dag_id=dag_id, task_id="prune", run_id="run-1", map_index=map_index)
    return {"ti": ti, "exception": error, "dag_run": SimpleNamespace(partition_key=key)}


def open_kinds(source: str, key: str = "") -> list[str]:
    with begin() as connection:
        about = (alarms.c.source == source, alarms.c.key == key)
        mine = select(alarms.c.kind).where(*about, alarms.c.closed_at.is_(None))
        return list(connection.scalars(mine))


def last_ran(dag_id: str, ago: timedelta) -> None:
    with begin() as connection:
        when = text("update heartbeats set beat_at = now() - make_interval(secs => :ago) where dag_id = :dag_id")
        connection.execute(when, {"ago": ago.total_seconds(), "dag_id": dag_id})


def test_a_failed_task_opens_an_alarm_that_its_success_closes():
    for _ in range(2):
        report_failure(context(error=ValueError("no")))
    assert open_kinds("maintain.prune") == [FAILED]
    report_end(context())
    assert open_kinds("maintain.prune") == []


def test_the_alarm_of_one_mapped_task_is_not_closed_by_another():
    report_failure(context(error=ValueError("no"), map_index=0))
    report_end(context(map_index=1))
    assert open_kinds("maintain.prune", "map_index=0") == [FAILED]
    report_end(context(map_index=0))
    assert open_kinds("maintain.prune", "map_index=0") == []


def test_the_alarm_of_a_partition_key_is_closed_by_its_key_only():
    report_failure(context("by_key", ValueError("no"), key="SR-1-abc"))
    report_failure(context("by_key", ValueError("no"), key="SR-2-abc", map_index=3))
    report_end(context("by_key", key="SR-3-abc"))
    report_end(context("by_key"))
    assert open_kinds("by_key.prune", "SR-1-abc") == [FAILED]
    assert open_kinds("by_key.prune", "SR-2-abc,map_index=3") == [FAILED]
    report_end(context("by_key", key="SR-1-abc"))
    report_end(context("by_key", key="SR-2-abc", map_index=3))
    assert open_kinds("by_key.prune", "SR-1-abc") == open_kinds("by_key.prune", "SR-2-abc,map_index=3") == []


@pytest.mark.parametrize(
    "key", ["k" * 250, "k" * 249 + "l", "a b\n'; rm", "\x1b[2J<b>", "\ud800", "öl", "k~0123456789abcdef", " "]
)
def test_any_partition_key_gives_a_short_key_of_plain_characters(key):
    report_failure(context("any_key", ValueError("no"), key=key))
    with begin() as connection:
        mine = select(alarms.c.key).where(alarms.c.source == "any_key.prune", alarms.c.kind == FAILED)
        shown = connection.execute(mine).scalar_one()
    assert re.fullmatch(r"[A-Za-z0-9._:-]*~[0-9a-f]{16}", shown)
    assert len(shown) < 150
    # Another key that is the same after it is cut, and the text itself as a key.
    report_end(context("any_key", key=key + "x"))
    report_end(context("any_key", key=shown))
    assert open_kinds("any_key.prune", shown) == [FAILED]
    report_end(context("any_key", key=key))
    assert open_kinds("any_key.prune", shown) == []


@pytest.mark.parametrize(
    ("source", "about"),
    [
        ("by_key.prune@SR-1", {"key": "SR-1"}),
        ("by_key.prune[3]", {"map_index": 3}),
        ("by_key.prune[3]@SR-1", {"key": "SR-1", "map_index": 3}),
    ],
)
def test_an_alarm_that_the_release_before_opened_is_closed(source, about):
    with begin() as connection:
        row = alarms.insert().values(source=source, kind=FAILED, message="")
        connection.execute(row)
    report_end(context("by_key"))
    report_end(context("by_key", key="SR-2", map_index=3))
    assert open_kinds(source) == [FAILED]
    report_end(context("by_key", **about))
    assert open_kinds(source) == []


def test_a_task_whose_process_was_killed_is_reported_too():
    report_failure(context())
    assert open_kinds("maintain.prune") == [FAILED]


def test_a_silent_dag_is_reported_by_another_until_it_runs():
    beat("maintain", EVERY)
    assert beat("watch_connectors", EVERY) == []
    last_ran("maintain", timedelta(minutes=20))
    for _ in range(2):
        assert beat("watch_connectors", EVERY) == ["maintain"]
    assert open_kinds("maintain") == [SILENT]
    beat("maintain", EVERY)
    assert open_kinds("maintain") == []


def test_a_dag_that_is_late_by_a_deploy_is_not_reported():
    beat("maintain", timedelta(seconds=30))
    last_ran("maintain", timedelta(minutes=14))
    assert beat("watch_connectors", EVERY) == []


def test_a_dag_that_never_ran_is_not_reported():
    assert beat("watch_connectors", EVERY) == []
    assert open_kinds("maintain") == []


@contextmanager
def away():
    raise OperationalError("select 1", {}, ConnectionError("the database is away"))
    yield


def test_without_the_database_a_failure_reaches_the_webhook(monkeypatch):
    receiver = Receiver()
    connection = {"conn_type": "http", "host": f"http://127.0.0.1:{receiver.server_port}"}
    monkeypatch.setenv("AIRFLOW_CONN_ALARM_WEBHOOK", json.dumps(connection))
    monkeypatch.setattr(database, "begin", away)
    report_failure(context(error=ConnectionError("away"), key="SR-1"))
    receiver.shutdown()
    ((_, request),) = receiver.seen
    assert [request[name] for name in ("source", "kind", "key")] == ["maintain.prune", "dag_failed", "SR-1"]
    assert request["text"].startswith("alarm opened: maintain.prune dag_failed SR-1: run run-1 failed: ConnectionError")
    assert request["runbook"] == "docs/runbooks/a-dag-is-silent.md"


def test_without_database_and_webhook_a_failure_is_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(database, "begin", away)
    report_failure(context(error=ConnectionError("away")))
    assert "alarm: source=maintain.prune kind=dag_failed" in caplog.text


def test_without_database_and_lookup_both_errors_are_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(database, "begin", away)
    monkeypatch.setenv("AIRFLOW_CONN_ALARM_WEBHOOK", "{cannot be read")
    report_failure(context(error=ConnectionError("away")))
    assert "alarm: source=maintain.prune kind=dag_failed" in caplog.text
    assert "not delivered to the webhook either: connection alarm_webhook: the look-up failed" in caplog.text
