"""Which offsets each manifest of a landing table reaches over, on record in the operational database.

A manifest never changes, so what was read of one stays true. A process that has just begun opens only the manifests
that reach beyond what it is asked for: a plan costs the same beside a million files as beside a hundred. A row that is
missing costs time, never correctness: the manifest is read, and its row written again.
"""

from collections.abc import Collection, Iterable, Mapping

from sqlalchemy import Column, Index, Table, Text, delete, select
from sqlalchemy.dialects.postgresql import JSONB, insert

from include.operations.database import begin
from include.operations.tables import metadata

# {Kafka partition: (first offset, end, exclusive) of the files that the manifest lists}.
Bounds = Mapping[int, tuple[int, int]]
# Paths in one statement.
AT_ONCE = 1_000

landing_manifests = Table(
    "landing_manifests",
    metadata,
    Column("path", Text, primary_key=True),
    # Iceberg's id of the table.
    Column("table_uuid", Text, nullable=False),
    # {"partition": [start, end]}
    Column("bounds", JSONB, nullable=False),
    Index("ix_landing_manifests_table", "table_uuid"),
)


def known(paths: Collection[str]) -> dict[str, Bounds]:
    """The bounds of those manifests that are on record.

    Args:
        paths: Addresses of manifests.

    Returns:
        {path: bounds}, without the manifests of which nothing is known.
    """
    found: dict[str, Bounds] = {}
    with begin() as connection:
        for some in _chunks(paths):
            of_these = select(landing_manifests.c.path, landing_manifests.c.bounds)
            for path, bounds in connection.execute(of_these.where(landing_manifests.c.path.in_(some))):
                found[path] = {int(partition): (start, end) for partition, (start, end) in bounds.items()}
    return found


def remember(table_uuid: str, bounds: Mapping[str, Bounds]) -> None:
    """Record what was read of manifests. Repeating it, also in two processes at once, changes nothing.

    Args:
        table_uuid: Iceberg's id of the table.
        bounds: {path: bounds} of its manifests.
    """
    rows = [
        {"path": path, "table_uuid": table_uuid, "bounds": {str(p): list(ends) for p, ends in found.items()}}
        # Sorted: two processes that insert the same paths in different orders would block each other.
        for path, found in sorted(bounds.items())
    ]
    with begin() as connection:
        for some in _chunks(rows):
            connection.execute(insert(landing_manifests).on_conflict_do_nothing(), some)


def forget_others(table_uuid: str, paths: Iterable[str]) -> int:
    """Remove the rows of the table's manifests that are none of `paths`; returns how many."""
    mine = select(landing_manifests.c.path).where(landing_manifests.c.table_uuid == table_uuid)
    removed = 0
    with begin() as connection:
        gone = sorted(set(connection.execute(mine).scalars()) - set(paths))
        for some in _chunks(gone):
            removed += connection.execute(delete(landing_manifests).where(landing_manifests.c.path.in_(some))).rowcount
    return removed


def _chunks(items: Collection) -> Iterable[list]:
    listed = list(items)
    return (listed[first : first + AT_ONCE] for first in range(0, len(listed), AT_ONCE))
