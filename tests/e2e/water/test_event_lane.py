"""The event lane in a real Airflow: a message in Kafka becomes an alert, whatever happens to the processes between.

Everything is looked at from outside: Airflow through its REST API, the effects in the database, Kafka through clients
of the tests' own.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from include.streams.contracts import Contract, Topic
from include.streams.contracts.breaking import broken
from include.water.consumers import RAISE_ALERTS
from include.water.sites import DISTRICTS, SITES
from include.water.topics import ALERTS_RAISED, LEAKS_DETECTED, SEISMIC_EVENTS, AlertRaised, LeakDetected, SeismicEvent
from tests.clients import producer_to, reader_at
from tests.e2e.airflow import Airflow, wait_for
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = RAISE_ALERTS.name
DAGS = (DAG, "deliver_outbox", "prepare_services")
DAM = SITES["dam-upper"]
Coordinates = tuple[str, int, int]  # topic, partition, offset


class Lane:
    """The stack's topics and operational database, and what has happened there since the test began."""

    def __init__(self, endpoints: dict[str, Any]) -> None:
        self._config = {**endpoints["kafka"]["client_config"], "log_level": 2}
        self._databases = endpoints["databases"]
        self._since = {
            name: self._ends(name)
            for topic in (LEAKS_DETECTED, SEISMIC_EVENTS, ALERTS_RAISED)
            for name in (topic.name, topic.dead_letter_name)
        }

    def send(self, *messages: tuple[Topic, bytes, bytes | None]) -> list[Coordinates]:
        """Produce (topic, key, value) of each; returns where they lie."""
        sent: dict[int, Coordinates] = {}
        producer = producer_to(self._config, *{topic.name for topic, *_ in messages})
        for n, (topic, key, value) in enumerate(messages):

            def delivered(error: Any, record: Message, n: int = n) -> None:
                assert error is None, error
                sent[n] = (str(record.topic()), record.partition() or 0, record.offset() or 0)

            producer.produce(topic.name, key=key, value=value, on_delivery=delivered)
        producer.flush(30)
        return [sent[n] for n in range(len(messages))]

    def query(self, statement: str, *values: Any, database: str = "operations_db") -> list[tuple]:
        with psycopg.connect(self._databases[database], connect_timeout=5) as connection:
            return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]

    def execute(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self._databases["operations_db"], connect_timeout=5) as connection:
            connection.execute(statement, values)  # type: ignore[arg-type]

    def inbox(self, sent: list[Coordinates]) -> dict[Coordinates, tuple[str, str]]:
        """{coordinates: (outcome, run id)} of the messages that have an inbox row."""
        statement = 'select topic, partition, "offset", outcome, run_id from inbox where consumer = %s'
        rows = {tuple(row[:3]): (row[3], row[4]) for row in self.query(statement, DAG)}
        return {where: rows[where] for where in sent if where in rows}

    def wait_for_inbox(self, sent: list[Coordinates], seconds: float = 30) -> dict[Coordinates, tuple[str, str]]:
        missing = f"{len(sent)} messages have an inbox row"
        return wait_for(lambda: (found := self.inbox(sent)) and len(found) == len(sent) and found, seconds, missing)

    def alerts(self, *events: Contract) -> list[tuple[str, str, int]]:
        """(event id, severity, revision) of the alerts that these events raised, in the order of their event ids."""
        statement = (
            "select source_event_id, severity, revision from alerts where source_event_id = any(%s) order by 1, 3"
        )
        return [(str(a), str(b), int(c)) for a, b, c in self.query(statement, [event.event_id for event in events])]

    def announced(self, *events: Contract) -> list[AlertRaised]:
        """The messages on alerts.raised about these events, since the test began."""
        wanted = {event.event_id for event in events}
        found = [ALERTS_RAISED.parse(record.value()) for record in self.records(ALERTS_RAISED.name)]
        return [one for one in found if isinstance(one, AlertRaised) and one.source_event_id in wanted]

    def ranges(self, run_id: str) -> list[tuple]:
        statement = """
            select topic, topic_id, partition, start_offset, end_offset, claim_id, claimed_at
            from claims join claim_ranges on claim_id = id where consumer = %s and run_id = %s order by 1, 3
        """
        return self.query(statement, DAG, run_id)

    def open_claims(self) -> int:
        return self.query("select count(*) from claims where consumer = %s and closed_at is null", DAG)[0][0]

    def records(self, name: str) -> list[Message]:
        """Every record of the topic since the test began."""
        starts = self._since[name]
        expected = sum(self._ends(name)) - sum(starts)
        reader = reader_at(self._config, *(TopicPartition(name, n, offset) for n, offset in enumerate(starts)))
        records = reader.consume(expected, timeout=20) if expected else []
        reader.close()
        assert len(records) == expected
        assert all(record.error() is None for record in records)
        return records

    def _ends(self, name: str) -> list[int]:
        reader = Consumer({**self._config, "group.id": "independent"})
        partitions = sorted(reader.list_topics(name, timeout=10).topics[name].partitions)
        ends = [reader.get_watermark_offsets(TopicPartition(name, n), timeout=10)[1] for n in partitions]
        reader.close()
        return ends


@pytest.fixture
def lane(whole_stack) -> Lane:
    return Lane(whole_stack.endpoints())


def leak(district: str = "harbour", litres_per_hour: float = 12_000.0) -> LeakDetected:
    """A leak that is a critical alert."""
    event = example(
        LeakDetected,
        leak_key=f"{district}/test/{uuid.uuid4().hex[:12]}",
        district_id=district,
        litres_per_hour=litres_per_hour,
        confidence=0.9,
    )
    assert isinstance(event, LeakDetected)
    return event


def quake(magnitude: float = 6.0) -> SeismicEvent:
    """An earthquake below the dam."""
    event = example(
        SeismicEvent,
        seismic_id=f"test{uuid.uuid4().hex[:12]}",
        updated_at=datetime.now(UTC),
        magnitude=magnitude,
        latitude=DAM.latitude,
        longitude=DAM.longitude,
        depth_km=0.0,
    )
    assert isinstance(event, SeismicEvent)
    return event


def of(topic: Topic, event: Contract) -> tuple[Topic, bytes, bytes]:
    return topic, *topic.serialize(event)


def test_a_leak_and_a_quake_become_alerts_within_seconds_and_their_runs_succeed(lane: Lane, airflow: Airflow):
    a_leak, a_quake = leak(), quake()
    sent_at = time.monotonic()
    sent = lane.send(of(LEAKS_DETECTED, a_leak), of(SEISMIC_EVENTS, a_quake))
    wait_for(lambda: len(lane.announced(a_leak, a_quake)) == 2, 20, "both alerts are announced")
    assert time.monotonic() - sent_at < 15
    assert sorted(lane.alerts(a_leak, a_quake)) == sorted([(e.event_id, "critical", 1) for e in (a_leak, a_quake)])
    for announced in lane.announced(a_leak, a_quake):
        assert (announced.revision, announced.severity) == (1, "critical")
        assert (announced.source_topic, announced.source_partition, announced.source_offset) in sent
    runs = {run_id for _, run_id in lane.inbox(sent).values()}
    for run_id in runs:
        airflow.wait_for_success(run_id, DAG)
        assert airflow.run(run_id, DAG)["run_type"] == "asset_triggered"
    states = {task["task_id"]: task["state"] for run_id in runs for task in airflow.tasks(run_id, DAG)}
    # A single message costs one task: there was nothing left to map.
    assert states == {"claim": "success", "handle": "skipped"}


def test_a_bad_message_is_kept_and_the_good_ones_around_it_are_alerts(lane: Lane, airflow: Airflow):
    before, after = leak(), leak()
    key, good = LEAKS_DETECTED.serialize(leak())
    bad = list(broken(LEAKS_DETECTED, leak()).items())
    messages = [(LEAKS_DETECTED, key, value) for _, value in bad]
    sent = lane.send(of(LEAKS_DETECTED, before), *messages, (LEAKS_DETECTED, key, good[:-2]), of(LEAKS_DETECTED, after))
    assert len({partition for _, partition, _ in sent}) == 1, "they were to lie behind one another"
    inbox = lane.wait_for_inbox(sent)
    assert [inbox[where][0] for where in sent] == ["handled", *["dead_letter"] * (len(bad) + 1), "handled"]
    wait_for(lambda: len(lane.announced(before, after)) == 2, 20, "both alerts are announced")
    letters = {int(dict(r.headers())["dlq.offset"]): r for r in lane.records(LEAKS_DETECTED.dead_letter_name)}
    assert sorted(letters) == [offset for _, _, offset in sent[1:-1]]
    for (reason, value), where in zip(bad, sent[1:-2], strict=True):
        letter = letters[where[2]]
        headers = dict(letter.headers())
        assert (letter.key(), letter.value()) == (key, value)
        assert (headers["dlq.reason"], headers["dlq.topic"]) == (reason.encode(), LEAKS_DETECTED.name.encode())
        assert headers["dlq.partition"] == str(where[1]).encode()
        assert (headers["dlq.consumer"], headers["dlq.run_id"]) == (DAG.encode(), inbox[where][1].encode())
    for run_id in {run_id for _, run_id in inbox.values()}:
        airflow.wait_for_success(run_id, DAG)


def test_a_cleared_run_succeeds_again_with_the_same_ranges_and_raises_nothing_twice(lane: Lane, airflow: Airflow):
    event = leak()
    sent = lane.send(of(LEAKS_DETECTED, event), (LEAKS_DETECTED, b"harbour", b"not JSON"))
    (run_id,) = {run_id for _, run_id in lane.wait_for_inbox(sent).values()}
    airflow.wait_for_success(run_id, DAG)
    before = lane.ranges(run_id), lane.inbox(sent), lane.alerts(event)
    assert before[0]
    # A message that comes between must not become part of the cleared run.
    later = lane.send(of(LEAKS_DETECTED, leak()))
    lane.wait_for_inbox(later)
    airflow.ask(
        "POST",
        f"/dags/{DAG}/clearTaskInstances",
        dry_run=False,
        dag_run_id=run_id,
        only_failed=False,
        reset_dag_runs=True,
    )

    def claimed_again() -> bool:
        return any(
            task["task_id"] == "claim" and task["try_number"] == 2 and task["state"] == "success"
            for task in airflow.tasks(run_id, DAG)
        )

    wait_for(claimed_again, 60, "the cleared claim has run again")
    airflow.wait_for_success(run_id, DAG)
    assert (lane.ranges(run_id), lane.inbox(sent), lane.alerts(event)) == before
    assert lane.alerts(event) == [(event.event_id, "critical", 1)]
    assert len(lane.announced(event)) == 1
    assert len(lane.records(LEAKS_DETECTED.dead_letter_name)) == 1
    assert lane.inbox(later)[later[0]][1] != run_id


def test_a_message_that_arrives_while_the_triggerer_is_dead_is_handled(lane: Lane, whole_stack):
    event = leak()
    (before,) = whole_stack.pids("triggerer")
    os.kill(before, signal.SIGKILL)
    sent = lane.send(of(LEAKS_DETECTED, event))
    wait_for(lambda: whole_stack.pids("triggerer") not in ([], [before]), 30, "supervisord has started it again")
    # Airflow gives a dead triggerer's triggers to another one after half a minute.
    lane.wait_for_inbox(sent, seconds=120)
    wait_for(lambda: len(lane.announced(event)) == 1, 20, "the alert is announced")
    assert lane.alerts(event) == [(event.event_id, "critical", 1)]


def test_of_many_messages_at_once_on_both_topics_each_is_handled_once(lane: Lane):
    districts = list(DISTRICTS)
    leaks = [leak(districts[n % len(districts)]) for n in range(400)]
    quakes = [quake() for _ in range(200)]
    messages = [of(LEAKS_DETECTED, event) for event in leaks] + [of(SEISMIC_EVENTS, event) for event in quakes]
    sent = lane.send(*messages, *messages[::10])
    assert len({where[:2] for where in sent}) > 3, "they were to lie in several partitions of both topics"
    inbox = lane.wait_for_inbox(sent, seconds=60)
    outcomes = [outcome for outcome, _ in inbox.values()]
    assert outcomes.count("handled") == len(messages)
    assert outcomes.count("duplicate") == len(messages[::10])
    wait_for(lambda: lane.open_claims() == 0, 30, "no claim is open")
    every = [*leaks, *quakes]
    wait_for(lambda: len(lane.announced(*every)) == len(every), 30, "every alert is announced")
    assert sorted(one.source_event_id for one in lane.announced(*every)) == sorted(event.event_id for event in every)
    assert lane.alerts(*every) == sorted((event.event_id, "critical", 1) for event in every)


def test_the_services_can_be_prepared_through_the_api_and_say_that_nothing_changed(airflow: Airflow):
    dag = "prepare_services"
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    airflow.ask("POST", f"/dags/{dag}/dagRuns", dag_run_id=run_id, logical_date=None)
    airflow.wait_for_success(run_id, dag)
    path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/prepare"
    assert airflow.ask("GET", f"{path}/xcomEntries/return_value")["value"] == []
    log = airflow.ask("GET", f"{path}/logs/1?full_content=true")
    assert "nothing to do: all is as this version needs it" in str(log)


def test_what_arrives_while_the_dag_is_paused_is_handled_once_it_is_not(lane: Lane, airflow: Airflow):
    events = [leak(), leak("hillside")]
    seen = lane.query("select coalesce(max(id), 0) from asset_event", database="airflow_metadata")[0][0]
    airflow.pause(DAG, True)
    try:
        sent = lane.send(*(of(LEAKS_DETECTED, event) for event in events))
        # The event that the message caused was spent on a Dag that takes none.
        wait_for(
            lambda: lane.query("select id from asset_event where id > %s", seen, database="airflow_metadata"),
            30,
            "the trigger has fired",
        )
        assert lane.inbox(sent) == {}
    finally:
        airflow.pause(DAG, False)
    lane.wait_for_inbox(sent, seconds=90)
    assert lane.alerts(*events) == sorted((event.event_id, "critical", 1) for event in events)
    wait_for(lambda: len(lane.announced(*events)) == 2, 20, "both alerts are announced")
