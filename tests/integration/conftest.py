"""Real services for several folders of tests, in addition to those in tests/conftest.py."""

import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import text

from include.streams.operations.database import engine

OPERATIONS = "AIRFLOW_CONN_OPERATIONS_DB"
log = logging.getLogger(__name__)

# Tables that all files of a worker share. What one file leaves there, such as an open alarm or a failed outbox row, a
# test of another file would count.
SHARED = ("claims", "inbox", "outbox", "replays", "alarms", "heartbeats")
_ended: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def no_rows_of_other_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty the shared tables after each file, so that each file passes alone and in any order.

    The log names a file that leaves rows (`-o log_cli=true --log-cli-level=INFO`), a warning names one whose threads or
    processes still write after its end.
    """
    if late := _empty_shared_tables():
        warnings.warn(f"{_ended[-1] if _ended else 'somebody'} wrote rows after its end: {late}", stacklevel=1)
    yield
    if left := _empty_shared_tables():
        log.info("%s left rows: %s", request.node.nodeid, left)
    _ended.append(request.node.nodeid)


def _empty_shared_tables() -> dict[str, int]:
    """Empty the tables; returns {table: number of rows that it had}, without empty ones."""
    if (url := os.environ.get(OPERATIONS)) is None:
        return {}
    with psycopg.connect(url, autocommit=True) as connection:
        counts = {}
        for table in SHARED:
            (exists,) = connection.execute("select to_regclass(%s) is not null", [table]).fetchone() or (False,)
            if exists:
                (counts[table],) = connection.execute(f"select count(*) from {table}").fetchone() or (0,)
        left = {table: count for table, count in counts.items() if count}
        if left:
            # A transaction that a test has left open is an error of that test.
            connection.execute("set lock_timeout = '20s'")
            connection.execute(f"truncate {', '.join(left)} cascade")
    return left


@pytest.fixture(scope="session")
def object_store(landing_services):
    """A Stack with the object store; the environment points at it. All tests share it, because clients are cached."""
    return landing_services


@pytest.fixture
def new_database(services, monkeypatch) -> Iterator[Callable[[], str]]:
    """Create an empty database; returns the id of its Airflow connection."""
    made: list[str] = []

    def make() -> str:
        name = f"operations_{uuid.uuid4().hex[:8]}"
        with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"create database {name}"))
        made.append(name)
        base, _ = os.environ[OPERATIONS].rsplit("/", 1)
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", f"{base}/{name}")
        return name

    yield make
    for name in made:
        engine(name).dispose()
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name in made:
            connection.execute(text(f"drop database {name} with (force)"))
