"""The effect of raise_alerts on a real PostgreSQL: one alert for each quake and leak, announced with each rise."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, permutations
from typing import Any

import pytest
from sqlalchemy import Connection, Row, delete, select

from include.streams.contracts import Topic
from include.streams.kafka.messages import Message
from include.streams.operations import tables
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.water.alerts.effect import WEBHOOK_CONN_ID, raise_alert
from include.water.consumers import RAISE_ALERTS
from include.water.sites import SITES
from include.water.tables import alerts as alerts_table
from include.water.topics import (
    ALERTS_RAISED,
    LEAKS_DETECTED,
    SEISMIC_EVENTS,
    AlertRaised,
    LeakDetected,
    SeismicEvent,
    Severity,
)
from tests.unit.water.test_topics import NOW, example

pytestmark = pytest.mark.integration

offsets = count(100)
DAM = SITES["dam-upper"]
MAGNITUDES = {Severity.minor: 4.0, Severity.major: 5.0, Severity.critical: 6.0}


@pytest.fixture(autouse=True)
def database(services) -> Iterator[None]:
    upgrade()
    with begin() as connection:
        connection.execute(delete(alerts_table))
        connection.execute(delete(tables.outbox))
    yield
    with begin() as connection:  # other deliveries must not find these rows
        connection.execute(delete(tables.outbox))


def message(topic: Topic, event: Any) -> Message:
    key, value = topic.serialize(event)
    return Message(
        topic=topic.name,
        topic_id="id",
        partition=1,
        offset=next(offsets),
        timestamp=NOW,
        key=key,
        value=value,
        headers=(),
        event=event,
    )


def leak(**changes: Any) -> Message:
    return message(LEAKS_DETECTED, example(LeakDetected, **{"litres_per_hour": 900.0, **changes}))


def quake(severity: Severity | None, **changes: Any) -> Message:
    """A revision that the rules find this severe."""
    magnitude = MAGNITUDES[severity] if severity else 1.0
    place = {"latitude": DAM.latitude, "longitude": DAM.longitude, "depth_km": 0.0, "magnitude": magnitude}
    updated = NOW + timedelta(seconds=next(offsets))
    return message(SEISMIC_EVENTS, example(SeismicEvent, **{**place, "updated_at": updated, **changes}))


def handle(*messages: Message) -> None:
    for message in messages:
        with begin() as connection:
            raise_alert(connection, message)


def alerts() -> list[Row]:
    with begin() as connection:
        return list(connection.execute(select(alerts_table).order_by("alert_id")))


def outbox(kind: str) -> list[Row]:
    with begin() as connection:
        query = select(tables.outbox).where(tables.outbox.c.kind == kind).order_by("sequence")
        return list(connection.execute(query))


def announced() -> list[AlertRaised]:
    events = [ALERTS_RAISED.parse(row.body) for row in outbox("message")]
    return [event for event in events if isinstance(event, AlertRaised)]


def test_a_leak_becomes_a_row_a_message_and_a_request():
    source = leak()
    handle(source)
    (row,) = alerts()
    assert (row.alert_id, row.revision, row.kind, row.severity) == ("leak:harbour/2026-11-21/1", 1, "leak", "minor")
    assert (row.source_topic, row.source_partition, row.source_offset) == ("leaks.detected", 1, source.offset)
    assert row.source_timestamp == NOW
    (event,) = announced()
    assert (event.alert_id, event.revision, event.severity) == (row.alert_id, 1, Severity.minor)
    assert (event.source_event_id, event.source_offset) == (source.event.event_id, source.offset)
    (to_kafka,), (to_webhook,) = outbox("message"), outbox("request")
    assert (to_kafka.consumer, to_kafka.destination) == (RAISE_ALERTS.name, ALERTS_RAISED.name)
    assert to_kafka.key == row.alert_id.encode()
    assert (to_webhook.consumer, to_webhook.destination) == (RAISE_ALERTS.name, WEBHOOK_CONN_ID)
    assert json.loads(to_webhook.body) == json.loads(to_kafka.body)


def test_an_event_below_the_thresholds_writes_nothing():
    handle(leak(litres_per_hour=10.0), quake(None))
    assert alerts() == []
    assert outbox("message") == outbox("request") == []


def test_a_failed_transaction_leaves_nothing():
    def crash(connection: Connection) -> None:
        raise_alert(connection, leak())
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"), begin() as connection:
        crash(connection)
    assert alerts() == []
    assert outbox("message") == outbox("request") == []


def test_a_repeated_leak_is_not_announced_again():
    handle(leak(), leak(model_version="another"), leak())
    assert len(alerts()) == len(announced()) == 1


def test_another_leak_is_another_alert():
    handle(leak(), leak(leak_key="harbour/2026-11-21/2"))
    assert len(alerts()) == len(announced()) == 2


def test_a_more_severe_revision_updates_the_alert_and_is_announced():
    handle(quake(Severity.minor), quake(Severity.critical))
    (row,) = alerts()
    assert (row.revision, row.severity) == (2, "critical")
    assert row.title.startswith("M 6.0")
    assert row.updated_at > row.raised_at
    assert [(event.revision, event.severity) for event in announced()] == [(1, "minor"), (2, "critical")]
    assert len({event.event_id for event in announced()}) == 2


def test_a_revision_of_lower_or_equal_severity_changes_nothing():
    handle(quake(Severity.major), quake(Severity.major), quake(Severity.minor), quake(None))
    (row,) = alerts()
    assert (row.revision, row.severity) == (1, "major")
    assert len(announced()) == len(outbox("request")) == 1


@pytest.mark.parametrize("order", permutations(Severity))
def test_the_most_severe_revision_wins_in_any_order(order: tuple[Severity, ...]):
    handle(*map(quake, order))
    (row,) = alerts()
    assert row.severity == "critical"
    assert [event.revision for event in announced()] == list(range(1, row.revision + 1))
    ranks = [event.severity.rank for event in announced()]
    assert ranks == sorted(set(ranks))


def test_two_concurrent_revisions_of_a_quake_make_one_alert():
    minor, critical = quake(Severity.minor), quake(Severity.critical)
    second = threading.Thread(target=handle, args=(critical,))
    with begin() as connection:
        raise_alert(connection, minor)
        second.start()
        second.join(timeout=1)
        assert second.is_alive(), "the second did not wait for the first transaction"
    second.join(timeout=20)
    (row,) = alerts()
    assert (row.revision, row.severity) == (2, "critical")
    assert sorted(event.revision for event in announced()) == [1, 2]


def test_alerts_say_when_they_were_raised():
    before = datetime.now(UTC)
    handle(leak())
    (event,) = announced()
    assert before <= event.raised_at <= datetime.now(UTC)
