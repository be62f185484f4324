"""The tasks before the mapped ones: `repair_gaps`, and `plan`, which reads all facts once and passes them on."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.sdk import BaseHook
from sqlalchemy import event

from include.streams.kafka.offsets import GroupOffsets
from include.streams.lake.catalog import CONN_ID, forget_catalogs
from include.streams.landing import gaps, tasks
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed
from include.streams.landing.readiness import Lane, Readiness, check_readiness
from include.streams.landing.repairing import repair_gaps
from include.streams.landing.tables import raw_table, sink_group
from include.streams.landing.validation import validate_unit
from include.streams.operations.database import engine
from tests.integration.kafka.conftest import read_all
from tests.integration.landing.conftest import (
    alarms_of,
    finish,
    land,
    landed_rows,
    offsets_of,
    plan_run,
    sink_commits,
)
from tests.integration.landing.test_run import consumer, sale, sales
from tests.integration.landing.test_run import land as land_values

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

NOTHING = {"appended": 0, "without_record": 0, "lost": 0}


@pytest.fixture
def lossy(landed_topic, send_orders):
    """A topic with 30 messages in its only partition; the sink has lost ten in the middle."""
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    land(topic, 0, range(0, 10), range(20, 30))
    sink_commits(topic, _0=30)
    return topic


def offsets(units) -> list[int]:
    return [offset for _, offset in offsets_of(units)]


def test_a_plan_without_a_repair_claims_up_to_the_gap(lossy, lane):
    consumer = lane(lossy)
    units = claim_landed(consumer, "first")
    assert offsets(units) == list(range(10))
    finish(units)
    assert claim_landed(consumer, "second") == []
    # The sensor of the next run finds the gap, and its run repairs it.
    assert check_readiness(Lane(consumer.name, lossy.name, "third", consumer.conn_id, 0.0, 3600.0)) is Readiness.ready
    assert repair_gaps(consumer, "third") == {**NOTHING, "appended": 10}
    assert offsets(claim_landed(consumer, "third")) == list(range(10, 30))
    assert len(landed_rows(lossy)) == 30


def killed(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("retried", ["repair_gaps", "plan"])
def test_a_retry_after_a_kill_between_repair_and_plan_completes(lossy, lane, retried):
    consumer = lane(lossy)
    assert repair_gaps(consumer, "run") == {**NOTHING, "appended": 10}
    if retried == "repair_gaps":
        assert repair_gaps(consumer, "run") == NOTHING
    assert offsets(claim_landed(consumer, "run")) == list(range(30))
    assert len(landed_rows(lossy)) == 30
    assert not alarms_of(raw_table(lossy))["landing_gap"][1]


def test_a_retry_after_a_kill_in_the_repair_appends_nothing_again(lossy, lane, monkeypatch):
    consumer = lane(lossy)
    with monkeypatch.context() as patch:
        patch.setattr(gaps, "record_outcome", killed)
        with pytest.raises(KeyboardInterrupt):
            repair_gaps(consumer, "run")
    assert repair_gaps(consumer, "run") == NOTHING
    assert offsets(claim_landed(consumer, "run")) == list(range(30))
    assert len(landed_rows(lossy)) == 30
    assert not alarms_of(raw_table(lossy))["landing_gap"][1]


def test_two_tries_at_once_repair_a_gap_once_and_claim_it_once(lossy, lane):
    consumer = lane(lossy)
    with ThreadPoolExecutor(2) as pool:
        repaired = list(pool.map(lambda _: repair_gaps(consumer, "run"), range(2)))
        claimed = list(pool.map(lambda _: claim_landed(consumer, "run"), range(2)))
    assert sum(each["appended"] for each in repaired) == 10
    assert len(landed_rows(lossy)) == 30
    assert claimed[0] == claimed[1]
    assert offsets(claimed[0]) == list(range(30))


def test_a_run_that_has_a_claim_repairs_nothing(lossy, lane, monkeypatch):
    consumer = lane(lossy)
    units = claim_landed(consumer, "run")
    with monkeypatch.context() as patch:
        patch.setattr(GroupOffsets, "__init__", killed)
        assert repair_gaps(consumer, "run") == NOTHING
    assert claim_landed(consumer, "run") == units


def test_a_plan_reads_the_sinks_offsets_and_the_files_once(lossy, lane, monkeypatch):
    consumer = lane(lossy)
    repair_gaps(consumer, "run")
    groups, files = [], []
    fetch, held = GroupOffsets.fetch_offsets_sync, LandingIndex.files_with_offsets
    monkeypatch.setattr(
        GroupOffsets,
        "fetch_offsets_sync",
        lambda self, *args, **kw: (groups.append(self.group), fetch(self, *args, **kw))[1],
    )
    monkeypatch.setattr(
        LandingIndex, "files_with_offsets", lambda self, *args: (files.append(args), held(self, *args))[1]
    )
    assert offsets(tasks.plan(consumer, "run")) == list(range(30))
    assert groups.count(sink_group(lossy)) == 1
    assert files == [(0, 0, 30)]


@pytest.fixture
def statements():
    """The statements on the operational database."""
    found: list[str] = []

    def note(conn, cursor, statement, *_) -> None:
        found.append(" ".join(statement.lower().split()))

    event.listen(engine(), "after_cursor_execute", note)
    yield found
    event.remove(engine(), "after_cursor_execute", note)


def test_a_mapped_task_does_not_query_the_catalogs_database(consumer, send, monkeypatch, request):
    lane = consumer()
    values = [sale(1), sale(2)]
    send(lane.topic, *values)
    land_values(lane.topic, 0, 0, *values)
    (unit,) = json.loads(json.dumps(tasks.plan(lane, "run-1")))
    statements = request.getfixturevalue("statements")
    with monkeypatch.context() as patch:
        # No server listens at the address of the catalog.
        extra = BaseHook.get_connection(CONN_ID).extra_dejson
        nowhere = {"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "schema": "nothing", "extra": extra}
        patch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(nowhere))
        forget_catalogs()
        validated = validate_unit(lane, unit, "run-1")
    forget_catalogs()
    assert (validated["landed"], validated["good"]) == (2, 2)
    asked = [statement for statement in statements if " from " in statement]
    assert len(asked) == 1
    assert " from inbox " in asked[0]


def test_a_retry_does_not_repeat_dead_letters_sent_since_the_plan(consumer, send):
    lane = consumer()
    values = [sale(1), b"no json"]
    send(lane.topic, *values)
    land_values(lane.topic, 0, 0, *values)
    (unit,) = plan_run(lane, "run-1")
    first, second = (validate_unit(lane, unit, "run-1") for _ in range(2))
    assert {**first, "files": 0} == {**second, "files": 0}
    assert len(read_all(lane.topic.dead_letter_name)) == 1
