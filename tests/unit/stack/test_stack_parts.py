"""The parts of the local stack that need no service: ports, state, configuration, leftovers, jars."""

import configparser
import os
import shlex
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stack import StackError, airflow, jars, java, jvm, ports, supervisor
from stack.service import Program
from stack.stack import Stack
from stack.state import State
from stack.supervisor import MARKER, Supervisor, config_text, leftovers


@pytest.fixture
def reported():
    return []


@pytest.fixture
def listener():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_port_is_kept_between_starts(tmp_path, reported):
    first = ports.choose(State(tmp_path), "kafka", reported.append)
    assert ports.choose(State(tmp_path), "kafka", reported.append) == first
    assert reported == []


def test_a_port_in_use_is_replaced_with_a_message(tmp_path, reported, listener):
    state = State(tmp_path)
    state.set("port.kafka", listener)
    assert ports.choose(state, "kafka", reported.append) != listener
    assert f"port {listener} of kafka is in use by" in reported[0]
    assert f"pid {os.getpid()}" in reported[0]


def test_services_that_start_together_never_get_the_same_port(tmp_path, reported, monkeypatch):
    drawn = iter([21_000, 21_000, 21_000, 21_001])
    monkeypatch.setattr(ports.random, "randint", lambda *_: next(drawn))
    monkeypatch.setattr(ports, "is_free", lambda port: True)
    state = State(tmp_path)
    assert [ports.choose(state, name, reported.append) for name in ("kafka", "controller")] == [21_000, 21_001]


def test_an_error_is_found_before_the_lines_of_a_restart(tmp_path):
    log = tmp_path / "kafka.log"
    log.write_text("INFO starting\nERROR port 21000 is in use\nINFO starting\nINFO loading\n")
    assert supervisor._last_line(log) == "ERROR port 21000 is in use"
    log.write_text("INFO starting\nINFO loading\n")
    assert supervisor._last_line(log) == "INFO loading"


def test_a_requested_port_in_use_is_an_error(tmp_path, reported, listener, monkeypatch):
    monkeypatch.setenv("STACK_KAFKA_PORT", str(listener))
    with pytest.raises(StackError, match=f"STACK_KAFKA_PORT={listener} is in use by"):
        ports.choose(State(tmp_path), "kafka", reported.append)


def test_only_the_owner_can_read_the_state(tmp_path):
    state = State(tmp_path)
    password = state.secret("kafka.password")
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o600
    assert State(tmp_path).secret("kafka.password") == password
    assert len(password) == 64


def test_supervisord_reads_every_argument_as_it_was_given(tmp_path):
    arguments = ["/bin/echo", "100%", "two words", "50%(x)s", 'a"b']
    text = config_text(tmp_path / "s", tmp_path, tmp_path / "logs", [Program("echo", arguments)])
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    command = parser["program:echo"]["command"] % {}  # as supervisord expands it
    assert shlex.split(command) == arguments


def test_leftovers_are_only_processes_of_this_folder(tmp_path):
    own, other = tmp_path / "mine", tmp_path / "other"
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    processes = [subprocess.Popen(command, env={**os.environ, MARKER: str(folder)}) for folder in (own, other)]
    try:
        deadline = time.monotonic() + 5
        while not leftovers(own) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [process.pid for process in leftovers(own)] == [processes[0].pid]
        own.mkdir()
        Supervisor(State(own), own).end_leftovers()
        assert not psutil.pid_exists(processes[0].pid)
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_client_library_is_of_the_brokers_version():
    assert f"org.apache.kafka:kafka-clients:{jars.KAFKA_VERSION}" in jars.read_lock()


def test_a_too_old_java_is_skipped(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for home, version in ((old, "11.0.2"), (new, "21.0.1")):
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        (home / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", str(new / "bin"))
    assert java.find_java(print) == new / "bin" / "java"


def test_a_missing_java_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    monkeypatch.setattr(java, "LOCK", tmp_path / "not-there.lock")
    with pytest.raises(StackError, match="install Java 17 or newer") as raised:
        java.find_java(lambda line: None)
    assert "\n" not in str(raised.value)


def test_every_airflow_setting_is_one_that_airflow_knows():
    from airflow.configuration import conf

    known = {
        (section.lower(), option.lower())
        for section, body in conf.configuration_description.items()
        for option in body["options"]
    }
    for name in airflow.SETTINGS:
        section, option = name.lower().split("__", 1)
        assert (section, option) in known, name


def test_pools_and_variables_come_from_the_settings_file():
    text = """
airflow:
  connections: [{conn_id: kafka_default, conn_type: kafka}]
  pools: [{pool_name: alerts, pool_slot: 4, pool_description: effects}]
  variables: [{variable_name: magnitude, variable_value: "4.5"}]
"""
    assert airflow.pools_and_variables(text) == {
        "pools": {"alerts": {"slots": 4, "description": "effects", "include_deferred": False}},
        "variables": {"magnitude": "4.5"},
    }
    assert airflow.pools_and_variables("") == {"pools": {}, "variables": {}}


def test_java_properties_keep_a_backslash():
    assert jvm.properties({"log.dirs": "C:\\data"}) == "log.dirs=C:\\\\data\n"


def test_an_external_service_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker.example:9092")
    stack = Stack(tmp_path, services=("kafka",), report=lambda line: None)
    try:
        stack.up()
        assert stack.endpoints()["kafka"]["bootstrap_servers"] == "broker.example:9092"
        assert stack.endpoints()["services"] == {}
    finally:
        stack.remove()


def test_an_external_operational_database_keeps_the_local_others(tmp_path):
    state = State(tmp_path)
    state.set("port.postgres", 5432)
    state.set("external", {"postgres": "postgresql://me@db.example/operations"})
    stack = Stack(tmp_path, services=("postgres",))
    databases = stack.endpoints()["databases"]
    assert databases["operations_db"] == "postgresql://me@db.example/operations"
    assert "@127.0.0.1:5432/airflow_metadata" in databases["airflow_metadata"]
    assert list(stack.endpoints()["services"]) == ["postgres"]


def test_the_environment_does_not_disable_bytecode_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = {**os.environ, **Stack(tmp_path, services=()).environment()}
    command = [sys.executable, "-c", "import sys; print(sys.dont_write_bytecode)"]
    assert subprocess.check_output(command, env=environment, text=True).strip() == "False"


def test_help_lists_every_target():
    makefile = (Path(__file__).parents[3] / "Makefile").read_text().replace("\\\n", " ")
    targets = [name for line in makefile.splitlines() if line.startswith(".PHONY:") for name in line.split()[1:]]
    text = subprocess.check_output(["make", "help"], cwd=Path(__file__).parents[3], text=True)
    assert sorted(line.split()[0] for line in text.splitlines()) == sorted(targets)
