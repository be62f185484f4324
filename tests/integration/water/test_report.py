"""The executive report, read from real tables, a real database and a real bucket, and published there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html import unescape

import pyarrow as pa
import pytest
from pyiceberg.exceptions import NoSuchTableError
from sqlalchemy import insert, text

from include.streams.lake.buckets import Bucket, Entry, GenerationChanged, bucket
from include.streams.lake.catalog import load_catalog
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import open_alarm
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.streams.operations.tables import inbox
from include.streams.validators.results import folder
from include.water.consumers import AGGREGATE_METER_READINGS
from include.water.dashboards.report.collect import collect
from include.water.dashboards.report.data import Leak
from include.water.dashboards.report.publish import FOLDER, KEEP_ALL, KEEP_DAYS, LATEST, latest, outdated, publish
from include.water.dashboards.report.render import render
from include.water.dashboards.report.run import MIN_INTERVAL, next_turn, publish_report
from include.water.flows.definition import TIME_ZONE
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, schema_of, spec_of
from include.water.leaks.unusual import Episode
from include.water.tables import alerts, leaks
from tests.unit.water.report_sample import sample

pytestmark = pytest.mark.integration

NOW = datetime(2026, 11, 22, 21, tzinfo=UTC)
# Midnight in California, 20 days before.
FIRST = datetime(2026, 11, 2, 8, tzinfo=UTC)
BATCH = {"landed": 100, "clean": 90, "dead_lettered": 4, "duplicates": 6, "ranges": []}


@pytest.fixture(scope="module", autouse=True)
def operations(landing_services) -> None:
    upgrade()


@pytest.fixture
def objects() -> Iterator[Bucket]:
    remote = bucket()
    yield remote
    for prefix in (f"{FOLDER}/", "validation/aggregate_meter_readings/"):
        for entry in remote.list(prefix):
            remote.delete(entry.path)


@pytest.fixture
def flows(operations) -> Iterator[None]:
    """Harbour and Valley, each with an inflow of 100 l/h; Harbour loses 10 l/h, from the 16th on 20; Valley always 30.

    On the 20th, Harbour's inlet is unknown for twelve hours. The known hours end on the 22nd at noon.
    """
    catalog = load_catalog()
    catalog.create_namespace_if_not_exists("water")
    hours, nights = [], []
    until = datetime(2026, 11, 22, 20, tzinfo=UTC)
    for district, lost in (("harbour", 10.0), ("valley", 30.0)):
        for n in range((until - FIRST) // timedelta(hours=1)):
            hour = FIRST + timedelta(hours=n)
            local = hour.astimezone(TIME_ZONE)
            loss = 20.0 if district == "harbour" and local.date() >= date(2026, 11, 16) else lost
            unknown = district == "harbour" and local.date() == date(2026, 11, 20) and local.hour < 12
            hours.append((district, hour, None if unknown else 100.0, 100 - loss, None if unknown else loss, 9, 10, 1))
        for n in range(20):
            nights.append((district, date(2026, 11, 2) + timedelta(days=n), 40.0, 20.0, lost, 4, n != 5))
    for name, rows in ((DISTRICT_HOURS, hours), (DISTRICT_NIGHTS, nights)):
        with suppress(NoSuchTableError):
            catalog.drop_table(name)
        schema = schema_of(name)
        table = catalog.create_table(name, schema, partition_spec=spec_of(name))
        columns = zip(*rows, strict=True)
        arrow = schema.as_arrow()
        table.append(pa.table([pa.array(list(c), f.type) for c, f in zip(columns, arrow, strict=True)], schema=arrow))
    yield
    for name in (DISTRICT_HOURS, DISTRICT_NIGHTS):
        catalog.drop_table(name)


def test_without_data_the_report_says_that_it_is_empty(objects):
    for name in (DISTRICT_HOURS, DISTRICT_NIGHTS):
        with suppress(NoSuchTableError):
            load_catalog().drop_table(name)
    data = collect([], now=NOW)
    assert (data.period, data.districts, data.leaks, data.quality, data.model) == (None, (), None, None, None)
    assert data.unusual is None
    assert "No hourly flows have been computed yet." in render(data)


def test_balances_compare_the_last_seven_full_days_with_the_seven_before(flows, objects):
    data = collect([], now=NOW)
    assert data.data_up_to == datetime(2026, 11, 22, 20, tzinfo=UTC)
    assert data.period == (date(2026, 11, 15), date(2026, 11, 21))
    assert data.period_ended
    harbour, valley = data.districts
    assert (harbour.name, valley.name) == ("Harbour", "Valley")
    assert harbour.balance
    assert (harbour.balance.known_hours, harbour.balance.expected_hours, harbour.balance.connections) == (156, 168, 10)
    # One day at 10 liters per hour and, without the unknown hours, five and a half days at 20.
    assert harbour.balance.loss == pytest.approx(24 * (24 * 10 + 132 * 20) / 156)
    assert harbour.balance.inlet == pytest.approx(2400)
    assert harbour.before
    assert harbour.before.loss == pytest.approx(240)
    assert valley.balance
    assert valley.balance.loss_share == pytest.approx(0.3)
    days = {day.day: day for day in data.days}
    assert len(days) == 21
    assert [days[date(2026, 11, d)].complete for d in (19, 20, 21, 22)] == [True, False, True, False]
    assert days[date(2026, 11, 20)].known_hours == 36
    assert days[date(2026, 11, 19)].loss == pytest.approx(24 * 50)
    assert [night.complete for night in valley.nights].count(False) == 1
    assert data.night_loss == pytest.approx(24 * 40)
    # Harbour loses twice as much as before, from the first to the last known hour.
    start, end = datetime(2026, 11, 16, 8, tzinfo=UTC), datetime(2026, 11, 22, 20, tzinfo=UTC)
    assert data.unusual == (Episode("harbour", start, end, True, 144, 20.0, 10.0),)
    assert data.quality is None


def test_an_unfinished_first_day_is_shown_and_marked(flows, objects):
    table = load_catalog().load_table(DISTRICT_HOURS)
    table.delete("hour < '2026-11-22T08:00:00+00:00'")
    data = collect([], now=NOW)
    assert data.period == (date(2026, 11, 22), date(2026, 11, 22))
    assert not data.period_ended
    assert "so far today" in render(data)


def test_quality_counts_come_from_runs_and_the_inbox(flows, objects):
    with begin() as connection:
        connection.execute(text("delete from inbox where consumer = :name"), {"name": AGGREGATE_METER_READINGS.name})
        for offset, (reason, age) in enumerate([("schema", 1), ("schema", 2), ("not_json", 3), ("schema", 30)]):
            row = {
                "consumer": AGGREGATE_METER_READINGS.name,
                "topic_id": "t",
                "partition": 0,
                "offset": offset,
                "topic": "meter.readings",
                "contract": "MeterReading",
                "outcome": "dead_letter",
                "reason": reason,
                "run_id": "r",
                "recorded_at": NOW - timedelta(hours=age),
            }
            connection.execute(insert(inbox).values(row))
    data = collect([BATCH, BATCH, {"something": "else"}], now=NOW)
    assert data.quality
    counts = (data.quality.landed, data.quality.clean, data.quality.dead_lettered, data.quality.duplicates)
    assert counts == (200, 180, 8, 12)
    assert data.quality.reasons == (("schema", 2), ("not_json", 1))
    # For the 336 hours of the period.
    assert data.quality.missing_readings == 336
    with begin() as connection:
        connection.execute(text("delete from inbox where consumer = :name"), {"name": AGGREGATE_METER_READINGS.name})


def test_a_leak_has_nights_an_alert_and_work_orders(flows, objects):
    nights = [date(2026, 11, 20), date(2026, 11, 21)]
    keys = [f"valley/{night}/1" for night in nights]
    place = {"source_topic": "leaks.detected", "source_partition": 0, "source_offset": 1}
    try:
        with begin() as connection:
            for key, night in zip(keys, nights, strict=True):
                row = {
                    "leak_key": key,
                    "district_id": "valley",
                    "night": night,
                    "litres_per_hour": 30,
                    "confidence": 0.8,
                }
                connection.execute(insert(leaks).values(**row, model_version="m", reported_as=keys[0]))
            alert = {"alert_id": "report-test", "revision": 1, "kind": "leak", "severity": "major", "severity_rank": 1}
            alert |= {"district_id": "valley", "title": "Leak", "raised_at": NOW, "source_event_id": keys[0]}
            connection.execute(insert(alerts).values(**alert, **place))
        shown_leaks = collect([], now=NOW).leaks
    finally:
        with begin() as connection:
            connection.execute(text("delete from leaks where district_id = 'valley'"))
            connection.execute(text("delete from alerts where alert_id = 'report-test'"))
    assert shown_leaks == (Leak("Valley", *nights, 2, 30.0, 0.8, True, "major", NOW, 0),)


def test_the_last_suite_and_all_stopping_suites_are_shown(objects):
    name, other = AGGREGATE_METER_READINGS.name, "consumer_of_another_topic"
    result = {"suite": "meter_readings", "checked_at": NOW.isoformat(), "stopped": False, "outcomes": []}
    outcomes = [{"rule": "fresh", "state": "failed"}, {"rule": "unique", "state": "passed"}]
    objects.write(f"{folder(name, 7)}/result.json", json.dumps(result).encode())
    objects.write(f"validation/{name}/past.json", json.dumps({"runs": [{"claim_id": 7, "measures": {}}]}).encode())
    for source in (name, other):
        stopped = {**result, "stopped": True, "outcomes": outcomes}
        objects.write(f"{folder(source, 8)}/result.json", json.dumps(stopped).encode())
        with begin() as connection:
            open_alarm(connection, source, AlarmKind.suite_failed, "a suite has failed", key="8")
    try:
        quality = collect([], now=NOW).quality
    finally:
        objects.delete(f"{folder(other, 8)}/result.json")
        with begin() as connection:
            connection.execute(
                text("delete from alarms where source in (:name, :other)"), {"name": name, "other": other}
            )
    assert quality
    assert [(suite.passed, suite.rules, suite.failed) for suite in quality.suites] == [
        (False, 2, ("fresh",)),
        (True, 0, ()),
    ]


def test_a_report_is_stored_and_shown(flows, objects):
    result = publish_report([BATCH])
    shown = latest(objects)
    assert shown
    assert shown.path == result["path"]
    stored = objects.read(shown.path)
    assert stored
    assert stored[0].startswith(b"<!doctype html>")
    assert len(stored[0].decode()) == result["characters"]
    assert shown.style in unescape(stored[0].decode())


def test_an_older_report_does_not_replace_a_newer_one(objects):
    new = publish(objects, "new", NOW, TIME_ZONE)
    publish(objects, "old", NOW - timedelta(minutes=1), TIME_ZONE)
    shown = latest(objects)
    assert shown
    assert shown.path == new


def test_of_two_concurrent_reports_the_newer_is_shown(objects, monkeypatch):
    """The other report is published after the first has read the pointer and before it writes the pointer."""
    real = type(objects).write
    others: list[str] = []

    def write(self: Bucket, path: str, *args, **kwargs) -> int:
        if path == LATEST and not others:
            others.append("")
            others[0] = publish(objects, "other", NOW + timedelta(minutes=1), TIME_ZONE)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(type(objects), "write", write)
    publish(objects, "first", NOW, TIME_ZONE)
    shown = latest(objects)
    assert shown
    assert [shown.path] == others


def test_a_pointer_that_keeps_changing_fails_the_run(objects, monkeypatch):
    def write(self: Bucket, path: str, *args, **kwargs) -> int:
        if path == LATEST:
            raise GenerationChanged(path)
        return 1

    monkeypatch.setattr(type(objects), "write", write)
    with pytest.raises(GenerationChanged):
        publish(objects, "page", NOW, TIME_ZONE)


@pytest.mark.parametrize(
    "pointer",
    [
        b"{}",
        b"not JSON",
        b"[]",
        b'{"path": "models/leaks/champion.json", "style": "x", "computed_at": "2026-11-22T00:00:00+00:00"}',
    ],
)
def test_an_invalid_pointer_is_refused_and_replaced(objects, pointer: bytes):
    objects.write(LATEST, pointer)
    with pytest.raises((ValueError, KeyError, TypeError)):
        latest(objects)
    assert next_turn(NOW, now=NOW) == NOW
    path = publish(objects, "page", NOW, TIME_ZONE)
    shown = latest(objects)
    assert shown
    assert shown.path == path


def test_the_last_report_of_an_older_day_is_kept():
    def entry(day: str, time: str, age: timedelta) -> Entry:
        return Entry(f"{FOLDER}/{day}/{time}.000000Z.html", 1, 1, NOW - age)

    old, ancient = KEEP_ALL + timedelta(hours=1), KEEP_DAYS + timedelta(hours=1)
    entries = [
        entry("2026-11-22", "100000", timedelta(hours=5)),
        entry("2026-11-22", "110000", timedelta(hours=4)),
        entry("2026-11-19", "100000", old),
        entry("2026-11-19", "110000", old),
        entry("2025-10-01", "110000", ancient),
        Entry(f"{FOLDER}/notes.txt", 1, 1, NOW - ancient),
        Entry(LATEST, 1, 1, NOW - ancient),
    ]
    assert outdated(entries, "", NOW) == [entries[2].path, entries[4].path]
    assert outdated(entries, entries[4].path, NOW) == [entries[2].path]


def test_a_run_waits_for_the_interval_and_an_outdated_run_is_skipped(objects):
    assert next_turn(NOW, now=NOW) == NOW
    publish(objects, "page", NOW, TIME_ZONE)
    assert next_turn(NOW - timedelta(seconds=1), now=NOW) is None
    later = NOW + timedelta(minutes=1)
    assert next_turn(later, now=later) == NOW + MIN_INTERVAL
    assert next_turn(later, now=NOW + timedelta(hours=1)) == NOW + timedelta(hours=1)


def test_a_lone_surrogate_does_not_prevent_the_report(objects):
    data = sample()
    districts = (replace(data.districts[0], name="\ud83d"), *data.districts[1:])
    assert publish(objects, render(replace(data, districts=districts)), NOW, TIME_ZONE)
