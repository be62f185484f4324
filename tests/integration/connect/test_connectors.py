"""Connectors are created in an order that loses nothing, changed without losing their offsets, and restarted."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, ResourceType
from sqlalchemy import text

from include.streams.kafka.connection import admin_config, client_config
from include.streams.kafka.offsets import GroupOffsets
from include.streams.kafka.watch import CheckFailed
from include.streams.lake.catalog import load_catalog
from include.streams.landing import __main__ as command
from include.streams.landing import connectors, removal, watchdog
from include.streams.landing.connect import ConnectUnreachable
from include.streams.landing.connector_status import MISSING, SinkProgress
from include.streams.landing.tables import connector_name, raw_table, sink_group
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import open_alarm
from include.streams.operations.database import begin
from tests.integration.connect.conftest import (
    FAST,
    alarms,
    configure,
    connector_status,
    expected,
    rows,
    send,
    wait_for,
    wait_until_landed,
    wait_until_read,
)

pytestmark = pytest.mark.integration


def committed(group: str, topic: str) -> dict[int, int | None]:
    with GroupOffsets(group) as offsets:
        return {partition.number: found.committed for partition, found in offsets.fetch_offsets_sync([topic]).items()}


def topic_setting(topic: str, setting: str) -> str:
    admin = AdminClient(admin_config(client_config()))
    resource = ConfigResource(ResourceType.TOPIC, topic)
    return admin.describe_configs([resource])[resource].result(10)[setting].value


class Killed(BaseException):
    """Stands for a kill of the process at this point."""


STEPS = ("create_landing_table", "_create_control_topic", "preset_coordinator")


@pytest.mark.parametrize("killed_after", [*STEPS, "put_config"])
def test_an_apply_killed_between_two_steps_is_completed_by_the_next(
    make_topic, folder, connect, monkeypatch, killed_after
):
    topic = make_topic()
    owner = connectors.Connect if killed_after == "put_config" else connectors
    step = getattr(owner, killed_after)

    def kill(*arguments) -> None:
        step(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, killed_after, kill)
        with pytest.raises(Killed):
            connectors.apply([topic], folder=folder)
    if killed_after != "put_config":
        assert connect.config(connector_name(topic)) is None
    connectors.apply([topic], folder=folder)
    assert load_catalog().table_exists(raw_table(topic))
    assert topic_setting(connectors.control_topic(topic), "retention.ms") == "-1"
    assert committed(connectors.coordinator_group(topic), connectors.control_topic(topic))[0] is not None
    assert connect.config(connector_name(topic)) is not None
    assert connectors.apply([topic], folder=folder) == []


def test_the_coordinators_offset_is_set_before_the_connector_exists(make_topic, folder, connect, monkeypatch):
    topic = make_topic()
    seen = []

    def put_config(self, name, config) -> None:
        assert connect.config(name) is None
        seen.append(committed(connectors.coordinator_group(topic), connectors.control_topic(topic)))

    monkeypatch.setattr(connectors.Connect, "put_config", put_config)
    connectors.apply([topic], folder=folder)
    assert seen == [{0: 0}]


def test_changing_a_connector_keeps_its_offsets_and_names_the_changes(make_topic, folder, connect):
    topic = make_topic()
    name = connector_name(topic)
    connectors.apply([topic], folder=folder)
    sent = send(topic, [b"one", b"two"])
    wait_until_landed(topic, sent)
    wait_until_read(topic)
    before = committed(sink_group(topic), topic.name)
    configure(folder, topic, {**FAST, "consumer.override.max.poll.records": "700"})
    assert connectors.apply([topic], folder=folder) == [f"connector {name}: changed consumer.override.max.poll.records"]
    assert connect.config(name)["consumer.override.max.poll.records"] == "700"
    assert committed(sink_group(topic), topic.name) == before
    control = connectors.control_topic(topic)
    assert committed(connectors.coordinator_group(topic), control)[0] > 0


def test_a_running_coordinator_without_an_offset_is_refused_with_a_remedy(make_topic, folder, connect):
    topic = make_topic()
    name, control = connector_name(topic), connectors.control_topic(topic)
    connectors.create_landing_table(topic)
    connectors._create_control_topic(topic, "kafka_default")
    # Stands for the coordinator of a connector that was created by hand: a group member without a committed offset.
    member = Consumer({**client_config(), "group.id": connectors.coordinator_group(topic)})
    member.subscribe([control])
    wait_for(lambda: member.poll(0.1) is None and member.assignment())
    with pytest.raises(connectors.UnsafeConnector, match=f"python -m include.streams.landing stop {name}"):
        connectors.apply([topic], folder=folder)
    assert connect.config(name) is None
    member.close()
    connectors.apply([topic], folder=folder)
    assert connect.config(name) is not None


@pytest.fixture
def registry(monkeypatch, folder):
    """The registry for `--registry tests...:NAME`; connectors are configured from the test's folder."""
    from include.streams.contracts import Registry

    monkeypatch.setattr(
        connectors.apply, "__kwdefaults__", {**(connectors.apply.__kwdefaults__ or {}), "folder": folder}
    )

    def use(*topics) -> list[str]:
        monkeypatch.setattr(command, "load_registry", lambda reference: Registry(*topics))
        return ["--registry", "any:thing"]

    return use


def test_the_commands_create_show_stop_and_resume_a_connector(make_topic, connect, registry, capsys, watched):
    topic = make_topic()
    name = connector_name(topic)
    options = registry(topic)

    def run(*arguments: str) -> tuple[int, str]:
        code = command.main([*options, *arguments])
        printed = capsys.readouterr()
        return code, printed.out + (printed.err if code else "")

    code, out = run("status")
    assert code == 1
    assert MISSING in out
    code, out = run("resume", name)
    assert code == 1
    assert "does not exist; `apply` creates it" in out
    assert f"connector {name}: created" in run("apply")[1]
    wait_for(lambda: connector_status(connect, topic).is_running)
    assert run("status", name)[0] == 0
    assert run("apply") == (0, "nothing to do: everything matches the registry and connectors/\n")
    assert run("stop", name)[0] == 0
    wait_for(lambda: connector_status(connect, topic).connector == "STOPPED")
    assert run("status")[0] == 1
    assert run("resume", name)[0] == 0
    wait_for(lambda: connector_status(connect, topic).is_running)
    assert run("restart", name)[0] == 0
    code, out = run("restart", "landing-nothing")
    assert code == 1
    assert name in out


def test_a_left_over_connector_is_named_until_a_person_removes_it(
    make_topic, folder, connect, monkeypatch, registry, capsys, watched
):
    gone, landed = make_topic(), make_topic()
    name = connector_name(gone)
    connectors.apply([gone, landed], folder=folder)
    sent = send(gone, [b"one", b"two"])
    wait_until_landed(gone, sent)
    watchdog.check_connectors([gone, landed])
    with begin() as connection:
        open_alarm(connection, name, AlarmKind.connector_failed, "its last task failed")
    options = registry(landed)

    def run(*arguments: str) -> tuple[int, str, str]:
        return command.main([*options, *arguments]), *capsys.readouterr()

    for looks in ("apply", "status"):
        assert f"`python -m include.streams.landing remove {name}`" in run(looks)[1]
    assert connector_name(landed) in run("remove", connector_name(landed))[2]
    assert connect.configs().keys() >= {name, connector_name(landed)}

    with monkeypatch.context() as patch:
        patch.setattr(removal, "_forget_watch", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            command.main([*options, "remove", name])
    assert connect.config(name) is None
    assert alarms(name).keys() == {"connector_failed"}
    code, out, _ = run("remove", name)
    assert (code, out.splitlines()[-1]) == (0, f"alarm connector_failed of {name}: closed")
    assert alarms(name) == {}
    code, out, err = run("remove", name)
    assert (code, out) == (1, "")
    assert f"no connector {name}" in err
    assert connect.config(connector_name(landed)) is not None

    # The landed records stay, and a topic that is landed again continues after them.
    sent |= send(gone, [b"three", b"four"])
    connectors.apply([gone], folder=folder)
    wait_until_landed(gone, sent)
    assert rows(gone) == expected(gone, sent)


def test_a_missing_connector_has_an_alarm_until_it_exists(make_topic, folder, connect, watched):
    topic = make_topic()
    name = connector_name(topic)
    assert watchdog.check_connectors([topic]) == []
    assert alarms(name).keys() == {"connector_missing"}
    connectors.apply([topic], folder=folder)
    watchdog.check_connectors([topic])
    assert alarms(name) == {}


def test_an_unavailable_connect_opens_one_alarm_and_lag_is_still_checked(make_topic, monkeypatch, watched):
    topic = make_topic()
    send(topic, [b"1", b"2", b"3"])
    nowhere = json.dumps({"conn_type": "http", "host": "http://somebody:secret-word@127.0.0.1:1"})
    monkeypatch.setenv("AIRFLOW_CONN_CONNECT_AWAY", nowhere)
    with pytest.raises(ConnectUnreachable, match="connect_away"):
        connectors.Connect("connect_away").status("any")
    assert watchdog.check_connectors([topic], watchdog.Limits(max_lag=2), conn_id="connect_away") == []
    assert "secret-word" not in alarms("connect_away")["connect_unreachable"]
    assert "3 records behind, limit 2" in alarms(connector_name(topic))["sink_lag"]
    monkeypatch.setattr(watchdog, "sink_progress", lambda *_: SinkProgress(1, 2, 0, {}, {}))
    watchdog.check_connectors([topic], watchdog.Limits(max_lag=2), conn_id="connect_away")
    assert "sink_lag" not in alarms(connector_name(topic))
    monkeypatch.setenv("AIRFLOW_CONN_CONNECT_AWAY", json.dumps({"conn_type": "http", "host": _url()}))
    watchdog.check_connectors([topic], conn_id="connect_away")
    assert alarms("connect_away") == {}


def _url() -> str:
    return json.loads(os.environ["AIRFLOW_CONN_KAFKA_CONNECT"])["host"]


def refuse_for(topic, actually):
    """The function, with an error of Kafka for one topic."""

    def refuse(of, *arguments):
        if of is topic:
            raise KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "may not read the group"))
        return actually(of, *arguments)

    return refuse


def test_an_unreadable_group_is_named_after_the_others_were_checked(make_topic, monkeypatch, watched):
    topics = [make_topic() for _ in range(3)]
    names = [connector_name(topic) for topic in topics]
    monkeypatch.setattr(watchdog, "sink_progress", refuse_for(topics[0], watchdog.sink_progress))
    with begin() as connection:
        open_alarm(connection, "kafka_connect", AlarmKind.connect_unreachable, "of an outage that is over")
    with pytest.raises(CheckFailed, match=f"^topic {topics[0].name}: [^;]*may not read the group[^;]*$"):
        watchdog.check_connectors(topics)
    assert [alarms(name).keys() for name in names] == [{"connector_missing"}] * 3
    assert alarms("kafka_connect") == {}


def test_a_failed_search_for_refused_records_still_opens_the_alarm(make_topic, monkeypatch, watched):
    topics = [make_topic() for _ in range(3)]
    failed = {"connector": {"state": "RUNNING"}, "tasks": [{"id": 0, "state": "FAILED", "trace": "a.BadException: x"}]}
    monkeypatch.setattr(watchdog.Connect, "status", lambda *_: failed)
    monkeypatch.setattr(watchdog.Connect, "restart", lambda *_: True)
    monkeypatch.setattr(watchdog.stepping, "is_stepping", lambda _: True)
    search = refuse_for(topics[0], lambda *_: [])
    monkeypatch.setattr(watchdog.stepping, "step_over", search)
    names = {connector_name(topic) for topic in topics}
    assert set(watchdog.check_connectors(topics)) == names
    assert all("connector_failed" in alarms(name) for name in names)


def test_a_restart_is_named_even_if_another_topic_cannot_be_checked(make_topic, monkeypatch, watched):
    topics = [make_topic() for _ in range(2)]
    failed = {"connector": {"state": "RUNNING"}, "tasks": [{"id": 0, "state": "FAILED", "trace": "a.BadException: x"}]}
    restarted = []
    monkeypatch.setattr(watchdog.Connect, "status", lambda *_: failed)
    monkeypatch.setattr(watchdog.Connect, "restart", lambda _, name: restarted.append(name) or True)
    monkeypatch.setattr(watchdog, "sink_progress", refuse_for(topics[0], watchdog.sink_progress))
    names = [connector_name(topic) for topic in topics]
    with pytest.raises(CheckFailed, match=r"may not read the group.*; restarted") as error:
        watchdog.check_connectors(topics)
    assert sorted(restarted) == sorted(names)
    assert all(name in str(error.value).rpartition("restarted")[2] for name in names)


def test_an_answer_of_another_server_hides_no_alarm_about_the_progress(make_topic, monkeypatch, watched):
    topics = [make_topic() for _ in range(2)]
    monkeypatch.setattr(watchdog.Connect, "status", lambda *_: {"hello": "world"})
    for topic in topics:
        send(topic, [b"1", b"2", b"3"])
    with pytest.raises(CheckFailed, match=f"{topics[0].name}.*{topics[1].name}|{topics[1].name}.*{topics[0].name}"):
        watchdog.check_connectors(topics, watchdog.Limits(max_lag=2))
    assert all("3 records behind" in alarms(connector_name(topic))["sink_lag"] for topic in topics)


def test_a_connect_that_hangs_is_queried_once_per_check(make_topic, monkeypatch, watched):
    topics = [make_topic() for _ in range(3)]
    asked, over = [], threading.Event()

    class Hangs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            over.wait(30)

    monkeypatch.setattr("include.streams.landing.connect.READ_SECONDS", 0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hangs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AIRFLOW_CONN_CONNECT_HANGS", f"http://127.0.0.1:{server.server_port}")
        send(topics[2], [b"1", b"2", b"3"])
        assert watchdog.check_connectors(topics, watchdog.Limits(max_lag=2), conn_id="connect_hangs") == []
        over.set()
        server.shutdown()
    assert len(asked) == 1
    assert "ReadTimeout" in alarms("connect_hangs")["connect_unreachable"]
    assert "3 records behind" in alarms(connector_name(topics[2]))["sink_lag"]


def test_a_stalled_sink_has_an_alarm_until_it_continues(make_topic, monkeypatch, watched):
    topic = make_topic()
    name = connector_name(topic)

    def check(lag: int, sink: int | None, minutes: int) -> dict[str, str]:
        """The open alarms after a check, `minutes` after the last one."""
        ago = f"interval '{minutes} minutes'"
        with begin() as connection:
            connection.execute(
                text(
                    f"update connector_watch set sink_moved_at = sink_moved_at - {ago}, "
                    f"table_moved_at = now() where connector = :name"
                ),
                {"name": name},
            )
        monkeypatch.setattr(watchdog, "sink_progress", lambda *_: SinkProgress(lag, sink, None, {}, {}))
        watchdog.check_connectors([topic])
        return alarms(name)

    assert "sink_stalled" not in check(5, None, 0)
    assert "sink_stalled" in check(5, None, 11)
    assert "sink_stalled" not in check(4, 1, 11)
    assert "sink_stalled" not in check(4, 1, 9)
    assert "5 records wait" in check(5, 1, 2)["sink_stalled"]
    # No record waits: an idle sink is not stalled.
    assert "sink_stalled" not in check(0, 1, 60)
    assert "sink_stalled" not in check(5, 1, 1)


def test_restarts_back_off_and_end_at_the_limit(make_topic, monkeypatch, watched):
    topic = make_topic()
    name = connector_name(topic)
    failed = {"connector": {"state": "RUNNING"}, "tasks": [{"id": 0, "state": "FAILED", "trace": "a.BadException: x"}]}
    monkeypatch.setattr(watchdog.Connect, "status", lambda *_: failed)
    monkeypatch.setattr(watchdog.Connect, "restart", lambda *_: True)
    limits = watchdog.Limits(max_restarts=3)

    def check(minutes: int) -> bool:
        """Whether it is restarted `minutes` after the last restart."""
        with begin() as connection:
            at = f"now() - interval '{minutes} minutes'"
            connection.execute(
                text(f"update connector_watch set restarted_at = {at} where connector = :name"), {"name": name}
            )
        return watchdog.check_connectors([topic], limits) == [name]

    assert [check(m) for m in (0, 1, 2, 2, 3, 4)] == [True, False, True, False, False, True]
    assert "connector_given_up" not in alarms(name)
    assert not check(600)
    assert "not restarted any more: BadException" in alarms(name)["connector_given_up"]
    watchdog.forget_restarts(name)
    assert check(0)


def test_added_partitions_of_the_control_topic_get_an_offset_too(make_topic, folder):
    topic = make_topic()
    connectors.create_landing_table(topic)
    connectors._create_control_topic(topic, "kafka_default")
    control = connectors.control_topic(topic)
    admin = AdminClient(admin_config(client_config()))
    admin.create_partitions([NewPartitions(control, 3)])[control].result(10)
    wait_for(lambda: len(committed(connectors.coordinator_group(topic), control)) == 3)
    connectors.preset_coordinator(topic, "kafka_default")
    assert committed(connectors.coordinator_group(topic), control) == {0: 0, 1: 0, 2: 0}
