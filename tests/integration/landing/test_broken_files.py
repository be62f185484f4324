"""Files of a landing table that the store has lost or truncated: their records are read from Kafka again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow as pa
import pytest

from include.streams.contracts import Registry
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import OffsetRange
from include.streams.lake import maintenance
from include.streams.lake.datafiles import filesystem
from include.streams.landing import __main__ as command
from include.streams.landing import gaps, upkeep
from include.streams.landing.balance import finish
from include.streams.landing.clean import commit_clean, replaceable
from include.streams.landing.gaps import State
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed
from include.streams.landing.readiness import Lane, Readiness, check_readiness
from include.streams.landing.repair import repair
from include.streams.landing.stored import BrokenFiles, find_broken
from include.streams.landing.tables import connector_name, load_landing_table, raw_table, topic_id
from include.streams.landing.units import NotLanded
from include.streams.landing.validation import validate_unit
from tests.integration.landing.conftest import alarms_of, delete_records, landed_rows
from tests.integration.landing.test_many_holes import forget_files
from tests.integration.landing.test_run import clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

WHOLE = {"landed": 6, "clean": 6, "dead_lettered": 0, "duplicates": 0, "without_record": 0}


def store(topic):
    table = load_landing_table(topic)
    return filesystem(table.io, table.location())


def delete(topic, path: str) -> None:
    store(topic).rm(path)


def empty(topic, path: str) -> None:
    store(topic).pipe_file(path, b"")


def cut(topic, path: str) -> None:
    store(topic).pipe_file(path, store(topic).cat_file(path)[:-100])


BREAK = [delete, empty, cut]


@pytest.fixture
def lane(consumer, send):
    """A lane whose topic has six messages, which have landed in two files."""
    lane = consumer()
    values = [sale(number) for number in range(6)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values[:3])
    land(lane.topic, 0, 3, *values[3:])
    return lane


def first_file(topic) -> str:
    return LandingIndex(load_landing_table(topic)).files(0, 0)[0].path


def waiting(lane) -> Lane:
    return Lane(lane.name, lane.topic.name, "new", CONN_ID, 0.0, 3600.0)


@pytest.mark.parametrize("damage", BREAK)
def test_records_of_a_file_that_breaks_after_the_plan_are_read_from_kafka(lane, damage: Callable):
    units = claim_landed(lane, "run-1")
    broken = first_file(lane.topic)
    damage(lane.topic, broken)
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    finish(lane, summary, "run-1")
    assert counts(summary) == WHOLE
    assert clean_rows(lane.topic) == [(0, number, str(number)) for number in range(6)]
    message, is_open = alarms_of(raw_table(lane.topic))["landing_gap"]
    assert broken in message
    assert "removed from the table" in message
    assert not is_open
    # Later readers of the table find the records too.
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == list(range(6))
    assert counts(run(lane)) == WHOLE


def test_a_run_continues_when_kafka_no_longer_has_the_records_of_a_file(lane, admin):
    units = claim_landed(lane, "run-1")
    delete(lane.topic, first_file(lane.topic))
    delete_records(admin, lane.topic, 0, 3)
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    finish(lane, summary, "run-1")
    assert counts(summary) == {**WHOLE, "landed": 3, "clean": 3, "without_record": 3}
    message, is_open = alarms_of(raw_table(lane.topic))["messages_lost"]
    assert "[0, 3). They are lost" in message
    assert is_open


def test_an_unavailable_store_makes_no_file_broken(lane, monkeypatch):
    unit, *_ = claim_landed(lane, "run-1")
    before = landed_rows(lane.topic)

    def away(*_, **__):
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        for name in ("get", "info"):
            patch.setattr(store(lane.topic), name, away)
        with pytest.raises(OSError, match="the store is away"):
            validate_unit(lane, unit, "run-1")
    assert landed_rows(lane.topic) == before
    assert alarms_of(raw_table(lane.topic)) == {}
    assert counts(run(lane)) == WHOLE


@pytest.fixture
def sparse(consumer, send):
    """A lane whose first file lacks offsets between its bounds, so its offset column must be read."""
    lane = consumer()
    values = [sale(number) for number in range(6)]
    send(lane.topic, *values)
    gaps.record_outcome(lane.topic.name, topic_id(load_landing_table(lane.topic)), 0, State.no_record, [(1, 2)])
    rows = {"offset": pa.array([0, 2], pa.int64()), "partition": pa.array([0, 0], pa.int32())}
    values_there = [values[0].decode(), values[2].decode()]
    times = pa.array([datetime(2026, 1, 5, tzinfo=UTC)] * 2, pa.timestamp("us", tz="UTC"))
    table = pa.table({**rows, "topic": [lane.topic.name] * 2, "timestamp": times, "value": values_there})
    schema = load_landing_table(lane.topic).schema().as_arrow()
    load_landing_table(lane.topic).append(table.select(schema.names))
    land(lane.topic, 0, 3, *values[3:])
    forget_files()
    return lane


@pytest.mark.parametrize("damage", BREAK)
def test_a_broken_file_stops_neither_the_sensor_nor_the_claim(sparse, damage: Callable):
    broken = first_file(sparse.topic)
    damage(sparse.topic, broken)
    forget_files()
    assert check_readiness(waiting(sparse)) is Readiness.ready
    assert check_readiness(waiting(sparse), verify_too=False) is Readiness.ready
    forget_files()
    assert counts(run(sparse)) == {**WHOLE, "landed": 5, "clean": 5, "without_record": 1}
    assert broken in alarms_of(raw_table(sparse.topic))["landing_gap"][0]


def test_the_nightly_check_repairs_a_table_with_a_broken_file(sparse):
    delete(sparse.topic, first_file(sparse.topic))
    forget_files()
    found = upkeep.maintain_landing_table(sparse.topic, [], grace=timedelta())
    assert found is not None
    assert found["removed"] is not None, "the table is known to be complete"
    assert [offset for _, offset, _ in landed_rows(sparse.topic)] == [0, 2, 3, 4, 5]


def test_a_retry_and_a_second_lane_work_after_a_truncated_file_was_removed(lane, consumer, monkeypatch):
    other = replace(lane, name=f"{lane.name}-other")
    units, others = claim_landed(lane, "run-1"), claim_landed(other, "run-1")
    cut(lane.topic, first_file(lane.topic))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("include.streams.landing.broken_files.repair", killed)
        with pytest.raises(KeyboardInterrupt):
            validate_unit(lane, units[0], "run-1")
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == [3, 4, 5]
    assert alarms_of(raw_table(lane.topic))["landing_gap"][1], "the alarm is open as long as records are missing"
    for each, planned in ((lane, units), (other, others)):
        summary = commit_clean(each, [validate_unit(each, unit, "run-1") for unit in planned], "run-1")
        assert counts(summary)["landed"] == 6
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == list(range(6))


def test_clean_rows_stay_when_their_landed_file_and_records_are_gone(lane, admin):
    """The run is cleared later; the rows that it has committed are the last copy."""
    units = claim_landed(lane, "run-1")
    finish(lane, commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1"), "run-1")
    delete(lane.topic, first_file(lane.topic))
    delete_records(admin, lane.topic, 0, 3)
    again = claim_landed(lane, "run-1")
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in again], "run-1")
    finish(lane, summary, "run-1")
    assert counts(summary) == {**WHOLE, "landed": 3, "clean": 3, "without_record": 3}
    assert clean_rows(lane.topic) == [(0, number, str(number)) for number in range(6)]


def test_markers_between_lost_offsets_make_no_ranges(sparse, admin):
    """A topic with transactions has thousands of markers, and each range would make the filters longer."""
    run(sparse)
    rows = clean_rows(sparse.topic)
    delete(sparse.topic, first_file(sparse.topic))
    delete_records(admin, sparse.topic, 0, 3)
    forget_files()
    again = run(sparse)
    assert counts(again) == {**WHOLE, "landed": 3, "clean": 3, "without_record": 3}
    (left,) = replaceable(sparse, [OffsetRange(sparse.topic.name, topic_id(load_landing_table(sparse.topic)), 0, 0, 6)])
    assert (left.start, left.end) == (3, 6)
    assert clean_rows(sparse.topic) == rows


def test_a_store_that_loses_every_repair_fails_the_task(lane, monkeypatch):
    units = claim_landed(lane, "run-1")
    cut(lane.topic, first_file(lane.topic))

    def repaired_in_vain(topic, *arguments, **options):
        done = repair(topic, *arguments, **options)
        cut(topic, first_file(topic))
        return done

    with monkeypatch.context() as patch:
        patch.setattr("include.streams.landing.broken_files.repair", repaired_in_vain)
        with pytest.raises(BrokenFiles):
            validate_unit(lane, units[0], "run-1")
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    assert counts(summary) == WHOLE


def test_a_truncated_upload_with_a_matching_size_is_found_broken(lane):
    """PyIceberg writes the size into the table that the store reports after the upload."""
    path = first_file(lane.topic)
    data = store(lane.topic).cat_file(path)[:-100]
    store(lane.topic).pipe_file(path, data)
    (file,) = [one for one in LandingIndex(load_landing_table(lane.topic)).files(0, 0) if one.path == path]
    io = load_landing_table(lane.topic).io
    assert list(find_broken(io, [replace(file, size_bytes=len(data))]).values()) == ["is not a complete Parquet file"]


def test_a_run_closes_even_if_a_file_breaks_after_its_commit(sparse):
    units = claim_landed(sparse, "run-1")
    summary = commit_clean(sparse, [validate_unit(sparse, unit, "run-1") for unit in units], "run-1")
    cut(sparse.topic, first_file(sparse.topic))
    forget_files()
    finish(sparse, summary, "run-1")
    assert [offset for _, offset, _ in landed_rows(sparse.topic)] == [0, 2, 3, 4, 5]


def test_a_removed_file_below_all_claims_keeps_its_alarm_until_the_repair(lane, consumer, monkeypatch):
    """Removed by a cleared run: no later claim and no check covers its offsets."""
    run(lane)
    upkeep.maintain_landing_table(lane.topic, [lane])
    units = claim_landed(lane, "run-1")
    delete(lane.topic, first_file(lane.topic))
    with monkeypatch.context() as patch:
        patch.setattr("include.streams.landing.broken_files.repair", lambda *_, **__: None)
        patch.setattr("include.streams.landing.planning.repair", lambda *_, **__: None)
        with pytest.raises(NotLanded):
            validate_unit(lane, units[0], "run-1")
    assert check_readiness(waiting(lane)) is Readiness.no_data
    assert upkeep.maintain_landing_table(lane.topic, [lane]) == {"bundled": 0, "removed": None}
    assert alarms_of(raw_table(lane.topic))["landing_gap"][1]
    validate_unit(lane, units[0], "run-1")
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == list(range(6))


def test_the_commands_name_broken_files_and_repair_them(sparse, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_registry", lambda reference: Registry(sparse.topic))

    def ask(name: str) -> tuple[int, str]:
        code = command.main(["--registry", "any:thing", name, connector_name(sparse.topic)])
        return code, capsys.readouterr().out

    broken = first_file(sparse.topic)
    delete(sparse.topic, broken)
    forget_files()
    code, said = ask("gaps")
    assert (code, broken in said) == (1, True)
    assert ask("repair") == (0, f"{raw_table(sparse.topic)}: 2 records appended, 0 offsets hold no record\n")
    assert ask("gaps") == (0, f"{raw_table(sparse.topic)}: complete\n")


def test_files_are_bundled_without_a_broken_one(consumer, send, monkeypatch):
    lane = consumer()
    values = [sale(number) for number in range(6)]
    for partition in (0, 1):
        send(lane.topic, *values, partition=partition)
        for offset, value in enumerate(values):
            land(lane.topic, partition, offset, value)
    run(lane)
    broken = first_file(lane.topic)
    delete(lane.topic, broken)
    monkeypatch.setattr(maintenance, "bundle_small_files", partial(maintenance.bundle_small_files, min_files=2))
    found = upkeep.maintain_landing_table(lane.topic, [lane])
    assert found is not None
    assert found["bundled"] == 6
    assert broken in alarms_of(raw_table(lane.topic))["landing_gap"][0]
