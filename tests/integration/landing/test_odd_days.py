"""Readings at thousands of dates: each day of a clean table has its own files, and later runs open none of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from include.streams.lake import engine
from include.streams.lake.catalog import load_catalog
from include.streams.landing.tables import clean_table
from tests.integration.landing.test_old_tables import count_reads
from tests.integration.landing.test_run import Sale, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

DAYS = 2_000


class Timed(Sale):
    """The event id contains the event time, as that of a reading does: a repeated event has the same day."""

    event_id_sql: ClassVar[str | None] = "number || utc_text(sold_at)"

    @property
    def event_id(self) -> str:
        return f"{self.number}{self.sold_at:%Y-%m-%dT%H:%M:%SZ}"


def at_odd_days(count: int) -> list[bytes]:
    first = datetime(1970, 1, 1, 5, tzinfo=UTC)
    odd = [
        {**json.loads(sale(n)), "sold_at": f"{first + timedelta(days=9 * n):%Y-%m-%dT%H:%M:%SZ}"} for n in range(count)
    ]
    return [json.dumps(document).encode() for document in odd]


def test_a_run_of_normal_days_opens_no_file_of_odd_days(consumer, sales, send, monkeypatch):
    lane = consumer(sales(Timed, partitions=1))
    topic = lane.topic
    odd, normal = at_odd_days(DAYS), [sale(n, day=5) for n in range(DAYS, DAYS + 3)]
    send(topic, *odd, *normal, *normal[:1], odd[7])
    land(topic, 0, 0, *odd)
    assert counts(run(lane))["clean"] == DAYS
    table = load_catalog().load_table(clean_table(topic))
    of_odd_days = {task.file.file_path for task in table.scan().plan_files()}
    assert len(of_odd_days) == DAYS

    opened: list[str] = []
    paths = engine._Fetched.paths
    monkeypatch.setattr(
        engine._Fetched, "paths", lambda self, addresses: opened.extend(addresses) or paths(self, addresses)
    )
    manifests = count_reads(monkeypatch)
    land(topic, 0, DAYS, *normal)
    assert counts(run(lane, "normal"))["clean"] == 3
    # The landed file, and its staging file.
    assert 0 < len(opened) < 10
    assert of_odd_days & {*opened} == set()
    assert len(manifests) < 10

    # A repeat opens the file of its own day.
    land(topic, 0, DAYS + 3, *normal[:1], odd[7])
    assert counts(run(lane, "repeat"))["duplicates"] == 2
    assert len(of_odd_days & {*opened}) == 1
    summary = load_catalog().load_table(clean_table(topic)).current_snapshot().summary
    assert int(summary["total-records"]) == DAYS + 3
