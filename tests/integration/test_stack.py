"""The local stack with killed processes, used ports and incomplete folders."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from stack import Stack, StackError
from stack.supervisor import leftovers
from tests.conftest import start_stack

pytestmark = pytest.mark.integration
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack that these tests may kill, with a table row and a message that must survive."""
    stack = start_stack(tmp_path_factory.mktemp("stack"), ("postgres", "kafka", "objectstore"))
    with psycopg.connect(stack.endpoints()["databases"]["operations_db"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    config = stack.endpoints()["kafka"]["client_config"]
    create_topic(config, "kept")
    producer = Producer({**config, "acks": "all"})
    producer.produce("kept", b"42")
    assert producer.flush(10) == 0
    yield stack
    stack.remove()


@pytest.fixture
def reported(stack, monkeypatch):
    lines = []
    monkeypatch.setattr(stack, "report", lines.append)
    return lines


def assert_everything_is_there(stack):
    with psycopg.connect(stack.endpoints()["databases"]["operations_db"]) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]
    assert read_first(stack.endpoints()["kafka"]["client_config"], "kept") == b"42"


def create_topic(config, name):
    admin = AdminClient(config)  # kept until the result arrives: a client that is deleted cancels its requests
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(10)


def read_first(config, topic):
    consumer = Consumer({**config, "group.id": f"test-{time.time_ns()}", "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe([topic])
        message = consumer.poll(20)
        assert message is not None
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()


def test_a_second_up_changes_nothing(stack, reported):
    before = stack.endpoints()
    stack.up()
    assert reported[0] == "the stack is running already"
    assert stack.endpoints() == before


def test_a_shell_reaches_the_services_with_the_variables(stack):
    command = [
        sys.executable,
        "-m",
        "stack",
        "--folder",
        str(stack.folder),
        "--services",
        ",".join(stack.services),
        "env",
    ]
    # Without the environment of this process.
    bare = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    made = subprocess.run(command, cwd=PROJECT, env=bare, capture_output=True, text=True, check=True)
    script = 'eval "$1"; psql "$AIRFLOW_CONN_OPERATIONS_DB" -Atc "SELECT answer FROM kept"'
    shown = subprocess.run(["bash", "-c", script, "-", made.stdout], env=bare, capture_output=True, text=True)
    assert shown.stdout == "42\n", shown.stderr


def test_an_up_during_another_up_names_it(stack):
    code = "import fcntl, os, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
    code += "f.truncate(0); f.write(f'pid {os.getpid()} (make up)'); f.flush(); print(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-uc", code, stack.folder / "lock"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            with pytest.raises(StackError, match=rf"pid {other.pid} \(make up\) is using"):
                stack.up()
        finally:
            other.kill()


def test_a_killed_broker_is_restarted_with_its_messages(stack):
    (before,) = stack.pids("kafka")
    os.kill(before, signal.SIGKILL)
    wait_for_another_pid(stack, "kafka", before)
    stack.wait_until_ready("kafka")
    assert_everything_is_there(stack)


def test_a_killed_database_is_restarted_with_its_rows(stack):
    (before,) = stack.pids("postgres")
    os.kill(before, signal.SIGKILL)
    wait_for_another_pid(stack, "postgres", before)
    stack.wait_until_ready("postgres")
    assert_everything_is_there(stack)


def test_a_stopped_service_stays_stopped_until_its_start(stack):
    stack.stop("objectstore")
    assert stack.pids("objectstore") == []
    assert stack.endpoints()["services"]["objectstore"]["state"] == "STOPPED"
    stack.start("objectstore")
    assert len(stack.pids("objectstore")) == 1


def test_up_after_a_killed_supervisord_ends_orphans_and_keeps_data(stack, reported):
    addresses = {k: v for k, v in stack.endpoints().items() if k != "services"}
    orphans = [pid for name in ("postgres", "kafka", "objectstore") for pid in stack.pids(name)]
    supervisord = psutil.Process(stack.supervisor.pid())
    supervisord.kill()
    supervisord.wait(10)
    assert all(psutil.pid_exists(pid) for pid in orphans)
    stack.up()
    assert any("stopped processes of an earlier run" in line for line in reported)
    assert not any(psutil.pid_exists(pid) for pid in orphans)
    assert {k: v for k, v in stack.endpoints().items() if k != "services"} == addresses
    assert_everything_is_there(stack)


def test_up_after_everything_was_killed_recovers(stack):
    for process in leftovers(stack.folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    stack.up()
    assert_everything_is_there(stack)


def test_a_port_taken_while_the_stack_was_down_is_replaced(stack, reported):
    port = int(stack.endpoints()["kafka"]["bootstrap_servers"].split(":")[1])
    stack.down()
    assert leftovers(stack.folder) == []
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        stack.up()
    assert any(f"port {port} of kafka is in use" in line for line in reported)
    assert stack.endpoints()["kafka"]["bootstrap_servers"] != f"127.0.0.1:{port}"
    assert_everything_is_there(stack)


def test_services_listen_on_loopback_only(stack):
    addresses = {
        connection.laddr.ip
        for process in leftovers(stack.folder)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_every_database_refuses_a_wrong_password(stack):
    urls = stack.endpoints()["databases"]
    assert set(urls) == {"airflow_metadata", "operations_db", "landing_catalog", "schema_registry"}
    for url in urls.values():
        psycopg.connect(url).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url, password="wrong")


def test_incomplete_data_directories_are_recreated(tmp_path):
    """As after a kill or a full disk during initdb and during Kafka's format."""
    folder = tmp_path / "stack"
    first = start_stack(folder, ("postgres", "kafka"))
    try:
        first.down()
        (first.postgres.home / "initialized").unlink()
        (first.postgres.data / "PG_VERSION").unlink()
        (folder / "kafka" / "formatted.plaintext").unlink()
        (folder / "kafka" / "data" / "meta.properties").write_text("")
        again = Stack(folder, services=("postgres", "kafka"))
        again.up()
        psycopg.connect(again.endpoints()["databases"]["operations_db"]).close()
    finally:
        first.remove()


def test_a_stopped_stack_ends_without_a_kill(tmp_path):
    stack = start_stack(tmp_path / "stack", ("kafka", "connect"))
    stack.down()
    log = (stack.folder / "logs" / "supervisord.log").read_text()
    assert "stopped: connect" in log
    assert "SIGKILL" not in log
    stack.remove()


def test_remove_leaves_no_process_and_no_file(tmp_path):
    stack = start_stack(tmp_path / "stack", ("postgres",))
    home = stack.postgres.home
    stack.remove()
    assert leftovers(stack.folder) == []
    assert not stack.folder.exists()
    assert not home.exists()


def test_a_killed_test_session_leaves_nothing_running(tmp_path):
    folder = tmp_path / "stack"
    code = "import sys, os; from pathlib import Path; from tests.conftest import start_stack; "
    code += "start_stack(Path(sys.argv[1]), ('postgres',)); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, folder], cwd=PROJECT)
    deadline = time.monotonic() + 20
    while (folder.exists() or leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert leftovers(folder) == []
    assert not folder.exists()


def test_a_broker_with_sasl_and_tls_checks_the_password(tmp_path):
    stack = start_stack(tmp_path / "stack", ("kafka",), kafka_security="sasl_ssl")
    try:
        config = stack.endpoints()["kafka"]["client_config"]
        assert config["security.protocol"] == "SASL_SSL"
        create_topic(config, "t")
        # A transaction makes the broker connect to itself through the same listener.
        producer = Producer({**config, "transactional.id": "test"})
        producer.init_transactions(20)
        producer.begin_transaction()
        producer.produce("t", b"secret")
        producer.commit_transaction(20)
        assert read_first({**config, "isolation.level": "read_committed"}, "t") == b"secret"
        plain = {"bootstrap.servers": config["bootstrap.servers"]}
        wrong = (
            {**config, "sasl.password": "wrong"},
            {**config, "sasl.username": "nobody"},
            {**config, "ssl.ca.location": "probe"},  # an authority that did not sign the broker's certificate
            plain,
        )
        # Each waits until its timeout, so all run concurrently.
        with ThreadPoolExecutor(len(wrong)) as pool:
            asked = [pool.submit(AdminClient({**one, "log_level": 0}).list_topics, timeout=3) for one in wrong]
        for answer in asked:
            with pytest.raises(KafkaException):
                answer.result()
    finally:
        stack.remove()


def wait_for_another_pid(stack, name, before):
    deadline = time.monotonic() + 30
    while stack.pids(name) in ([], [before]):
        assert time.monotonic() < deadline, f"supervisord has not restarted {name} again"
        time.sleep(0.1)
