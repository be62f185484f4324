"""A process that runs for weeks uses the new password when an Airflow connection changes."""

import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from include.streams.lake.catalog import load_catalog
from include.streams.operations.database import begin
from include.streams.pages.reading import read_only
from tests.integration.database.conftest import as_json

pytestmark = pytest.mark.integration


class Account:
    """An account of the stack's PostgreSQL, and an Airflow connection that uses it."""

    def __init__(self, url: str, conn_id: str, patch: pytest.MonkeyPatch, **extra: object) -> None:
        self.url, self.conn_id, self.patch, self.extra = url, conn_id, patch, extra
        self.address = make_url(url)
        self.define(self.address.password)

    def define(self, password: str) -> None:
        url = self.address.set(password=password).render_as_string(hide_password=False)
        self.patch.setenv(f"AIRFLOW_CONN_{self.conn_id.upper()}", as_json(url, **self.extra))

    def rotate(self, password: str) -> None:
        """Change the password in the database, and end every connection of the account."""
        user = sql.Identifier(self.address.username)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("alter role {} password {}").format(user, sql.Literal(password)))
            self.end_connections(connection)

    def end_connections(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = current_user "
            "and application_name = 'airflow'"
        )

    def restore(self, password: str) -> None:
        url = self.address.set(password=password).render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            user = sql.Identifier(self.address.username)
            old = sql.Literal(self.address.password)
            connection.execute(sql.SQL("alter role {} password {}").format(user, old))
            self.end_connections(connection)


NEW = "rotated"


@pytest.fixture
def account(landing_services, monkeypatch) -> Iterator[Callable[..., Account]]:
    accounts: list[Account] = []

    def make(key: str, **extra: object) -> Account:
        url = landing_services.endpoints()["databases"][key]
        accounts.append(Account(url, f"rotated_{uuid.uuid4().hex[:8]}", monkeypatch, **extra))
        return accounts[-1]

    yield make
    for each in accounts:
        each.restore(NEW)


def test_transactions_and_pages_use_the_new_password(account):
    operations = account("operations_db")
    with begin(operations.conn_id) as connection:
        connection.execute(text("select 1"))
    operations.rotate(NEW)
    with pytest.raises(OperationalError, match="password authentication failed") as caught, begin(operations.conn_id):
        pass
    assert operations.address.password not in str(caught.value)
    operations.define(NEW)
    with begin(operations.conn_id) as connection:
        assert connection.scalar(text("select 1")) == 1
    with read_only(operations.conn_id) as connection:
        assert connection.scalar(text("select 1")) == 1


def test_the_catalog_uses_the_new_password(account):
    catalog = account("landing_catalog", warehouse="gs://landing/warehouse")
    before = load_catalog(catalog.conn_id).list_namespaces()
    catalog.rotate(NEW)
    catalog.define(NEW)
    assert load_catalog(catalog.conn_id).list_namespaces() == before
