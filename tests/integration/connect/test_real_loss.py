"""The sink really loses files while it is RUNNING without lag; the lane finds the gap, and repairs it once."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import pytest

from include.streams.landing import connectors, snapshot
from include.streams.landing.connect import ConnectUnreachable
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import history
from include.streams.landing.tables import connector_name, load_landing_table, raw_table, topic_id
from include.streams.landing.verification import verify
from tests.integration.connect.conftest import (
    FAST,
    configure,
    connector_status,
    expected,
    landed_records,
    rows,
    send,
    wait_for,
    wait_until_read,
)
from tests.integration.landing.conftest import alarms_of, offsets_of, plan_run

pytestmark = pytest.mark.integration


def runs_again(connect, topic) -> bool:
    """Whether its task has joined the group again: no record is read before the dead member's session has ended."""
    try:
        return connector_status(connect, topic).is_running
    except ConnectUnreachable:
        return False


def test_files_lost_without_a_preset_offset_are_repaired_once(
    connect_services, make_topic, folder, refuse_commits, connect, watched, monkeypatch
):
    # `apply` does this to prevent the loss.
    monkeypatch.setattr(connectors, "preset_coordinator", lambda *_: [])
    topic = make_topic()
    connectors.create_landing_table(topic)
    allow = refuse_commits(topic)
    # Each commit waits for files: an empty commit would not be refused, and would give the coordinator an offset.
    slow = {**FAST, "iceberg.control.commit.interval-ms": "2000", "iceberg.control.commit.timeout-ms": "30000"}
    configure(folder, topic, slow)
    first = send(topic, [b'{"number": %d}' % n for n in range(400)])
    connectors.apply([topic], folder=folder)
    wait_until_read(topic)
    configure(folder, topic, {**slow, "tasks.max": "1"})
    connectors.apply([topic], folder=folder)
    wait_for(lambda: len(connector_status(connect, topic).tasks) == 1)
    # Otherwise a coordinator that waits to repeat its commit would still make it.
    (pid,) = connect_services.pids("connect")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: connect_services.pids("connect") not in ([], [pid]))
    wait_for(lambda: runs_again(connect, topic))
    allow()
    later = send(topic, [b"later"] * 20)
    wait_for(lambda: landed_records(topic) >= len(later))
    wait_until_read(topic)
    # The sink shows no problem: its tasks run and its group has no lag. But the first 400 records are in no table.
    assert connector_status(connect, topic).is_running
    assert rows(topic) == expected(topic, later)

    consumer = LandingConsumer(
        name=connector_name(topic), topic=topic, min_messages_per_unit=1, landing_grace=timedelta()
    )
    monkeypatch.setattr(snapshot, "INNER_GRACE", timedelta(hours=1))
    assert {gap.offsets.start for gap in verify(topic).missing} == {0}
    assert "landing_gap" not in alarms_of(raw_table(topic)), "its grace is not over"
    units = plan_run(consumer, "run")
    assert rows(topic) == expected(topic, {**first, **later})
    assert offsets_of(units) == sorted({**first, **later})
    message, is_open = alarms_of(raw_table(topic))["landing_gap"]
    for partition in range(2):
        assert f"{topic.name}-{partition}: records have not landed" in message
    assert message.count("200 offsets were missing: [0, 200)") == 2
    assert not is_open
    repaired = history(topic_id(load_landing_table(topic)))
    assert sorted((row.state, row.partition, row.start_offset, row.end_offset) for row in repaired) == [
        ("repaired", 0, 0, 200),
        ("repaired", 1, 0, 200),
    ]
    assert sum(row.records for row in repaired) == 400
