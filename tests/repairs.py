"""Records of repairs, for the tests of several packages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from include.streams.operations.database import begin
from include.streams.operations.tables import operations_audit


def records_of(argument: str, value: str) -> list[dict[str, Any]]:
    """The records of repairs that had this value of an argument, oldest first."""
    query = select(operations_audit).where(operations_audit.c.arguments[argument].astext == value)
    with begin() as connection:
        return [dict(row._mapping) for row in connection.execute(query.order_by(operations_audit.c.id))]


def in_two_tries(repair: Callable[[], Any]) -> list[Any]:
    """Call a repair in two threads at the same time; returns the results."""
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(repair())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results
