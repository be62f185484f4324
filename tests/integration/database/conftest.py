"""Connections to the operational database with special settings, and a real PgBouncer."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from include.streams.operations.database import _engine, engine

PACKAGES = ("pgbouncer", "libc-ares2", "libevent-2.1-7")


def as_json(url: str, **extra: object) -> str:
    """A PostgreSQL URL as an Airflow connection."""
    parsed = make_url(url)
    return json.dumps(
        {
            "conn_type": "postgres",
            "host": parsed.host,
            "port": parsed.port,
            "login": parsed.username,
            "password": parsed.password,
            "schema": parsed.database,
            "extra": extra,
        }
    )


@pytest.fixture
def connection_with(services, monkeypatch) -> Iterator[Callable[..., str]]:
    """Define a connection to the operational database with these server settings; returns its id."""
    conn_ids: list[str] = []

    def make(**server_settings: object) -> str:
        conn_id = f"operations_{uuid.uuid4().hex[:8]}"
        url = services.endpoints()["databases"]["operations_db"]
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", as_json(url, server_settings=server_settings))
        conn_ids.append(conn_id)
        return conn_id

    yield make
    for conn_id in conn_ids:
        engine(conn_id).dispose()


@pytest.fixture(scope="session")
def pgbouncer_binary(pytestconfig) -> Path:
    """PgBouncer from Debian's package, unpacked into pytest's cache and not installed."""
    folder = pytestconfig.cache.mkdir("pgbouncer")
    binary = folder / "root/usr/sbin/pgbouncer"
    if not (folder / "complete").exists():
        if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
            pytest.skip("PgBouncer comes as a Debian package, and apt-get or dpkg-deb is missing here")
        done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"apt-get cannot download PgBouncer: {done.stderr.strip()[-200:]}")
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
        (folder / "complete").touch()
    return binary


@pytest.fixture(scope="session")
def pgbouncer(services, pgbouncer_binary, tmp_path_factory) -> Iterator[str]:
    """PgBouncer in transaction mode in front of the stack's PostgreSQL; the operational database's URL there.

    Each database has several server connections, so that transactions of one client run on any of them.
    """
    server = make_url(services.endpoints()["databases"]["operations_db"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("pgbouncer")
    users, config = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text(f'"{server.username}" "{server.password}"\n')
    config.write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={server.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = 8
        """.replace("\n        ", "\n")
    )
    command = [str(pgbouncer_binary), str(config)]
    if os.geteuid() == 0:
        # PgBouncer does not run as root; it changes to this user after it has read its files.
        command[1:1] = ["-u", pwd.getpwnam("nobody").pw_name]
    libraries = ":".join(map(str, pgbouncer_binary.parents[1].glob("lib/*-linux-gnu")))
    log = (folder / "log").open("w+")
    process = subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": libraries}, stdout=log, stderr=log)
    url = server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            break
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"PgBouncer does not start: {(folder / 'log').read_text()[-1_000:]}")
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(20)


@pytest.fixture
def behind_pgbouncer(pgbouncer, monkeypatch) -> Iterator[None]:
    """Make the connection `operations_db` use PgBouncer."""
    engine().dispose()
    _engine.cache_clear()
    monkeypatch.setenv("AIRFLOW_CONN_OPERATIONS_DB", pgbouncer)
    yield
    engine().dispose()
    _engine.cache_clear()
