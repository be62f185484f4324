"""A real Kafka Connect lands each record of a topic once, even if its workers are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from include.streams.kafka.connection import client_config, consumer_config
from include.streams.landing import connectors, watchdog
from include.streams.landing.control import named_files
from include.streams.landing.tables import connector_name, load_landing_table
from tests.clients import reader_at
from tests.integration.connect.conftest import (
    FAST,
    alarms,
    configure,
    connector_status,
    expected,
    landed_records,
    rows,
    send,
    wait_for,
    wait_until_landed,
    wait_until_read,
)

pytestmark = pytest.mark.integration

ODD = [b"", None, b"not json", b"{", b"\x00", b"a\x00b", b'{"a": "\x00"}', "Größe 水".encode(), b"x" * 100_000, b"null"]


def test_messages_with_any_content_land_once_even_if_connect_is_killed(connect_services, make_topic, folder):
    topic = make_topic(partitions=3)
    connectors.apply([topic], folder=folder)
    values = [f'{{"number": {n}}}'.encode() for n in range(2_490)]
    sent = send(topic, [*values, *ODD])
    wait_for(lambda: landed_records(topic) > 0)
    (pid,) = connect_services.pids("connect")
    sent |= send(topic, values)
    os.kill(pid, signal.SIGKILL)
    sent |= send(topic, ODD)
    wait_until_landed(topic, sent)
    assert len(sent) == 5_000
    assert rows(topic) == expected(topic, sent)
    assert connect_services.pids("connect") != [pid]


def test_files_that_the_catalog_refused_land_after_a_change_of_the_connector(
    make_topic, folder, refuse_commits, connect, watched
):
    topic = make_topic()
    connectors.create_landing_table(topic)
    # A commit that timed out before there were files to commit would give the coordinator an offset.
    slow = {**FAST, "iceberg.control.commit.interval-ms": "2000", "iceberg.control.commit.timeout-ms": "30000"}
    configure(folder, topic, slow)
    allow = refuse_commits(topic)
    sent = send(topic, [b"%d" % n for n in range(400)])
    connectors.apply([topic], folder=folder)
    # From now on, the sink does not read these records again.
    wait_until_read(topic)
    watchdog.check_connectors([topic], watchdog.Limits(stalled_after=watchdog.timedelta(hours=1)))
    watchdog.check_connectors([topic], watchdog.Limits(stalled_after=watchdog.timedelta(0)))
    assert connector_status(connect, topic).is_running
    assert "landing_stalled" in alarms(connector_name(topic))
    configure(folder, topic, {**slow, "tasks.max": "1"})
    assert connectors.apply([topic], folder=folder) == [f"connector {connector_name(topic)}: changed tasks.max"]
    wait_for(lambda: len(connector_status(connect, topic).tasks) == 1 and connector_status(connect, topic).is_running)
    allow()
    sent |= send(topic, [b"later"])
    wait_until_landed(topic, sent)
    assert rows(topic) == expected(topic, sent)


def test_the_files_that_a_blocked_coordinator_will_commit_are_known(make_topic, folder, refuse_commits, connect):
    """Otherwise the removal of unreferenced files would delete them before their commit."""
    topic = make_topic()
    connectors.create_landing_table(topic)
    configure(folder, topic, {**FAST, "iceberg.control.commit.timeout-ms": "30000"})
    allow = refuse_commits(topic)
    sent = send(topic, [b"%d" % n for n in range(400)])
    connectors.apply([topic], folder=folder)
    wait_until_read(topic)
    named = named_files(topic)
    assert landed_records(topic) == 0
    allow()
    wait_until_landed(topic, sent)
    landed = {task.file.file_path.rpartition("/")[2] for task in load_landing_table(topic).scan().plan_files()}
    assert named == landed != set()
    wait_for(lambda: named_files(topic) == set())


def trace_as_in_the_runbook(name: str) -> str:
    """The output of the command; it needs only programs that the project installs."""
    runbook = (Path(__file__).parents[3] / "docs" / "runbooks" / "connector-failed.md").read_text()
    (script,) = re.findall(r"^python - NAME <<'END'\n(.*?)^END$", runbook, re.DOTALL | re.MULTILINE)
    shown = subprocess.run([sys.executable, "-", name], input=script, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_a_failed_task_is_restarted_and_reported_without_message_content(make_topic, folder, connect, watched):
    from include.streams.lake.catalog import load_catalog
    from include.streams.landing.tables import raw_table

    topic = make_topic(partitions=1)
    name, table = connector_name(topic), raw_table(topic)
    connectors.apply([topic], folder=folder)
    load_catalog().rename_table(table, f"{table}_away")
    sent = send(topic, [b"what a customer wrote"])
    wait_for(lambda: connector_status(connect, topic).has_failed)
    assert watchdog.check_connectors([topic], watchdog.Limits(max_restarts=0)) == []
    assert {"connector_failed", "connector_given_up"} <= alarms(name).keys()
    assert "Exception" in alarms(name)["connector_failed"]
    assert "customer" not in alarms(name)["connector_failed"]
    assert "\tat org.apache.kafka.connect" in trace_as_in_the_runbook(name)
    watchdog.forget_restarts(name)

    load_catalog().rename_table(f"{table}_away", table)
    assert watchdog.check_connectors([topic]) == [name]
    # The next restart waits, whether or not the task has failed again in the meantime.
    assert watchdog.check_connectors([topic]) == []
    wait_until_landed(topic, sent)
    assert rows(topic) == expected(topic, sent)
    wait_for(lambda: connector_status(connect, topic).is_running)
    watchdog.check_connectors([topic])
    assert "connector_failed" in alarms(name), "it has not run for long enough yet"
    watchdog.check_connectors([topic], watchdog.Limits(well_after=watchdog.timedelta(0)))
    assert alarms(name) == {}


def test_passwords_are_only_in_connects_environment(make_topic, folder, connect, landing_services):
    topic = make_topic()
    connectors.apply([topic], folder=folder)
    wait_for(lambda: connector_status(connect, topic).is_running)
    name = connector_name(topic)
    password = landing_services.environment()["LANDING_CATALOG_PASSWORD"]
    assert password not in str(connect.config(name))
    config = {**consumer_config(client_config(), "independent"), "enable.partition.eof": True}
    reader = reader_at(config, TopicPartition("_connect-configs", 0, 0))
    texts = []
    while (record := reader.poll(10)) is not None and record.error() is None:
        texts.append((record.value() or b"").decode())
    reader.close()
    assert any(name in text or "jdbc.password" in text for text in texts)
    assert password not in "".join(texts)
