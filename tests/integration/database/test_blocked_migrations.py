"""A migration waits for a lock for a limited time and names its holder; code that is newer than the tables says so."""

from datetime import timedelta

import pytest
from alembic import command
from sqlalchemy import inspect, text
from sqlalchemy.exc import ProgrammingError

from include.streams.operations.database import begin, engine
from include.streams.operations.migrate import MigrationBlocked, configurations, upgrade

pytestmark = pytest.mark.integration

SHORT = timedelta(milliseconds=300)


@pytest.fixture
def old_database(new_database) -> str:
    """A database with only the first revision."""
    database, config = new_database(), configurations()["operations"]
    with begin(database) as connection:
        config.attributes.update(connection=connection, on_version_apply=lambda **_: None)
        command.upgrade(config, "operations_0001")
    return database


def columns(conn_id: str) -> list[str]:
    return [column["name"] for column in inspect(engine(conn_id)).get_columns("claims")]


def test_an_upgrade_that_is_blocked_gives_up_and_names_the_session(old_database):
    before = columns(old_database)
    with engine(old_database).connect() as other:
        other.execute(text("select count(*) from claims"))
        process = other.scalar(text("select pg_backend_pid()"))
        with pytest.raises(MigrationBlocked) as caught:
            upgrade(old_database, lock_wait=SHORT)
    message = str(caught.value)
    assert "nothing was applied, because a table was not free within 0.3 s" in message
    assert f"process {process} (" in message
    assert "airflow, at 127.0.0.1) is idle in transaction" in message
    assert "holds locks on claims." in message
    assert "run the Dag prepare_services again" in message
    assert columns(old_database) == before
    # After the end of the transaction.
    assert upgrade(old_database, lock_wait=SHORT)


@pytest.mark.parametrize("statement", ["select emissions from claims", "select 1 from outbox_routes"])
def test_code_that_is_newer_than_the_tables_names_the_remedy(old_database, statement):
    with begin(old_database) as connection, pytest.raises(ProgrammingError, match=r"run the Dag prepare_services"):
        connection.execute(text(statement))
    upgrade(old_database)
    with begin(old_database) as connection:
        connection.execute(text(statement))
