"""Transactions on the operational database, from the Airflow connection `operations_db`.

The connection may lead to PgBouncer in transaction mode, where consecutive transactions may run on different server
connections. So nothing may depend on the session: no prepared statement, no session lock, no startup parameter
`options`. Limits and the time zone are set at the beginning of each transaction; that costs one round trip (0.1 ms on
the local stack).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import Dialect, ExceptionContext

if TYPE_CHECKING:
    from typing import LiteralString

    from airflow.sdk import Connection as AirflowConnection

CONN_ID = "operations_db"
# The key of an Airflow connection's extra that changes the settings below, as in {"lock_timeout": "2min"}.
SERVER_SETTINGS = "server_settings"
# When a client's machine or network fails, the client's locks are held until the server notices: within 30 s with these
# settings, instead of more than two hours. Behind PgBouncer, these settings apply to PgBouncer's connections; PgBouncer
# needs its own settings for its clients.
SOCKET_SETTINGS = {
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "4",
    # Needed in addition, because keepalives are not sent while an answer waits to be acknowledged.
    "tcp_user_timeout": "30s",
}
TRANSACTION_SETTINGS = {
    # Longer than the 30 s in which the server notices a vanished client: a task waits for the lock of such a client and
    # needs no retry.
    "lock_timeout": "1min",
    # For a client whose process is stopped (a paused container): its kernel still answers keepalives. The same time as
    # Airflow's default timeout for a task's heartbeat.
    "idle_in_transaction_session_timeout": "5min",
}
# A message's time may be the first or last moment of Python's calendar (.NET's DateTime.MinValue is the first). In a
# session with another time zone, psycopg could not read it, and each task that reads the row would fail. The zone is
# set in each transaction, like the limits, because the zone of a session does not hold behind PgBouncer.
TIME_ZONE = {"TimeZone": "UTC"}
# For a transaction that holds a lock while a task works: no task's execution_timeout is longer.
WHOLE_TASK = timedelta(hours=1)
# The SQLSTATE of a `lock_timeout` error.
LOCK_NOT_AVAILABLE = "55P03"
# undefined_table, undefined_column, and invalid_column_reference (no unique index for an ON CONFLICT).
_MISSING_IN_SCHEMA = ("42P01", "42703", "42P10")
OLD_SCHEMA = (
    "The tables are older than this code: run the Dag prepare_services, or "
    "`python -m include.streams.operations upgrade`; retries succeed after it"
)


@dataclass(frozen=True)
class Target:
    """A database as an Airflow connection describes it now: its address, and settings for the server."""

    url: URL
    server_settings: Mapping[str, str]


def target(conn_id: str = CONN_ID) -> Target:
    """The database of an Airflow connection. Its extra (sslmode, sslrootcert, ...) is passed to libpq.

    Args:
        conn_id: The Airflow connection of the operational database.

    Raises:
        AirflowNotFoundException: The connection is not defined.
        ValueError: It is not a PostgreSQL connection, or `server_settings` is not an object.
    """
    from airflow.sdk import BaseHook

    connection = BaseHook.get_connection(conn_id)
    return postgres_target(connection, connection.extra_dejson, needed_by="the operational database")


def postgres_target(connection: "AirflowConnection", extra: Mapping[str, object], *, needed_by: str) -> Target:
    """The database of an Airflow connection.

    Args:
        connection: The Airflow connection.
        extra: Parameters for libpq, and `server_settings`.
        needed_by: The component that needs PostgreSQL, for the error text.

    Returns:
        The database's address and its `server_settings`.

    Raises:
        ValueError: It is not a PostgreSQL connection, or `server_settings` is not an object.
    """
    if connection.conn_type not in ("postgres", "postgresql"):
        raise ValueError(
            f"connection {connection.conn_id}: conn_type is {connection.conn_type!r}; {needed_by} needs 'postgres'"
        )
    settings = extra.get(SERVER_SETTINGS, {})
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"connection {connection.conn_id}: {SERVER_SETTINGS} in its extra is {settings!r}; it needs an object, "
            'such as {"lock_timeout": "2min"}'
        )
    query = {
        # An unreachable server must fail the task, so that Airflow retries it, instead of blocking it.
        "connect_timeout": "10",
        "application_name": "airflow",
        # The client notices a vanished server within 30 s, as the server notices a vanished client.
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "4",
        "tcp_user_timeout": "30000",
        **{name: str(value) for name, value in extra.items() if name != SERVER_SETTINGS},
    }
    address = URL.create(
        "postgresql+psycopg",
        username=connection.login,
        password=connection.password,
        host=connection.host,
        port=connection.port,
        database=connection.schema,
        query=query,
    )
    return Target(address, {name: str(value) for name, value in settings.items()})


def engine(conn_id: str = CONN_ID) -> Engine:
    """The process's one engine for a connection, with few pooled connections, which are checked before use."""
    # Not cached itself: a cached function with a default argument would create two engines, for `engine()` and for
    # `engine(CONN_ID)`.
    return _engine(conn_id)


@cache
def _engine(conn_id: str) -> Engine:
    # hide_parameters: the text of an error is written to task logs, and parameters may hold text of customers.
    # max_overflow: `deliver_outbox` delivers on several routes at once; surplus connections are closed again.
    now = target(conn_id)
    created = create_engine(now.url, pool_size=2, max_overflow=8, pool_pre_ping=True, hide_parameters=True)
    guard(created, now, lambda: target(conn_id))
    event.listen(created, "handle_error", _hide_values)
    return created


def guard(engine: Engine, now: Target, read: Callable[[], Target]) -> None:
    """Set the limits and the time zone of an engine's transactions, and use a changed Airflow connection.

    The triggerer and the api-server run for weeks, so their engines must survive a rotated password or a moved
    database. The Airflow connection is read again only when the database refuses a connection or cannot be reached.

    Args:
        engine: The engine.
        now: The database that the engine was created for.
        read: Reads the Airflow connection again.
    """
    current = now

    def connect(dialect: Dialect, _record: object, _args: list[Any], _parameters: dict[str, Any]) -> Any:
        nonlocal current
        tried = current
        try:
            return _connect(dialect, tried)
        except dialect.loaded_dbapi.OperationalError:
            changed = read()
            if changed == tried:
                raise
        connection = _connect(dialect, changed)
        current = changed
        return connection

    def prepare(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if not driver.autocommit:
            # The zone comes last, because no connection may change it.
            settings = {**TRANSACTION_SETTINGS, **current.server_settings, **TIME_ZONE}
            connection.exec_driver_sql(_assignments("set local", settings, without=SOCKET_SETTINGS))

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", prepare)


def _connect(dialect: Dialect, to: Target) -> Any:
    args, parameters = dialect.create_connect_args(to.url)
    # No prepared statements: the next transaction may run on a server connection that does not have them.
    connection: Any = dialect.connect(*args, **{**parameters, "autocommit": True, "prepare_threshold": None})
    changed = {name: value for name, value in to.server_settings.items() if name in SOCKET_SETTINGS}
    try:
        connection.execute(_assignments("set", {**SOCKET_SETTINGS, **changed}))
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    return connection


def _assignments(command: "LiteralString", settings: Mapping[str, str], without: Iterable[str] = ()) -> str:
    """The statements as one text, so that they take one round trip."""
    from psycopg import sql

    statements = [
        sql.SQL(command) + sql.SQL(" {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in settings.items()
        if name not in without
    ]
    return sql.SQL("; ").join(statements).as_string()


def _hide_values(context: ExceptionContext) -> None:
    """Shorten PostgreSQL's error text, because it quotes values: `DETAIL: Failing row contains (...)`.

    The first line names the table, column or constraint and is kept. It quotes a value only for invalid data (SQLSTATE
    class 22: `invalid input syntax for type bigint: "..."`); then only the SQLSTATE is kept.
    """
    error = context.original_exception
    diagnostics = getattr(error, "diag", None)
    if diagnostics is None or diagnostics.sqlstate is None:
        return
    hidden = diagnostics.sqlstate.startswith("22")
    shown = f"SQLSTATE {diagnostics.sqlstate}" if hidden else diagnostics.message_primary
    if diagnostics.sqlstate in _MISSING_IN_SCHEMA:
        shown = f"{shown}. {OLD_SCHEMA}"
    error.args = (shown,)
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.args = (f"({type(error).__module__}.{type(error).__name__}) {shown}",)


@contextmanager
def begin(conn_id: str = CONN_ID, *, patience: timedelta | None = None) -> Iterator[Connection]:
    """A connection in one transaction: committed at the end of the block, rolled back when the block raises.

    Args:
        conn_id: The Airflow connection.
        patience: Replaces both times of TRANSACTION_SETTINGS, for the wait for a lock and for idle time. For a
            transaction that holds a lock while a task works, or that waits for such a lock.

    Yields:
        The connection.
    """
    with engine(conn_id).begin() as connection:
        if patience is not None:
            limits = dict.fromkeys(TRANSACTION_SETTINGS, f"{patience.total_seconds():.0f}s")
            connection.exec_driver_sql(_assignments("set local", limits))
        yield connection
