"""Connections to PostgreSQL: none hangs, and settings of the Airflow connection replace the defaults."""

from __future__ import annotations

import pytest
from airflow.sdk import Connection

from include.streams.operations.database import postgres_target


def connection(conn_type: str = "postgres") -> Connection:
    return Connection(
        conn_id="some_db", conn_type=conn_type, host="db", port=5433, login="me", password="p@ss", schema="books"
    )


def test_connections_have_timeouts_for_vanished_servers_and_clients():
    url = postgres_target(connection(), {}, needed_by="a test").url
    assert url.query == {
        "connect_timeout": "10",
        "application_name": "airflow",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "4",
        "tcp_user_timeout": "30000",
    }
    assert url.render_as_string(hide_password=False).startswith("postgresql+psycopg://me:p%40ss@db:5433/books?")


def test_settings_of_the_connection_replace_the_defaults():
    extra = {"connect_timeout": 3, "sslmode": "verify-full"}
    query = postgres_target(connection(), extra, needed_by="a test").url.query
    assert (query["connect_timeout"], query["sslmode"], query["keepalives_idle"]) == ("3", "verify-full", "10")


def test_settings_for_the_server_are_not_parameters_of_libpq():
    target = postgres_target(connection(), {"server_settings": {"lock_timeout": 5}}, needed_by="a test")
    assert target.server_settings == {"lock_timeout": "5"}
    assert "server_settings" not in target.url.query


def test_server_settings_that_are_not_an_object_are_refused():
    with pytest.raises(ValueError, match=r"connection some_db: server_settings in its extra is 'fast'; it needs an"):
        postgres_target(connection(), {"server_settings": "fast"}, needed_by="a test")


def test_a_database_other_than_postgresql_is_refused_by_name():
    with pytest.raises(ValueError, match=r"connection some_db: conn_type is 'sqlite'; a test needs 'postgres'"):
        postgres_target(connection("sqlite"), {}, needed_by="a test")
