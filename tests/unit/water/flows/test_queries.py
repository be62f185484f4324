"""The SQL on tables in memory, compared with the independent definition in `reference.py`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from random import Random

import duckdb
import pyarrow as pa
import pytest

from include.water.flows import queries
from include.water.flows.definition import night_of
from include.water.flows.hours import (
    HOUR,
    MAX_SPANS,
    blocks,
    hours_in_reach,
    known_meter_days,
    limit_spans,
    spans_around,
    window_of,
)
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, METER_HOURS, schema_of
from tests.unit.water.flows import reference
from tests.unit.water.flows.reference import Reading
from tests.unit.water.flows.scenes import INLETS, scene

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def register(connection, readings: Iterable[Reading]) -> None:
    readings = list(readings)
    columns = {
        "meter_id": [r.meter_id for r in readings],
        "district_id": [r.district_id for r in readings],
        "read_at": pa.array([r.read_at for r in readings], pa.timestamp("us", "UTC")),
        "litres_total": pa.array([r.litres for r in readings], pa.int64()),
        "kafka_partition": pa.array([int(r.meter_id[2:]) % 2 for r in readings], pa.int32()),
        "kafka_offset": pa.array(range(len(readings)), pa.int64()),
        "kafka_log": pa.array([None, *["log"] * len(readings)][: len(readings)], pa.string()),
    }
    connection.register("readings", pa.table(columns))


def hours_around(readings: Iterable[Reading]) -> list[datetime]:
    return hours_in_reach({r.read_at.replace(minute=0, second=0, microsecond=0) for r in readings})


def meter_hours(connection, readings: list[Reading], hours: list[datetime] | None = None) -> list[dict]:
    register(connection, readings)
    parameters = queries.for_meter_hours(hours_around(readings) if hours is None else hours)
    return queries.run(connection, queries.METER_HOURS, parameters).to_pylist()


def flows(connection, readings: list[Reading]) -> dict[datetime, float | None]:
    return {row["hour"]: row["litres"] for row in meter_hours(connection, readings)}


def read(*states: tuple[float, int], meter_id: str = "M-000001") -> list[Reading]:
    """Readings of a meter: (hours after noon, litres)."""
    return [Reading(meter_id, "harbour", NOON + timedelta(hours=hours), litres) for hours, litres in states]


def everything(connection, readings: list[Reading]) -> tuple[pa.Table, pa.Table, pa.Table]:
    register(connection, readings)
    results = queries.run_all(connection, hours_around(readings), inlets=INLETS.items())
    return results[queries.METER_HOURS], results[queries.DISTRICT_HOURS], results[queries.DISTRICT_NIGHTS]


def counted(hours: Iterable[datetime]) -> set[datetime]:
    return {day + n * HOUR for day in known_meter_days(hours) for n in range(24)}


def close(actual: float | None, wanted, places: float = 0.002) -> bool:
    return actual is None if wanted is None else actual is not None and abs(actual - float(wanted)) <= places


@pytest.mark.parametrize("seed", range(25))
def test_the_tables_match_the_definition(connection, seed: int):
    readings = scene(Random(seed))
    by_meter, by_district, by_night = everything(connection, readings)

    wanted = reference.meter_hours(readings)
    actual = {(row["meter_id"], row["hour"]): row for row in by_meter.to_pylist()}
    assert actual.keys() == wanted.keys()
    for key, row in actual.items():
        assert close(row["litres"], wanted[key].litres), key
        assert (row["district_id"], row["readings"]) == (wanted[key].district_id, wanted[key].readings), key
        assert row["expected_readings"] == 1

    wanted = reference.district_hours(wanted, INLETS)
    actual = {(row["district_id"], row["hour"]): row for row in by_district.to_pylist()}
    assert actual.keys() == wanted.keys()
    for key, row in actual.items():
        assert close(row["inlet_litres"], wanted[key].inlet), key
        assert close(row["metered_litres"], wanted[key].metered, 0.02), key
        assert close(row["loss_litres"], wanted[key].loss, 0.02), key
        assert row["meters_reporting"] == wanted[key].reporting, key
        assert row["meters_known"] == wanted[key].known, key
        assert row["missing_readings"] == wanted[key].missing, key

    wanted = reference.nights(wanted)
    actual = {(row["district_id"], row["night"]): row for row in by_night.to_pylist()}
    assert actual.keys() == wanted.keys()
    for key, row in actual.items():
        assert close(row["min_night_flow_lph"], wanted[key].least), key
        assert close(row["metered_night_flow_lph"], wanted[key].metered, 0.02), key
        assert close(row["night_loss_lph"], wanted[key].loss, 0.02), key
        assert (row["hours"], row["complete"]) == (wanted[key].hours, wanted[key].complete), key


def test_the_scenes_have_unknown_flows_and_known_ones(connection):
    known, unknown = set(), set()
    for seed in range(25):
        for table in everything(connection, scene(Random(seed))):
            known |= {name for name in table.column_names if table[name].null_count < table.num_rows}
            unknown |= {name for name in table.column_names if table[name].null_count}
    assert unknown >= {"litres", "inlet_litres", "loss_litres", "min_night_flow_lph", "night_loss_lph"}
    assert known >= unknown


def test_the_tables_have_the_columns_of_their_schemas(connection):
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    computed = everything(connection, scene(Random(0)))
    for table, name in zip(computed, (METER_HOURS, DISTRICT_HOURS, DISTRICT_NIGHTS), strict=True):
        schema = schema_to_pyarrow(schema_of(name), include_field_ids=False)
        assert table.schema.names == schema.names
        assert table.cast(schema).num_rows == table.num_rows


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_reading_changes_only_hours_in_reach(connection, seed: int, exactly: bool):
    random = Random(seed)
    readings = scene(random, days=9, meters=2)
    late = random.sample(readings, 3)
    read = {r.read_at.replace(minute=0, second=0, microsecond=0) for r in late}
    meter_hours = set(hours_in_reach(read))
    if exactly:
        # The hours of these readings and their neighbors; at most the hours in reach.
        register(connection, readings)
        ranges = [
            {"partition": int(r.meter_id[2:]) % 2, "start": offset, "end": offset + 1}
            for offset, r in enumerate(readings)
            if r in late
        ]
        reached = queries.run(connection, queries.REACHED_HOURS, queries.for_reached_hours(ranges))["hour"].to_pylist()
        assert read <= set(reached) <= meter_hours
        assert len(reached) == len(set(reached))
        meter_hours = set(reached)
    district_hours = meter_hours | counted(read)
    nights = {night_of(hour) for hour in district_hours}
    after = everything(connection, readings)
    before = everything(connection, [r for r in readings if r not in late])
    for old, new, key, touched in zip(
        before, after, ("hour", "hour", "night"), (meter_hours, district_hours, nights), strict=True
    ):
        outside = [[row for row in table.to_pylist() if row[key] not in touched] for table in (old, new)]
        assert outside[0] == outside[1]


def test_a_silent_meter_is_known_for_a_week(connection):
    inlet = read(*((hours, hours) for hours in range(240)), meter_id=INLETS["harbour"])
    _, by_district, _ = everything(connection, [*inlet, *read((0, 5))])
    known = {row["hour"] for row in by_district.to_pylist() if row["meters_known"]}
    assert {hour.date() for hour in known} == {NOON.date() + timedelta(days=n) for n in range(8)}
    assert known == {row["hour"] for row in by_district.to_pylist()} & counted([NOON])


def test_the_order_of_readings_does_not_change_the_result(connection):
    readings = scene(Random(7))
    first = everything(connection, readings)
    Random(1).shuffle(readings)
    again = everything(connection, readings)
    assert all(a.equals(b) for a, b in zip(first, again, strict=True))


def test_a_counter_is_interpolated_where_the_hour_begins_and_ends(connection):
    assert flows(connection, read((-0.5, 100), (0.5, 200), (1.5, 400))) == {
        NOON - HOUR: None,
        NOON: 150.0,
        NOON + HOUR: None,
    }


def test_the_flow_is_known_up_to_a_gap_of_three_hours(connection):
    assert flows(connection, read((0, 0), (3, 300))) == {
        NOON: 100.0,
        NOON + HOUR: 100.0,
        NOON + 2 * HOUR: 100.0,
        NOON + 3 * HOUR: None,
    }
    apart = read((0, 0), (3 + 1e-6, 300))
    assert flows(connection, apart) == {NOON: None, NOON + 3 * HOUR: None}


def test_a_falling_counter_gives_an_unknown_flow(connection):
    swapped = flows(connection, read((0, 5_000), (1, 5_100), (1.5, 3), (2, 53), (3, 153)))
    assert swapped == {NOON: 100.0, NOON + HOUR: None, NOON + 2 * HOUR: 100.0, NOON + 3 * HOUR: None}


def test_a_duplicate_changes_nothing(connection):
    once = read((0, 0), (1, 100), (2, 150))
    assert meter_hours(connection, [*once, once[1], once[1]]) == meter_hours(connection, once)


def test_a_counter_that_stands_still_gives_a_known_flow_of_zero(connection):
    assert flows(connection, read((0, 7), (1, 7)))[NOON] == 0.0


def test_only_the_wanted_hours_are_returned(connection):
    rows = meter_hours(connection, read((0, 0), (1, 100), (2, 200), (3, 300)), [NOON + HOUR])
    assert [(row["hour"], row["litres"]) for row in rows] == [(NOON + HOUR, 100.0)]


def test_large_counters_are_exact_to_a_milliliter(connection):
    rows = flows(connection, read((0.5, 10**12 - 300), (1.5, 10**12 - 200), (2.5, 10**12)))
    assert rows[NOON + HOUR] == pytest.approx(150, abs=0.001)


def test_touched_hours_are_those_of_the_readings_in_the_ranges(connection):
    register(connection, read((0, 0), (1.5, 1), (1.6, 2), (5, 3)))  # offsets 0 to 3, partition 1
    ranges = [{"partition": 1, "start": 1, "end": 3}, {"partition": 0, "start": 0, "end": 100}]
    rows = queries.run(connection, queries.TOUCHED_HOURS, queries.for_touched_hours(ranges))
    assert rows["hour"].to_pylist() == [NOON + HOUR]


@pytest.mark.parametrize(("log", "hours"), [("log", [0, 1]), ("another", [0]), (None, [0, 1])])
def test_touched_hours_are_of_the_log_or_of_no_log(connection, log: str | None, hours: list[int]):
    register(connection, read((0, 0), (1.5, 1)))
    ranges = [{"partition": 1, "start": 0, "end": 2, "log": log}]
    touched = queries.run(connection, queries.TOUCHED_HOURS, queries.for_touched_hours(ranges))
    assert sorted(touched["hour"].to_pylist()) == [NOON + n * HOUR for n in hours]


@pytest.mark.parametrize(
    ("others", "hours"),
    [
        ([], [0]),
        ([-0.2, 0.9], [-1, 0]),
        ([-0.2, 1.2], [-1, 0, 1]),
        ([-2.4, 3.6], [-3, -2, -1, 0]),
        ([-2.6, 3.4], [-3, -2, -1, 0, 1, 2, 3]),
    ],
)
def test_a_reading_reaches_the_hours_up_to_its_neighbors(connection, others: list[float], hours: list[int]):
    """Of a reading at NOON + 0.4 h."""
    register(connection, [*read((0.4, 0)), *read(*((at, 0) for at in others)), *read((0.1, 0), (5, 0), meter_id="M-3")])
    ranges = [{"partition": 1, "start": 0, "end": 1}]
    rows = queries.run(connection, queries.REACHED_HOURS, queries.for_reached_hours(ranges))
    assert sorted(rows["hour"].to_pylist()) == [NOON + n * HOUR for n in hours]


@pytest.mark.parametrize(
    ("night", "hours"),
    [(date(2026, 3, 6), 4), (date(2026, 3, 7), 3), (date(2026, 10, 31), 5), (date(2026, 7, 1), 4)],
)
def test_a_night_in_which_clocks_change_has_an_hour_less_or_more(night: date, hours: int):
    window = window_of(night)
    assert len(window) == hours
    assert {night_of(hour) for hour in window} == {night}
    assert night_of(window[0] - HOUR) is None
    assert night_of(window[-1] + HOUR) is None


def test_touching_spans_are_merged_and_their_number_is_limited():
    random = Random(1)
    hours = sorted({NOON + random.randrange(20_000) * HOUR for _ in range(500)})
    few = limit_spans(spans_around(hours[:1], HOUR, 3 * HOUR, HOUR))
    assert few == [(hours[0] - 3 * HOUR, hours[0] + 2 * HOUR)]
    assert limit_spans(spans_around([NOON, NOON + HOUR], HOUR)) == [(NOON, NOON + 2 * HOUR)]
    many = limit_spans(spans_around(hours, HOUR))
    assert len(many) == MAX_SPANS
    assert all(any(first <= hour < end for first, end in many) for hour in hours)
    assert all(a[1] < b[0] for a, b in pairwise(many))


def test_blocks_have_every_hour_once_and_complete_days():
    hours = [NOON + n * HOUR for n in range(0, 400, 7)]
    parts = list(blocks(hours, 3))
    assert [hour for part in parts for hour in part] == hours
    assert all(len({hour.date() for hour in part}) <= 3 for part in parts)
    days = [hour.date() for part in parts for hour in {h.replace(hour=0): h for h in part}.values()]
    assert len(days) == len(set(days))


def test_a_loss_is_unknown_if_too_many_meters_are_unknown(connection):
    def loss(silent: int, meters: int = 20) -> float | None:
        readings = read((0, 0), (1, 1_000), meter_id=INLETS["harbour"])
        for number in range(meters):
            states = [(0, 0)] if number < silent else [(0, 0), (1, 10)]
            readings += read(*states, meter_id=f"M-{number:06d}")
        _, by_district, _ = everything(connection, readings)
        (row,) = [row for row in by_district.to_pylist() if row["hour"] == NOON]
        assert (row["meters_reporting"], row["meters_known"]) == (meters - silent, meters)
        return row["loss_litres"]

    assert loss(silent=0) == 800.0
    assert loss(silent=1) == 810.0
    assert loss(silent=2) is None


def test_an_inlet_meter_that_names_another_district_counts_nowhere(connection):
    stray = [Reading(INLETS["valley"], "harbour", r.read_at, r.litres) for r in read((0, 0), (1, 500))]
    _, by_district, _ = everything(connection, [*read((0, 0), (1, 10)), *stray])
    (row,) = [row for row in by_district.to_pylist() if row["hour"] == NOON]
    assert (row["metered_litres"], row["inlet_litres"], row["meters_known"]) == (10.0, None, 1)
