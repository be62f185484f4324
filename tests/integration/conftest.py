"""Real services for several folders of tests, in addition to those in tests/conftest.py."""

import os
import uuid
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from include.streams.operations.database import engine


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
        base, _ = os.environ["AIRFLOW_CONN_OPERATIONS_DB"].rsplit("/", 1)
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", f"{base}/{name}")
        return name

    yield make
    for name in made:
        engine(name).dispose()
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name in made:
            connection.execute(text(f"drop database {name} with (force)"))
