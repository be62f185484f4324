"""Hourly flows in Iceberg tables, on a real catalog and object store: in any order, twice, killed, in two processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from include.streams.contracts.__main__ import PROJECT
from include.streams.lake import engine, writing
from include.water.flows import aggregation
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, METER_DAYS, METER_HOURS, TABLES
from tests.integration.water.flows.lake import PARTITIONS, Lake, at, make_lake
from tests.unit.water.flows import reference
from tests.unit.water.flows.scenes import INLETS, scene

pytestmark = pytest.mark.integration

EVERYTHING = [{"partition": number, "start": 0, "end": 10**9} for number in range(PARTITIONS)]


@pytest.fixture
def new_lake(landing_services) -> Callable[[], Lake]:
    return lambda: make_lake(f"flows_{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def readings() -> list[reference.Reading]:
    return scene(Random(3), days=1, start=at(6))


@pytest.fixture(scope="module")
def wanted(landing_services, readings) -> list:
    """The tables after one run over all readings."""
    lake = make_lake(f"flows_{uuid.uuid4().hex[:8]}")
    lake.aggregate(lake.append(readings))
    return lake.everything()


def test_many_runs_in_any_order_give_exactly_the_flows_of_one_run(new_lake, readings, wanted):
    # By time of arrival, not of reading: every run has late readings.
    shuffled = sorted(readings, key=lambda reading: Random(str(reading)).random())
    lake = new_lake()
    runs = [lake.append(shuffled[first::3]) for first in range(3)]
    Random(2).shuffle(runs)
    for ranges in runs:
        lake.aggregate(ranges)
    assert lake.everything() == wanted
    # The result also matches the definition, for every district and night.
    hours = reference.district_hours(reference.meter_hours(readings), INLETS)
    assert {(row["district_id"], row["hour"]) for row in lake.rows(DISTRICT_HOURS).to_pylist()} == hours.keys()
    for row in lake.rows(DISTRICT_HOURS).to_pylist():
        assert row["loss_litres"] == pytest.approx(
            None if (loss := hours[row["district_id"], row["hour"]].loss) is None else float(loss), abs=0.02
        )
    assert lake.rows(DISTRICT_NIGHTS).num_rows == len(reference.nights(hours))


def test_repeated_ranges_change_no_rows_and_add_no_files(new_lake, readings, wanted):
    lake = new_lake()
    ranges = lake.append(readings)
    first = lake.aggregate(ranges)
    counts = [len(lake.files(name)) for name in TABLES]
    assert lake.aggregate(ranges) == first
    assert lake.everything() == wanted
    assert [len(lake.files(name)) for name in TABLES] == counts
    assert len(lake.files(METER_HOURS)) == len({row["hour"].date() for row in lake.rows(METER_HOURS).to_pylist()})


def test_a_run_day_by_day_gives_the_same_as_a_run_at_once(new_lake, readings, wanted, monkeypatch):
    monkeypatch.setattr(aggregation, "MAX_ROWS", 1)
    lake = new_lake()
    lake.aggregate(lake.append(readings))
    assert lake.everything() == wanted


def test_a_run_without_clean_readings_writes_nothing(new_lake):
    lake = new_lake()
    assert lake.aggregate([])["hours"] == []
    assert lake.aggregate(EVERYTHING)["hours"] == []
    assert all(lake.flow_tables[name].refresh().current_snapshot() is None for name in TABLES)


def test_a_late_reading_keeps_the_files_of_other_days(new_lake, readings):
    lake = new_lake()
    late = next(r for r in readings if r.meter_id not in INLETS.values() and at(6, 8) <= r.read_at < at(6, 12))
    lake.aggregate(lake.append(r for r in readings if r is not late))
    before = {name: lake.files(name) for name in TABLES}
    summary = lake.aggregate(lake.append([late]))
    first, last = (summary["hours"][0], summary["hours"][-1])
    neighbours = sorted(r.read_at for r in readings if r.meter_id == late.meter_id and r != late)
    near = [at for at in neighbours if abs(at - late.read_at) <= timedelta(hours=3)]
    ends = max(at for at in near if at < late.read_at), min(at for at in near if at > late.read_at)
    assert (first, last) == tuple(at.replace(minute=0, second=0, microsecond=0).isoformat() for at in ends)
    changed = before[METER_HOURS] - lake.files(METER_HOURS)
    assert len(changed) == 1
    assert "hour_day=2026-03-06" in next(iter(changed))


def test_meter_hours_older_than_the_table_of_days_are_counted(new_lake, readings, wanted):
    """After an upgrade, the week before has no meter days yet."""
    lake = new_lake()
    lake.aggregate(lake.append(readings[:-1]))
    with lake.flow_tables[METER_DAYS].refresh().transaction() as transaction:
        transaction.delete("true")
    lake.aggregate(lake.append(readings[-1:]))
    assert lake.everything() == wanted


def raise_at(monkeypatch, number: int) -> None:
    """Make a run fail before this commit (counted from 0); 4: after the last commit."""
    done, commit = 0, writing.commit

    def failing(table, change):
        nonlocal done
        if done == number:
            raise ConnectionError("planted")
        table = commit(table, change)
        done += 1
        if done == number == len(TABLES):
            raise ConnectionError("planted")
        return table

    monkeypatch.setattr(writing, "commit", failing)


def test_a_retry_finishes_a_run_that_failed_at_any_commit(new_lake, readings, wanted, monkeypatch):
    lake = new_lake()
    for number in range(len(TABLES) + 1):
        ranges = lake.append(readings[number :: len(TABLES) + 1])
        with monkeypatch.context() as patch:
            raise_at(patch, number)
            with pytest.raises(ConnectionError, match="planted"):
                lake.aggregate(ranges)
        lake.aggregate(ranges)
    assert lake.everything() == wanted


def test_a_retry_writes_the_nights_that_the_failed_try_left(new_lake, monkeypatch):
    """A meter that becomes known changes hours and nights far from its reading."""
    hours = [at(6) + timedelta(hours=n) for n in range(72)]
    meters = [(INLETS["harbour"], 100), *((f"M-{number:06d}", 10) for number in range(1, 20))]
    readings = [
        reference.Reading(meter_id, "harbour", hour, n * flow)
        for meter_id, flow in meters
        for n, hour in enumerate(hours)
    ]
    # With two silent meters, the flow of more than 5% of the meters is unknown.
    silent = [reference.Reading(f"M-00010{n}", "harbour", at(6, 15), 7) for n in range(2)]
    one_go = new_lake()
    one_go.aggregate(one_go.append([*readings, *silent]))
    lake = new_lake()
    lake.aggregate(lake.append(readings))
    assert lake.rows(DISTRICT_NIGHTS) != one_go.rows(DISTRICT_NIGHTS)
    ranges = lake.append(silent)
    with monkeypatch.context() as patch:
        raise_at(patch, TABLES.index(DISTRICT_NIGHTS))
        with pytest.raises(ConnectionError, match="planted"):
            lake.aggregate(ranges)
    lake.aggregate(ranges)
    assert lake.everything() == one_go.everything()


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_retry_finishes_a_run_killed_between_commits(new_lake, readings, wanted, commits: int):
    lake = new_lake()
    lake.append(readings)
    command = [sys.executable, "-m", "tests.integration.water.flows.lake", lake.namespace, str(commits)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any(line == "stopped\n" for line in process.stdout)
        finally:
            process.send_signal(signal.SIGKILL)
    written = [lake.flow_tables[name].refresh().current_snapshot() is not None for name in TABLES]
    assert written == [number < commits for number in range(len(TABLES))]
    lake.aggregate(EVERYTHING)
    assert lake.everything() == wanted


def test_a_given_up_task_does_not_overwrite_a_later_run(new_lake, readings, wanted, monkeypatch):
    lake = new_lake()
    first = lake.append(readings[::2])
    from include.streams.lake import engine

    read, raced = engine.read_data_files, []

    def read_then_lose_the_race(connection, table, files):
        rows = read(connection, table, files)
        if table.name() == lake.flow_tables[METER_HOURS].name() and not raced:
            # After the rows are computed and before they are written, another process writes rows with more readings.
            raced.append(True)
            other = make_lake(lake.namespace)
            other.ends = lake.ends
            other.aggregate([*first, *other.append(readings[1::2])])
        return rows

    monkeypatch.setattr(engine, "read_data_files", read_then_lose_the_race)
    lake.aggregate(first)
    assert raced
    assert lake.everything() == wanted


def test_a_reading_that_reveals_a_swap_makes_a_known_flow_unknown(new_lake):
    lake = new_lake()
    states = [(at(7, 9), 1_000), (at(7, 12), 1_300)]
    readings = [reference.Reading("M-000004", "harbour", moment, litres) for moment, litres in states]
    lake.aggregate(lake.append(readings))
    assert lake.rows(METER_HOURS)["litres"].to_pylist() == [100.0, 100.0, 100.0, None]
    swapped = replace(readings[0], read_at=at(7, 10) + timedelta(minutes=30), litres=4_000)
    lake.aggregate(lake.append([swapped]))
    # The hour without a reading has no row any more.
    flows = {row["hour"]: row["litres"] for row in lake.rows(METER_HOURS).to_pylist()}
    assert flows == {at(7, 9): 2_000.0, at(7, 10): None, at(7, 12): None}


def test_a_run_rewrites_the_files_of_its_hours_not_of_the_day(new_lake, readings, wanted, monkeypatch):
    monkeypatch.setattr(aggregation, "FILE_ROWS", 30)
    lake = new_lake()
    late = next(r for r in readings if r.meter_id not in INLETS.values() and at(6, 20) <= r.read_at < at(6, 23))
    lake.aggregate(lake.append(r for r in readings if r is not late))
    before = lake.files(METER_HOURS)
    lake.aggregate(lake.append([late]))
    assert lake.everything() == wanted
    kept = before & lake.files(METER_HOURS)
    assert kept
    assert len(kept) > len(before) / 2


def test_a_run_over_many_partitions_reads_no_file_of_earlier_offsets(new_lake, monkeypatch):
    """One partition was added later, so its offsets are as low as the first offsets of the others."""
    lake = new_lake()
    lake.ends = [1_000] * 40 + [0]
    for day in (3, 4, 5):
        lake.append(reference.Reading(f"M-{number:06}", "harbour", at(day, 5), 1_000) for number in range(40))
    before = {file.file_path for file in engine.files_where(lake.clean, engine.ALL_ROWS)}
    ranges = lake.append(reference.Reading(f"M-{number:06}", "harbour", at(9, 5), 2_000) for number in range(41))
    local_copies, read = engine.local_copies, set()

    def noting(connection, addresses):
        read.update(addresses)
        return local_copies(connection, addresses)

    monkeypatch.setattr(engine, "local_copies", noting)
    assert lake.aggregate(ranges)["meter_hours"] == 41
    assert read
    assert not read & before


def test_the_same_offsets_of_another_log_are_other_readings(new_lake):
    lake = new_lake()
    ranges = lake.append([reference.Reading("M-000001", "harbour", at(3, 5), 1_000)])
    assert lake.aggregate([{**part, "log": "another"} for part in ranges])["hours"] == []
    assert lake.aggregate([{**part, "log": "log"} for part in ranges])["meter_hours"] == 1


def test_readings_at_absurd_dates_cost_no_more_than_their_hours(new_lake, monkeypatch):
    lake = new_lake()
    commits: list[str] = []
    commit = writing.commit

    def counted(table, change):
        commits.append(table.name()[-1])
        return commit(table, change)

    monkeypatch.setattr(writing, "commit", counted)
    odd = [
        reference.Reading("M-000001", "harbour", datetime(1970 + n, 1 + n % 12, 3, 5, tzinfo=UTC), 1_000 + n)
        for n in range(80)
    ]
    ranges = lake.append(odd)
    summary = lake.aggregate(ranges)
    assert summary["meter_hours"] == len(odd)
    # One commit for each table, not one for every few days: every commit reads all manifests of the table. The hours
    # are not in the night.
    assert sorted(commits) == ["district_hours", "meter_days", "meter_hours"]
    before = lake.files(METER_HOURS)
    # The next run of an ordinary day does not touch them.
    lake.aggregate(lake.append([reference.Reading("M-000001", "harbour", at(6, 5), 9_000)]))
    assert before <= lake.files(METER_HOURS)
    assert lake.rows(METER_HOURS).num_rows == len(odd) + 1
