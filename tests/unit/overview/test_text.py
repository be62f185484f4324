"""The lines that `make look` prints."""

from __future__ import annotations

from typing import Any

import pytest

from include.streams.overview.facts import AlarmFacts, ConsumedTopic, ConsumerFacts, LandedTopic, Overview
from include.streams.overview.text import duration, lines_of


def consumed(topic: str, **changes: Any) -> ConsumedTopic:
    known: Any = {"lag": 0, "age_seconds": None, "handled": 5, "duplicates": 0, "dead_letters": 0, "not_wanted": 0}
    return {"topic": topic, **known, **changes}


def consumer(name: str, *topics: ConsumedTopic, **changes: Any) -> ConsumerFacts:
    known: Any = {"lane": "event", "dead_letters": {}, "open_claims": 0, "oldest_claim_seconds": None}
    return {"name": name, "topics": list(topics), "unhandled": 0, "failing": 0, **known, **changes}


def landed(topic: str, **changes: Any) -> LandedTopic:
    known: Any = {"rows": 5, "clean_rows": 5, "not_landed": 0, "missing": 0, "committed_seconds": 1.0}
    return {"topic": topic, "connector": "RUNNING (task 0 RUNNING)", "cause": "", **known, **changes}


def alarm(kind: str, message: str = "repair it", key: str = "") -> AlarmFacts:
    return {
        "source": "billing", "kind": kind, "key": key, "message": message, "open_seconds": 190.0,
        "runbook": f"docs/runbooks/{kind}.md",
    }  # fmt: skip


def overview(**changes: Any) -> Overview:
    whole: Any = {
        "at": "2026-01-03T12:00:05+00:00", "since": "2026-01-02T12:00:05+00:00", "consumers": [], "landed": [],
        "dags": {}, "alarms": [], "problems": [],
    }  # fmt: skip
    return {**whole, **changes}


def said(**changes: Any) -> str:
    return "\n".join(lines_of(overview(**changes)))


def test_a_project_without_consumers_shows_its_time_and_no_alarm():
    assert lines_of(overview()) == ["2026-01-03 12:00:05 UTC, counted over the last 24 h", "", "no alarm is open"]


def test_a_consumer_has_a_line_for_each_topic():
    shown = consumed("orders", lag=1200, age_seconds=300, handled=123, duplicates=1, dead_letters=4, not_wanted=1500)
    one = consumer("billing", shown, consumed("returns"), dead_letters={"not_json": 1, "wrong_type": 3})
    lines = lines_of(overview(consumers=[one]))
    assert "billing: no open claim" in lines
    assert [line.split() for line in lines if line.startswith("  ")] == [
        ["orders", "1,200", "5", "min", "123", "1", "4"],
        ["1,500", "of", "other", "types,", "not", "wanted"],
        ["returns", "0", "-", "5", "0", "0"],
        ["dead", "letters:", "3", "wrong_type,", "1", "not_json"],
    ]


def test_open_claims_show_their_messages_and_their_age():
    claims = {"open_claims": 2, "unhandled": 40, "oldest_claim_seconds": 1300.0, "failing": 1}
    text = said(consumers=[consumer("billing", **claims)])
    assert "billing: 2 open claims, 40 messages, oldest 22 min; 1 ranges fail" in text


def test_an_unknown_number_is_not_shown_as_zero():
    away = consumed("orders", lag=None, handled=None, duplicates=None, dead_letters=None)
    text = said(consumers=[consumer("billing", away, open_claims=None, dead_letters=None)])
    assert "billing: open claims ?" in text
    assert text.splitlines()[4].split() == ["orders", "?", "-", "?", "?", "?"]


def test_an_unavailable_service_is_one_line():
    text = said(problems=[{"service": "Kafka Connect", "text": "no answer"}], landed=[landed("scans", connector=None)])
    assert text.count("Kafka Connect cannot be queried: no answer") == 1
    assert "connector ?" in text


def test_a_failed_connector_shows_its_cause():
    text = said(landed=[landed("scans", connector="RUNNING (task 0 FAILED)", cause="ConnectException")])
    assert "    connector RUNNING (task 0 FAILED): ConnectException" in text


def test_busy_and_failed_dags_have_lines_and_others_are_counted():
    dags = {"bill": {"failed": 1, "success": 3}, "pay": {"running": 1}, "a": {"success": 2}, "b": {"success": 5}}
    lines = [line.split() for line in lines_of(overview(dags=dags))]
    assert ["bill", "0", "0", "1", "3"] in lines
    assert ["pay", "1", "0", "0", "0"] in lines
    assert ["2", "others", "0", "0", "0", "7"] in lines
    assert "DAG RUNS" not in said(dags=None)


def test_an_alarm_names_its_runbook_and_many_are_counted():
    text = said(alarms=[alarm("lag", "word " * 200)])
    assert "  lag  billing  for 3 min" in text
    assert "  lag  billing orders  for 3 min" in said(alarms=[alarm("lag", key="orders")])
    assert "    see docs/runbooks/lag.md" in text
    assert len(text.splitlines()) < 10
    assert "and 2 more: python -m include.streams.operations alarms" in said(alarms=[alarm("lag")] * 7)


def test_no_line_exceeds_the_terminal_and_long_names_move_no_column():
    long = consumer("c" * 100, consumed("t" * 60, lag=7))
    lines = lines_of(
        overview(consumers=[long, consumer("billing", consumed("orders", lag=7))], alarms=[alarm("k" * 90)])
    )
    assert max(map(len, lines)) <= 80
    assert len({line.rstrip().index("7") for line in lines if line.rstrip().endswith("0") and " 7 " in line}) == 1


def test_three_consumers_and_a_landed_topic_fit_on_one_screen():
    consumers = [consumer(f"c{n}", consumed("a"), consumed("b"), dead_letters={"not_json": 1}) for n in range(3)]
    dags = {f"dag{n}": {"failed": 1} for n in range(20)}
    lines = lines_of(overview(consumers=consumers, landed=[landed("scans")], dags=dags, alarms=[alarm("lag")]))
    assert len(lines) <= 40


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1, "0 s"),
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (9e5, "10 d"),
    ],
)
def test_a_duration_is_short(seconds, text):
    assert duration(seconds) == text
