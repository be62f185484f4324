"""`make look` on real services: it shows the actual state, and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from include.streams import Package, Project, Registry, Topic
from include.streams import __main__ as command
from include.streams.compat import metadata
from include.streams.kafka import tasks
from include.streams.landing import verification
from include.streams.landing.tables import load_landing_table, raw_table
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.overview.facts import Overview
from include.streams.overview.gathering import gather
from tests.integration.kafka.conftest import make_consumer, order
from tests.integration.landing.conftest import land, sink_commits

__all__ = ["make_consumer"]
pytestmark = pytest.mark.integration


def project_of(*consumers: Any, topics: tuple[Topic, ...] = ()) -> Project:
    event_lane = tuple(c for c in consumers if hasattr(c, "effect"))
    landing = tuple(c for c in consumers if not hasattr(c, "effect"))
    named = {topic.name: topic for c in event_lane for topic in c.topics} | {c.topic.name: c.topic for c in landing}
    named |= {topic.name: topic for topic in topics}
    registry = Registry(*named.values())
    return Project(Package(name="shop", topics=registry, consumers=event_lane, landing_consumers=landing))


def services_that_are_away(found: Overview) -> set[str]:
    return {problem["service"] for problem in found["problems"]}


def rows(statement: str, **values: Any) -> list[tuple]:
    with begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


@pytest.fixture
def consumer(make_topic, make_consumer, landing_services):
    return make_consumer(make_topic(partitions=2))


def test_handled_and_waiting_messages_of_a_consumer_are_counted(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"), order("b"), order("a"), b"not json", order("c", amount="many"))
    tasks.claim_messages(consumer, "run")
    send(topic, order("d"), partition=1)
    send(topic, order("e"), partition=0)
    found = gather(project_of(consumer))
    assert services_that_are_away(found) <= {"Airflow"}
    (facts,) = found["consumers"]
    (counted,) = facts["topics"]
    assert counted.pop("age_seconds") == pytest.approx(1, abs=10)
    assert counted == {"topic": topic.name, "lag": 2, "handled": 2, "duplicates": 1, "dead_letters": 2, "not_wanted": 0}
    assert facts["dead_letters"] == {"not_json": 1, "wrong_type": 1}
    assert (facts["open_claims"], facts["oldest_claim_seconds"], facts["failing"]) == (0, None, 0)


def test_an_open_claim_shows_its_messages_its_age_and_failing_ranges(consumer, send):
    (topic,) = consumer.topics
    # -2 stands for an effect that fails.
    send(topic, order("a"), order("b", -2))
    (chunk,) = tasks.claim_messages(consumer, "run")
    with begin() as connection:
        older = "update claims set claimed_at = claimed_at - interval '5 minutes' where consumer = :name"
        connection.execute(text(older), {"name": consumer.name})
    facts = gather(project_of(consumer))["consumers"][0]
    assert (facts["open_claims"], facts["unhandled"], facts["failing"]) == (1, 2, 0)
    assert facts["oldest_claim_seconds"] == pytest.approx(300, abs=60)
    tasks.postponed.postpone(chunk["claim_id"], [tasks.OffsetRange(**r) for r in chunk["ranges"]])
    assert gather(project_of(consumer))["consumers"][0]["failing"] == 1


def test_messages_before_the_period_are_not_counted(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"))
    tasks.claim_messages(consumer, "run")
    with begin() as connection:
        older = "update inbox set recorded_at = recorded_at - interval '2 hours' where consumer = :name"
        connection.execute(text(older), {"name": consumer.name})
    handled = lambda hours: gather(project_of(consumer), period=timedelta(hours=hours))["consumers"][0]["topics"][0]  # noqa: E731
    assert (handled(1)["handled"], handled(3)["handled"]) == (0, 1)


def test_gathering_records_nothing_and_opens_no_alarm(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"))
    slow = replace(consumer, max_lag=0, max_age=timedelta(0))
    assert gather(project_of(slow))["consumers"][0]["topics"][0]["lag"] == 1
    for table in ("log_ends", "open_transactions", "alarms"):
        column = "consumer" if table == "log_ends" else "source"
        assert rows(f"select 1 from {table} where {column} = :name", name=slow.name) == []


def test_a_landed_topic_shows_landed_and_missing_records(landed_topic, lane, send_orders, landed_long_ago):
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    land(topic, 0, range(0, 10), range(15, 20))
    sink_commits(topic, _0=20)
    verification.verify(topic)
    found = gather(project_of(lane(topic)))
    assert services_that_are_away(found) <= {"Airflow", "Kafka Connect"}
    (landed,) = found["landed"]
    assert landed["committed_seconds"] == pytest.approx(5, abs=60)
    shown = {name: landed[name] for name in ("topic", "rows", "clean_rows", "not_landed", "missing")}
    assert shown == {"topic": topic.name, "rows": 15, "clean_rows": None, "not_landed": 10, "missing": 5}
    (facts,) = found["consumers"]
    assert (facts["lane"], facts["topics"][0]["lag"], facts["topics"][0]["handled"]) == ("standard", 20, None)


def test_an_unavailable_broker_or_catalog_is_named_beside_the_rest(consumer, send, landed_topic, lane, monkeypatch):
    (topic,) = consumer.topics
    send(topic, order("a"))
    landed = landed_topic(partitions=1)
    extra = json.dumps({"bootstrap.servers": "127.0.0.1:1"})
    monkeypatch.setenv("AIRFLOW_CONN_BROKER_AWAY", json.dumps({"conn_type": "kafka", "extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_CONNECT", "http://127.0.0.1:1")
    other = replace(consumer, name=f"{consumer.name}-2", conn_id="broker_away")
    monkeypatch.setattr("include.streams.overview.gathering.BROKER_SECONDS", 1.0)
    found = gather(project_of(consumer, other, lane(landed)))
    assert services_that_are_away(found) - {"Airflow"} == {"Kafka (broker_away)", "Kafka Connect"}
    lags = {facts["name"]: facts["topics"][0]["lag"] for facts in found["consumers"]}
    assert (lags[consumer.name], lags[other.name]) == (1, None)
    assert (found["landed"][0]["rows"], found["landed"][0]["connector"]) == (0, None)


def test_a_table_that_hangs_is_given_up_after_the_time_limit(consumer):
    with begin() as blocker:
        blocker.execute(text("lock table claims in access exclusive mode"))
        found = gather(project_of(consumer), seconds=2)
    assert "no answer within 2 s" in {problem["text"] for problem in found["problems"]}
    assert found["consumers"][0]["open_claims"] is None
    assert found["consumers"][0]["topics"][0]["handled"] == 0


@pytest.fixture
def alarm(landed_topic) -> Iterator[Topic]:
    topic = landed_topic(partitions=1)
    with begin() as connection:
        open_alarm(connection, raw_table(topic), AlarmKind.landing_gap, "offsets are missing")
    yield topic
    with begin() as connection:
        close_alarm(connection, raw_table(topic), AlarmKind.landing_gap)


def test_an_open_alarm_has_its_page(alarm, lane):
    shown = gather(project_of(lane(alarm)), topic=alarm.name)["alarms"] or []
    assert [(one["source"], one["kind"], one["runbook"]) for one in shown] == [
        (raw_table(alarm), "landing_gap", "docs/runbooks/landing-gap.md")
    ]
    assert load_landing_table(alarm) is not None


@pytest.fixture
def look(consumer, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command for a project with one consumer; returns exit code, standard output and standard error."""
    monkeypatch.setattr(command, "resolve_name", lambda name: project_of(consumer))

    def look(*arguments: str) -> tuple[int, str, str]:
        code = command.main(["look", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return look


def test_the_command_prints_lines_or_one_json_object(look, consumer):
    code, out, _ = look()
    assert (code, f"{consumer.name}: no open claim" in out) == (0, True)
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = look("--json", "--consumer", consumer.name)
    assert (code, json.loads(out)["consumers"][0]["name"]) == (0, consumer.name)
    code, out, err = look("--consumer", "nobody")
    assert (code, out) == (1, "")
    assert "no consumer 'nobody' in include/project.py" in err
    assert look("--hours", "0")[0] == 1


@pytest.fixture
def metadata_database(new_database, monkeypatch) -> str:
    """A database with the columns of Airflow's table that are read; Airflow's setting names this database."""
    url = os.environ[f"AIRFLOW_CONN_{new_database().upper()}"]
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url.replace("postgres://", "postgresql://"))
    with psycopg.connect(url) as connection:
        connection.execute("create table dag_run (dag_id text, state text, run_after timestamptz)")
    return url


def test_runs_of_the_period_and_unended_runs_are_counted_by_state(metadata_database):
    now = datetime.now(UTC)
    runs = [
        ("bill", "success", now), ("bill", "success", now), ("bill", "failed", now - timedelta(hours=1)),
        ("bill", "success", now - timedelta(days=2)), ("pay", "running", now - timedelta(days=2)),
    ]  # fmt: skip
    with psycopg.connect(metadata_database) as connection, connection.cursor() as cursor:
        cursor.executemany("insert into dag_run values (%s, %s, %s)", runs)
    found = metadata.run_states(now - timedelta(days=1))
    assert found == {"bill": {"success": 2, "failed": 1}, "pay": {"running": 1}}


@pytest.mark.parametrize("url", ["", "sqlite:////tmp/airflow.db", "postgresql://nobody@127.0.0.1:1/none"])
def test_a_missing_airflow_database_is_reported(url, monkeypatch, consumer):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url)
    with pytest.raises(metadata.MetadataUnreachable):
        metadata.run_states(datetime.now(UTC))
    found = gather(project_of(consumer))
    assert (found["dags"], services_that_are_away(found)) == (None, {"Airflow"})
