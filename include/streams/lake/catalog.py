"""The Iceberg catalog, from the Airflow connection `landing_catalog`; objects through the store of its warehouse."""

import logging
import sys
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from include.streams.lake.stores import CATALOG_CONN_ID, CONN_ID_KEY, of_catalog

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from pyiceberg.catalog import Catalog
    from pyiceberg.io import FileIO
    from pyiceberg.table import Table

    from include.streams.operations.database import Target

CONN_ID = CATALOG_CONN_ID
# The rows of a JDBC catalog carry the catalog's name: the sink's `iceberg.catalog` must have the same name.
CATALOG_NAME = "landing"
# Prefixes of keys in the connection's extra that belong to libpq; all other keys are properties of the catalog.
_LIBPQ = (
    "ssl", "keepalives", "tcp_user_timeout", "connect_timeout", "target_session_attrs", "channel_binding", "gssencmode",
    "options", "server_settings",
)  # fmt: skip
# These loggers write a line each time a table is read: every few seconds in a triggerer.
_CHATTY = ("pyiceberg.io", "fsspec.caching")


@cache
def load_catalog(conn_id: str = CONN_ID) -> "Catalog":
    """The catalog that the sink commits to; created once per process.

    It blocks while the connection is fetched: do not call it at the top level of a Dag file.

    A connection of type postgres is the database of a JDBC catalog, with the warehouse's URL in its extra. With
    `{"type": "rest", "uri": ...}` in the extra it is a REST catalog: PyIceberg gets the extra, and the connection's
    login and password are its OAuth credential.

    Args:
        conn_id: The Airflow connection of the catalog.

    Raises:
        AirflowNotFoundException: A connection is not defined.
        ValueError: A connection cannot be used.
    """
    from airflow.sdk import BaseHook

    _silence()
    connection = BaseHook.get_connection(conn_id)
    properties = _properties(connection)
    if _is_rest(connection):
        from pyiceberg.catalog.rest import RestCatalog

        extra = connection.extra_dejson
        if "uri" not in extra:
            raise ValueError(f"connection {conn_id}: its extra says type rest; add the catalog's address as uri")
        if connection.login and not {"credential", "token"} & extra.keys():
            properties["credential"] = f"{connection.login}:{connection.password or ''}"
        return RestCatalog(CATALOG_NAME, **properties)
    return _sql_catalog(connection, properties)


def _silence() -> None:
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _properties(connection: "Connection") -> dict[str, Any]:
    """The properties of the catalog that its Airflow connection gives, with those for objects."""
    extra = {
        name: str(value)
        for name, value in connection.extra_dejson.items()
        if not name.startswith(_LIBPQ) and name != CONN_ID_KEY
    }
    io = {"py-io-impl": "include.streams.compat.objects.ObjectIO"}
    return {**io, **of_catalog(connection).file_properties(), **extra}


def _is_rest(connection: "Connection") -> bool:
    return connection.extra_dejson.get("type", "sql") == "rest"


def warehouse_io(address: str, conn_id: str = CONN_ID) -> "FileIO":
    """The file IO for an address of the warehouse, as tables have it.

    For a task that knows its files: with a JDBC catalog, it opens no connection to the catalog's database.

    Args:
        address: An address in the warehouse's store.
        conn_id: The Airflow connection of the catalog.

    Raises:
        AirflowNotFoundException: A connection is not defined.
    """
    from airflow.sdk import BaseHook
    from pyiceberg.io import load_file_io

    _silence()
    connection = BaseHook.get_connection(conn_id)
    properties = load_catalog(conn_id).properties if _is_rest(connection) else _properties(connection)
    return load_file_io(properties, address)


def forget_catalogs() -> None:
    """Let the next use of a catalog read its Airflow connections again, also those of the object store.

    For processes that live for weeks, after an error: without this, the client would use a rotated key again and again.
    A caller that uses a catalog at this moment keeps it.
    """
    load_catalog.cache_clear()
    _current.clear()
    for module in ("google_objects", "amazon_objects"):
        if objects := sys.modules.get(f"include.streams.compat.{module}"):
            # fsspec caches a client for each credential.
            objects.ObjectFileSystem.clear_instance_cache()


def load_current(name: str) -> "Table":
    """Like the catalog's `load_table`, but read the table's metadata again only after a new commit.

    A sensor loads a table every few seconds, and a task several times. For a JDBC catalog, one query shows whether the
    table has changed. The caller gets a copy, which it may refresh or commit to without an effect on other callers.

    Args:
        name: The table's identifier, `namespace.name`.

    Returns:
        The table in its newest state.

    Raises:
        NoSuchTableError: The table does not exist.
    """
    catalog = load_catalog()
    location = _metadata_location(catalog, name)
    table = _current.get(name)
    if location is None or table is None or table.metadata_location != location:
        table = _current[name] = catalog.load_table(name)
    return copy(table)


def refreshed(table: "Table") -> "Table":
    """Like `table.refresh()`, but read the metadata only if another process has committed since it was read.

    A table keeps a week of snapshots. The time to read its metadata grows with their number; the time of a query does
    not.

    Args:
        table: A table of `load_catalog`.

    Returns:
        The same table in its newest state.
    """
    location = _metadata_location(table.catalog, ".".join(table.name()))
    if location is None or location != table.metadata_location:
        table.refresh()
    return table


# The last state that was read, by identifier. It holds as many entries as there are tables.
_current: dict[str, "Table"] = {}


def _metadata_location(catalog: "Catalog", name: str) -> str | None:
    """The address of the table's current metadata; None when only loading the table can find it."""
    from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
    from sqlalchemy import select

    if not isinstance(catalog, SqlCatalog):
        return None
    namespace, _, short = name.rpartition(".")
    row = select(IcebergTables.metadata_location).where(
        IcebergTables.catalog_name == catalog.name,
        IcebergTables.table_namespace == namespace,
        IcebergTables.table_name == short,
    )
    with catalog.engine.connect() as connection:
        return connection.scalar(row)


def _map_tables() -> None:
    """Let SQLAlchemy map PyIceberg's two tables without Airflow's models.

    Airflow imports all of its own models when the first mapper of a process is configured. This takes half a second in
    every task, for tables that a task may not read.
    """
    from pyiceberg.catalog.sql import SqlCatalogBaseTable
    from sqlalchemy import event
    from sqlalchemy.exc import InvalidRequestError
    from sqlalchemy.orm import Mapper

    # This only saves time. If another Airflow version has no such listener, nothing is removed.
    import_all_models = getattr(sys.modules.get("airflow.models"), "import_all_models", None)
    if import_all_models is None:
        return
    try:
        event.remove(Mapper, "before_configured", import_all_models)
    except InvalidRequestError:
        return
    try:
        SqlCatalogBaseTable.registry.configure()
    finally:
        event.listen(Mapper, "before_configured", import_all_models, once=True)


def _sql_catalog(connection: "Connection", properties: dict[str, Any]) -> "Catalog":
    from airflow.sdk import BaseHook
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    from include.streams.operations.database import guard

    conn_id = connection.conn_id
    database = _database(connection)
    if not (warehouse := connection.extra_dejson.get("warehouse")):
        raise ValueError(
            f'connection {conn_id}: its extra has no warehouse; add {{"warehouse": "gs://BUCKET/PATH"}} (or s3://...)'
        )
    properties = {
        **properties,
        "warehouse": str(warehouse),
        "type": "sql",
        "uri": database.url.render_as_string(hide_password=False),
        "pool_pre_ping": "true",
        # The sink's `iceberg.catalog.jdbc.schema-version`.
        "schema_version": "v1",
    }
    _map_tables()
    try:
        catalog = SqlCatalog(CATALOG_NAME, **properties)
    except (IntegrityError, ProgrammingError):
        # Another process created the catalog's tables at the same moment. They exist now.
        catalog = SqlCatalog(CATALOG_NAME, **properties)
    guard(catalog.engine, database, lambda: _database(BaseHook.get_connection(conn_id)))
    # The connection that checked for the catalog's tables was opened before `guard` set its limits.
    catalog.engine.dispose()
    return catalog


def _database(connection: "Connection") -> "Target":
    """The database of a JDBC catalog. Only PostgreSQL is accepted: in SQLite, for example, two writers collide."""
    from include.streams.operations.database import postgres_target

    libpq = {name: value for name, value in connection.extra_dejson.items() if name.startswith(_LIBPQ)}
    return postgres_target(connection, libpq, needed_by="a JDBC catalog")
