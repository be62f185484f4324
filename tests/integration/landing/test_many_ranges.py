"""A run with thousands of offset ranges (of a topic with as many partitions) finds its rows quickly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from include.streams.kafka.offsets import OffsetRange
from include.streams.lake import engine
from include.streams.lake.catalog import load_catalog
from include.streams.landing import balance, clean
from include.streams.landing.balance import finish
from include.streams.landing.clean import as_parts, commit_clean, count_of
from include.streams.landing.conflicts import _landed_texts, _validated_texts
from include.streams.landing.planning import claim_landed
from include.streams.landing.positions import claim_of
from include.streams.landing.tables import clean_table
from include.streams.landing.validation import validate_unit
from include.streams.validators import coordinates, sets
from tests.integration.landing.test_run import clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

# A condition that names each range takes DuckDB a minute.
MESSAGES = 2_500


@contextmanager
def seconds_at_most(limit: float) -> Iterator[None]:
    """Seconds of processor time, because a busy machine is slow."""
    began = time.process_time()
    yield
    assert time.process_time() - began < limit


def each_alone(ranges: list[OffsetRange]) -> list[OffsetRange]:
    return [replace(part, start=offset, end=offset + 1) for part in ranges for offset in range(part.start, part.end)]


@pytest.fixture
def lane(consumer, send):
    """A lane with MESSAGES in a partition, and a few in another."""
    lane = consumer()
    for partition, count in ((0, MESSAGES), (1, 5)):
        values = [sale(f"{partition}-{number}") for number in range(count)]
        send(lane.topic, *values, partition=partition)
        land(lane.topic, partition, 0, *values)
    return lane


def test_a_run_over_thousands_of_ranges_replaces_counts_and_checks_its_rows(lane, monkeypatch):
    whole = run(lane)
    before = clean_rows(lane.topic)
    assert len(before) == whole["clean"] == MESSAGES + 5
    real = clean.replaceable
    for module in (clean, balance):
        monkeypatch.setattr(module, "replaceable", lambda *arguments: each_alone(real(*arguments)))
    with seconds_at_most(20):
        units = claim_landed(lane, "run-1")
        # Rows of the first try, some of which this one does not replace.
        monkeypatch.setattr(clean, "replaceable", lambda *arguments: each_alone(real(*arguments))[:-1])
        validated = [validate_unit(lane, each_range_alone(unit), "run-1") for unit in units]
        summary = commit_clean(lane, validated, "run-1")
        assert counts(summary) == {**counts(whole), "clean": MESSAGES + 4, "duplicates": 1}
        monkeypatch.setattr(clean, "replaceable", lambda *arguments: each_alone(real(*arguments)))
        summary = commit_clean(lane, validated, "run-1")
        finish(lane, summary, "run-1")
    assert counts(summary) == counts(whole)
    assert clean_rows(lane.topic) == before


def each_range_alone(unit: dict) -> dict:
    parts = [
        {**part, "start": offset, "end": offset + 1}
        for part in unit["ranges"]
        for offset in range(part["start"], part["end"])
    ]
    return {**unit, "ranges": parts}


def test_exactly_the_rows_of_the_ranges_and_of_their_log_are_found(lane):
    run(lane)
    table = load_catalog().load_table(clean_table(lane.topic))
    _, ranges = claim_of(lane, "run-1")
    some = [part for part in each_alone(ranges) if part.start % 2]
    places = [(part.partition, part.start) for part in some]
    with engine.connect() as connection, seconds_at_most(20):
        columns = ["kafka_partition", "kafka_offset"]

        def found(parts: list[dict]) -> list[tuple[int, int]]:
            return sorted(sets.rows_of(connection, table, parts, columns).fetchall())

        assert found(as_parts(some)) == sorted(places)
        assert count_of(connection, table, some) == len(some)
        others = coordinates.rows_in_ranges(connection, engine.scan(connection, table), as_parts(some), others=True)
        assert others.count("*").fetchall() == [(MESSAGES + 5 - len(some),)]
        # Ranges of any log, of another log, and no range.
        assert found([{**part, "log": None} for part in as_parts(some)]) == sorted(places)
        another = [{**part, "log": "another"} for part in as_parts(some)]
        assert found(another) == []
        assert coordinates.files_of(table, another) == []
        assert found([]) == []
        beyond = {"partition": 1, "start": 5, "end": MESSAGES, "log": None}
        assert found([beyond]) == []


def test_the_texts_of_hundreds_of_conflicts_are_found(lane):
    places = {(0, offset) for offset in range(0, MESSAGES, 2)} | {(1, 4)}
    with engine.connect() as connection, seconds_at_most(20):
        texts = _landed_texts(connection, lane, places)
        assert texts.keys() == places
        assert texts[1, 4] == (datetime(2026, 1, 5, tzinfo=UTC), sale("1-4").decode(), [])
        connection.execute(
            "create temp view staged as select 0 as kafka_partition, n as kafka_offset, null::timestamptz as "
            f"kafka_timestamp, 'log' as kafka_log, 'x' || n as text from range({MESSAGES}) numbers(n)"
        )
        validated = _validated_texts(connection, places)
        assert validated.keys() == places - {(1, 4)}
        assert '"text":"x42"' in (validated[0, 42][1] or "")
