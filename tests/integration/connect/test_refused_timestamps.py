"""Records with odd timestamps, some of which Connect refuses, are not lost and stop no partition."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import Mock

import pytest

from include.streams.kafka.connection import client_config, producer_config
from include.streams.landing import __main__ as command
from include.streams.landing import connectors, watchdog
from include.streams.landing.connect import Connect
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.repair import repair
from include.streams.landing.tables import connector_name
from include.streams.landing.verification import verify
from tests.clients import producer_to
from tests.integration.connect.conftest import (
    alarms,
    connector_status,
    expected,
    landed_records,
    rows,
    send,
    wait_for,
    wait_until_landed,
)
from tests.integration.kafka.conftest import admin, open_claims, order
from tests.integration.kafka.test_refused_dead_letters import set_config
from tests.integration.landing.test_run import clean_rows, counts, run

__all__ = ["admin"]

pytestmark = pytest.mark.integration


def send_refused(topic, *timestamps: int) -> None:
    producer = producer_to(producer_config(client_config()), topic.name)
    for timestamp in timestamps:
        producer.produce(topic.name, b"refused", partition=0, timestamp=timestamp)
    assert producer.flush(30) == 0


class Killed(BaseException):
    """Stands for a kill of the process at this point."""


def test_records_with_negative_timestamps_are_stepped_over_and_land(
    make_topic, folder, connect, watched, monkeypatch, caplog
):
    topic = make_topic(partitions=2)
    name = connector_name(topic)
    connectors.apply([topic], folder=folder)
    wait_until_landed(topic, sent := send(topic, [b"%d" % n for n in range(6)]))
    send_refused(topic, -62135596800000, -2)
    sent |= send(topic, [b"later %d" % n for n in range(6)])
    wait_for(lambda: connector_status(connect, topic).has_failed)
    with monkeypatch.context() as patch:
        # Killed while the connector is stopped.
        patch.setattr(Connect, "set_offsets", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            watchdog.check_connectors([topic])
    assert connector_status(connect, topic).connector == "STOPPED"
    assert "stepping_over" in alarms(name)

    assert watchdog.check_connectors([topic]) == [name]
    said = alarms(name)
    assert "partition 0: 2 records with a negative timestamp from offset 3 on" in said["records_stepped_over"]
    assert "stepping_over" not in said
    wait_until_landed(topic, sent)
    assert landed_records(topic) == 12
    missing = verify(topic).missing
    assert [(gap.offsets.partition, gap.offsets.start, gap.offsets.end) for gap in missing] == [(0, 3, 5)]
    assert repair(topic, missing).appended == 2
    sent |= {(0, 3): "refused", (0, 4): "refused"}
    assert rows(topic) == expected(topic, sent)
    assert not verify(topic).missing
    wait_for(lambda: connector_status(connect, topic).is_running)
    watchdog.check_connectors([topic], watchdog.Limits(well_after=watchdog.timedelta(0)))
    assert alarms(name) == {}


def test_times_in_micro_and_nanoseconds_land_and_become_clean_rows(make_topic, folder, connect, watched, admin):
    topic = make_topic(partitions=2)
    # Since Kafka 4.0, a broker refuses such times by default.
    set_config(admin, topic.name, "message.timestamp.after.max.ms", str(2**63 - 1))
    connectors.apply([topic], folder=folder)
    producer = producer_to(producer_config(client_config()), topic.name)
    times = [1_764_140_000_000_000, 1_764_140_000_000_000_000, 2**63 - 1]
    for number, timestamp in enumerate(times):
        producer.produce(topic.name, order(number), partition=0, timestamp=timestamp)
    assert producer.flush(30) == 0
    sent = {(0, number): order(number).decode() for number in range(len(times))}
    sent |= send(topic, [order(f"later {n}") for n in range(4)])
    wait_until_landed(topic, sent)
    assert rows(topic) == expected(topic, sent)
    assert watchdog.check_connectors([topic]) == []
    assert connector_status(connect, topic).is_running
    lane = LandingConsumer(
        name=f"lane-{connector_name(topic)}", topic=topic, min_messages_per_unit=1, landing_grace=timedelta()
    )
    found = counts(run(lane))
    assert found == {"landed": 7, "clean": 7, "dead_lettered": 0, "duplicates": 0, "without_record": 0}
    assert [row[:2] for row in clean_rows(topic)] == sorted(sent)
    assert open_claims(lane) == 0
    assert (alarms(connector_name(topic)), alarms(lane.name)) == ({}, {})


def test_a_person_can_step_over_with_a_command(make_topic, folder, connect, watched, monkeypatch, capsys):
    topic = make_topic(partitions=1)
    connectors.apply([topic], folder=folder)
    send_refused(topic, -2)
    wait_for(lambda: connector_status(connect, topic).has_failed)
    monkeypatch.setattr(command, "load_registry", lambda _: [topic])
    assert command.main(["step-over", connector_name(topic)]) == 0
    assert "1 records with a negative timestamp from offset 0 on" in capsys.readouterr().out
    wait_until_landed(topic, send(topic, [b"later"]))
    assert command.main(["step-over", connector_name(topic)]) == 0
    assert "no record with a negative timestamp" in capsys.readouterr().out


def test_headers_that_no_converter_can_parse_stop_no_task(make_topic, folder, connect):
    topic = make_topic(partitions=1)
    connectors.apply([topic], folder=folder)
    producer = producer_to(producer_config(client_config()), topic.name)
    # Connect's default converter parses header values, and fails with StackOverflowError at deep nesting.
    headers = [("nested", b"[" * 500_000), ("bytes", b"\xff\x00"), ("none", None), ("", b'{"a":')]
    producer.produce(topic.name, b"odd headers", headers=headers)
    assert producer.flush(30) == 0
    sent = {(0, 0): "odd headers"} | send(topic, [b"later"])
    wait_until_landed(topic, sent)
    assert rows(topic) == expected(topic, sent)
    assert connector_status(connect, topic).is_running
