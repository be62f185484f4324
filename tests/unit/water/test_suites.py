"""The suite of meter readings on simulated readings: it accepts usual readings and finds a broken source."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import duckdb
import pytest

from include.streams.validators.evaluation import SetResult, State, evaluate
from include.water.simulators.meters import Readings
from include.water.simulators.network import Network
from include.water.suites import meter_readings

SHARES = {"dead_lettered_share": 0.001, "duplicate_share": 0.003}
START = datetime(2026, 3, 2, tzinfo=UTC)
FIELDS = "version: 'BIGINT', meter_id: 'VARCHAR', district_id: 'VARCHAR', read_at: 'TIMESTAMPTZ', "
FIELDS += "litres_total: 'BIGINT', battery_percent: 'BIGINT'"


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    """The table `usual`: six hours of readings like those of the clean table, without duplicates."""
    path = tmp_path_factory.mktemp("readings") / "readings.jsonl"
    messages = Readings(Network(seed=1), START, START + timedelta(hours=6))
    path.write_bytes(b"\n".join(dict.fromkeys(value for _, value in messages if value)))
    with duckdb.connect() as made:
        made.execute("set timezone = 'UTC'")
        made.execute(
            "create table usual as select *, meter_id || '@' || read_at as event_id, "
            "row_number() over () as kafka_offset, read_at + interval 5 second as kafka_timestamp "
            f"from read_json('{path}', columns = {{{FIELDS}}})"
        )
        yield made


@pytest.fixture(scope="module")
def usual(connection) -> SetResult:
    return check(connection, "select * from usual")


def check(connection, query: str, past=()) -> SetResult:
    return evaluate(meter_readings(), connection.sql(query), counts=SHARES, past=past)


def broken(result: SetResult) -> set[str]:
    return {outcome.rule for outcome in result.outcomes if outcome.broken}


def test_usual_readings_break_no_rule_and_every_number_is_measured(connection, usual):
    assert broken(usual) == set()
    assert None not in usual.measures.values()
    again = check(connection, "select * from usual", past=[usual.measures] * 5)
    assert {outcome.state for outcome in again.outcomes} == {State.passed}


@pytest.mark.parametrize(
    ("rule", "query"),
    [
        # Litres become cubic metres, or millilitres.
        (
            "meters whose counter falls in a day",
            "select * replace (case when hour(read_at) < 3 then litres_total else litres_total // 1000 end "
            "as litres_total) from usual",
        ),
        ("median flow of households", "select * replace (litres_total * 1000 as litres_total) from usual"),
        ("95th percentile of households' flow", "select * replace (litres_total * 1000 as litres_total) from usual"),
        # Most meters are silent.
        ("meters that report in an hour", "select * from usual where hash(meter_id) % 10 = 0"),
        # Each reading several times, at other seconds.
        (
            "readings of a meter in an hour",
            "select * replace (read_at + to_seconds(n) as read_at, event_id || n as event_id) "
            "from usual, range(40) t(n)",
        ),
        (
            "meters that send too often",
            "select * replace (read_at + to_seconds(n) as read_at, event_id || n as event_id) "
            "from usual, range(61) t(n)",
        ),
        (
            "age of the newest reading on arrival",
            "select * replace (read_at + interval 9 day as kafka_timestamp) from usual",
        ),
        ("readings from the future", "select * replace (read_at - interval 2 hour as kafka_timestamp) from usual"),
        ("meters of an unknown district", "select * replace ('atlantis' as district_id) from usual"),
        ("readings that are there twice", "from usual union all (from usual limit 1)"),
        ("event_id: each value once", "from usual union all (from usual limit 1)"),
    ],
)
def test_a_broken_source_is_found(connection, usual, rule, query):
    assert rule in broken(check(connection, query, past=[usual.measures] * 5))


def test_a_few_odd_readings_do_not_stop_the_lane(connection, usual):
    few = "select * replace (0 as litres_total, read_at + interval 9 day as kafka_timestamp) from usual limit 20"
    assert check(connection, few, past=[usual.measures] * 5).passed


ONE = "(select * from usual where meter_id = (select min(meter_id) from usual))"


@pytest.mark.parametrize(
    "query",
    [
        # Three readings, as after a repair of a connector; with the timestamps that their producer has set.
        f"select * replace (max(read_at) over () as kafka_timestamp) from {ONE}",
        f"select * replace ('0001-01-01'::timestamptz as kafka_timestamp) from {ONE}",
        # What a meter has kept for weeks.
        f"""select * exclude (n) replace (
                read_at - to_days(n) as read_at, event_id || n as event_id, read_at + interval 1 hour as kafka_timestamp
            ) from {ONE}, range(9, 40) t(n)""",
        # A meter that reports every minute; and one behind which a pipe has burst.
        f"""select * exclude (n) replace (
                read_at + to_minutes(n) as read_at, event_id || n as event_id,
                read_at + interval 1 day as kafka_timestamp
            ) from {ONE}, range(60) t(n)""",
        f"""select * exclude (n) replace (
                read_at + to_minutes(n) as read_at, event_id || n as event_id, litres_total * 1000 as litres_total,
                read_at + interval 1 day as kafka_timestamp
            ) from {ONE}, range(60) t(n)""",
        "select * from usual where meter_id in (select distinct meter_id from usual limit 9) and hour(read_at) = 3",
    ],
)
def test_a_run_of_few_meters_does_not_stop_the_lane(connection, usual, query):
    assert check(connection, query, past=[usual.measures] * 10).failed == ()


def test_late_readings_do_not_change_the_measures_of_an_hour(connection, usual):
    late = """
        select * from usual union all
        select * replace (
            read_at - to_hours(1000 + 10 * (kafka_offset % 50)) as read_at, event_id || 'late' as event_id
        )
        from usual where hash(event_id) % 20 = 0
    """
    assert broken(check(connection, late, past=[usual.measures] * 5)) <= {"meters whose counter falls in a day"}


def test_no_readings_at_all_break_no_rule(connection, usual):
    assert check(connection, "select * from usual where false", past=[usual.measures] * 5).passed


FEW = "(select * from usual where meter_id in (select min(meter_id) from usual))"


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        (
            "meter_sends_too_often",
            f"""from usual union all select * exclude (n) replace (
                    read_at + to_milliseconds(n) as read_at, event_id || n as event_id
                ) from {FEW}, range(5000) t(n)""",
        ),
        (
            "meter_clock_ahead",
            f"""from usual union all select * replace (
                    read_at + interval 5 year as read_at, event_id || 'ahead' as event_id
                ) from {FEW}""",
        ),
        (
            "meter_clock_ahead",
            f"""from usual union all select * exclude (n) replace (
                    '1970-01-01'::timestamptz + to_hours(n * 400) as read_at, event_id || n as event_id
                ) from {FEW}, range(2000) t(n)""",
        ),
        (
            "meter_in_unknown_district",
            "select * replace ('atlantis' as district_id) from "
            + FEW
            + " union all from usual where meter_id not in (select min(meter_id) from usual)",
        ),
    ],
)
def test_a_faulty_meter_is_named_and_stops_nothing(connection, usual, kind, query):
    result = check(connection, query, past=[usual.measures] * 5)
    assert result.failed == ()
    ((meter,),) = connection.execute("select min(meter_id) from usual").fetchall()
    named = {offences.rule.kind: [source for source, _ in offences.worst] for offences in result.sources}
    assert named[kind] == [meter]


def test_a_record_with_an_odd_timestamp_makes_no_reading_old(connection, usual):
    odd = "select * replace (case when event_id = (select min(event_id) from usual) "
    odd += "then '55000-01-01'::timestamptz else kafka_timestamp end as kafka_timestamp) from usual"
    result = check(connection, odd, past=[usual.measures] * 5)
    assert result.failed == ()
    assert result.measures["newest_age_hours"] == pytest.approx(usual.measures["newest_age_hours"], abs=0.1)


def test_a_clock_ahead_does_not_hide_old_readings(connection, usual):
    old = "select * replace (read_at + interval 9 day as kafka_timestamp) from usual"
    ahead = f"select * replace (read_at + interval 5 year as read_at, event_id || 'ahead' as event_id) from {FEW}"
    result = check(connection, f"{old} union all {ahead}", past=[usual.measures] * 5)
    assert "age of the newest reading on arrival" in {outcome.rule for outcome in result.failed}


def test_a_meter_without_its_fault_is_reported_as_cured(connection):
    ((meter,),) = connection.execute("select min(meter_id) from usual").fetchall()
    known = {"meter_clock_ahead": [meter, "M-999999"]}
    result = evaluate(meter_readings(), connection.sql("from usual"), counts=SHARES, known_sources=known)
    cured = {offences.rule.kind: offences.cured for offences in result.sources}
    assert cured == {
        "meter_sends_too_often": (), "meter_clock_ahead": (meter,), "meter_in_unknown_district": ()
    }  # fmt: skip


def test_invalid_messages_never_stop_the_valid_ones(connection):
    shares = {"dead_lettered_share": 0.99, "duplicate_share": 0.0}
    result = evaluate(meter_readings(), connection.sql("from usual"), counts=shares)
    assert result.failed == ()
    assert "few messages break the contract" in broken(result)
