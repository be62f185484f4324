"""Read the operational database for a page."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

from include.streams.operations.database import CONN_ID, engine

# A page reads every second. A statement that takes longer than this is blocked and occupies an api-server thread.
STATEMENT_TIMEOUT_MS = 3_000


@contextmanager
def read_only(conn_id: str = CONN_ID) -> Iterator[Connection]:
    """A connection in one read-only transaction, in which every statement sees the same state.

    Args:
        conn_id: The Airflow connection of the operational database.

    Yields:
        The connection.
    """
    with engine(conn_id).connect() as connection, connection.begin():
        connection.execute(text("set transaction isolation level repeatable read, read only"))
        connection.execute(text(f"set local statement_timeout = {STATEMENT_TIMEOUT_MS}"))
        yield connection
