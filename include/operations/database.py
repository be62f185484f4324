"""Transactions on the operational database, from the Airflow connection `operations_db`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

if TYPE_CHECKING:
    from airflow.sdk import Connection as AirflowConnection

CONN_ID = "operations_db"


def url(conn_id: str = CONN_ID) -> URL:
    """The connection as a SQLAlchemy URL; its extra (sslmode, sslrootcert, ...) goes to libpq.

    Raises AirflowNotFoundException when the connection is not defined, ValueError when it is no PostgreSQL.
    """
    from airflow.sdk import BaseHook

    connection = BaseHook.get_connection(conn_id)
    return postgres_url(connection, connection.extra_dejson, needed_by="the operational database")


def postgres_url(connection: "AirflowConnection", extra: Mapping[str, object], *, needed_by: str) -> URL:
    """An Airflow connection as a SQLAlchemy URL, `extra` being libpq's. Raises ValueError when it is no PostgreSQL.

    needed_by: what takes no other database, for the error.
    """
    if connection.conn_type not in ("postgres", "postgresql"):
        raise ValueError(
            f"connection {connection.conn_id}: conn_type is {connection.conn_type!r}; {needed_by} needs 'postgres'"
        )
    query = {
        # An unreachable server must fail the task, which Airflow retries, and not hang it.
        "connect_timeout": "10",
        "application_name": "airflow",
        # A vanished client's transaction keeps its locks until the server notices: 30 s instead of two hours.
        "keepalives_idle": "30",
        **{name: str(value) for name, value in extra.items()},
    }
    return URL.create(
        "postgresql+psycopg",
        username=connection.login,
        password=connection.password,
        host=connection.host,
        port=connection.port,
        database=connection.schema,
        query=query,
    )


@cache
def engine(conn_id: str = CONN_ID) -> Engine:
    """One engine a process. Task processes are short: few connections, checked before use."""
    # hide_parameters: an error's text goes to task logs, and parameters are what customers wrote.
    # max_overflow: `deliver_outbox` delivers on several routes at once; what is not needed is closed again.
    made = create_engine(url(conn_id), pool_size=2, max_overflow=8, pool_pre_ping=True, hide_parameters=True)
    event.listen(made, "handle_error", _hide_values)
    return made


def _hide_values(context: ExceptionContext) -> None:
    """Shorten PostgreSQL's own text, which quotes values: `DETAIL: Failing row contains (...)`.

    Its first line names the table, column or constraint, and quotes a value only for data that it cannot read (class
    22: `invalid input syntax for type bigint: "..."`).
    """
    error = context.original_exception
    diagnostics = getattr(error, "diag", None)
    if diagnostics is None or diagnostics.sqlstate is None:
        return
    hidden = diagnostics.sqlstate.startswith("22")
    text = f"SQLSTATE {diagnostics.sqlstate}" if hidden else diagnostics.message_primary
    error.args = (text,)
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.args = (f"({type(error).__module__}.{type(error).__name__}) {text}",)


@contextmanager
def begin(conn_id: str = CONN_ID) -> Iterator[Connection]:
    """A connection in one transaction: committed at the end of the block, rolled back when it raises."""
    with engine(conn_id).begin() as connection:
        yield connection
