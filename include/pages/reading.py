"""Reading the operational database for a page."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

from include.operations.database import CONN_ID, engine

# A page is read every second: a statement that takes longer waits for something, and holds a thread of the api-server.
STATEMENT_TIMEOUT_MS = 3_000


@contextmanager
def read_only(conn_id: str = CONN_ID) -> Iterator[Connection]:
    """A connection in one read-only transaction, in which every statement sees the same state."""
    with engine(conn_id).connect() as connection, connection.begin():
        connection.execute(text("set transaction isolation level repeatable read, read only"))
        connection.execute(text(f"set local statement_timeout = {STATEMENT_TIMEOUT_MS}"))
        yield connection
