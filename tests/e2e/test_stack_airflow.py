"""Airflow as part of the local stack."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import psycopg
import pytest

from include import project
from stack.supervisor import leftovers
from tests.conftest import PROJECT

pytestmark = [pytest.mark.integration, pytest.mark.e2e]
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")


def login(airflow, username, password):
    body = json.dumps({"username": username, "password": password}).encode()
    request = urllib.request.Request(f"{airflow['url']}/auth/token", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["access_token"]


def test_the_api_accepts_only_the_password_of_status(whole_stack):
    airflow = whole_stack.endpoints()["airflow"]
    assert login(airflow, airflow["username"], airflow["password"])
    for username, password in (("admin", "admin"), ("airflow", "airflow")):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            login(airflow, username, password)


def test_no_file_with_a_secret_can_be_read_by_other_users(whole_stack):
    secrets = [value for name, value in whole_stack.state._values.items() if name.startswith("secret.")]
    assert secrets
    readable = [
        path
        for path in whole_stack.folder.rglob("*")
        if path.is_file()
        and stat.S_IMODE(path.stat().st_mode) & 0o077
        # A private parent folder keeps other users out.
        and not any(
            stat.S_IMODE(parent.stat().st_mode) & 0o077 == 0
            for parent in path.parents
            if parent.is_relative_to(whole_stack.folder) and parent != whole_stack.folder
        )
        and any(secret in path.read_text(errors="ignore") for secret in secrets)
    ]
    assert readable == []


def test_everything_listens_on_loopback_only(whole_stack):
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in leftovers(whole_stack.folder)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_airflow_looks_up_a_key_by_index_without_a_full_scan(whole_stack):
    with psycopg.connect(whole_stack.endpoints()["databases"]["airflow_metadata"]) as connection:
        # A filled copy with its indexes: the table itself is nearly empty, and the planner would read all of it.
        connection.execute("create temp table keys (like asset_partition_dag_run including all)")
        connection.execute(
            """
            insert into keys (id, target_dag_id, partition_key, created_dag_run_id, created_at, updated_at)
            select n, 'd', 'k' || n, case when n % 4 > 0 then n end, now() + make_interval(secs => n), now()
            from generate_series(1, 100000) n
            """
        )
        connection.execute("analyze keys")
        plans = [
            "\n".join(line for (line,) in connection.execute(f"explain select id from keys {query}"))
            for query in (
                "where partition_key = 'k1' and target_dag_id = 'd' order by id desc limit 1",
                "where created_dag_run_id is null order by created_at, id limit 100",
                "where created_dag_run_id = 1",
            )
        ]
    indexed = ("partition_key_target_dag_id", "created_at_id", "created_dag_run_id")
    for plan, columns in zip(plans, indexed, strict=True):
        assert f"keys_{columns}_idx" in plan


def test_make_look_shows_every_consumer_and_finds_every_service(whole_stack):
    done = subprocess.run(
        [sys.executable, "-m", "include.streams", "look", "--json"],
        cwd=PROJECT, env={**os.environ, **whole_stack.environment()}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    overview = json.loads(done.stdout)
    assert overview["problems"] == []
    assert {consumer["name"] for consumer in overview["consumers"]} == {
        consumer.name for consumer in (*project.PROJECT.consumers, *project.PROJECT.landing_consumers)
    }
    assert [topic["topic"] for topic in overview["landed"]] == project.PROJECT.landed_topics
    assert all("RUNNING" in topic["connector"] for topic in overview["landed"])
    assert overview["dags"] is not None


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_killed_component_is_restarted(whole_stack, component):
    (before,) = whole_stack.pids(component)
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while whole_stack.pids(component) in ([], [before]):
        assert time.monotonic() < deadline, f"supervisord has not restarted {component} again"
        time.sleep(0.1)
    whole_stack.wait_until_ready(component)
