"""The offset bounds of each manifest of a landing table, recorded in the operational database.

A manifest never changes, so its bounds stay valid. A new process opens only manifests that overlap the requested
offsets, so planning takes as long with a million files as with a hundred. If a row is missing, the manifest is read and
its row is written again: the result is the same, and only takes longer.
"""

from collections.abc import Collection, Iterable, Mapping

from sqlalchemy import Column, Index, Table, Text, delete, select
from sqlalchemy.dialects.postgresql import JSONB, insert

from include.streams.operations.database import begin
from include.streams.operations.tables import metadata

# {Kafka partition: (first offset, end, exclusive) of the files that the manifest lists}.
Bounds = Mapping[int, tuple[int, int]]
# Paths or rows in one statement.
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


def load_bounds(paths: Collection[str]) -> dict[str, Bounds]:
    """The recorded bounds of manifests.

    Args:
        paths: Addresses of manifests.

    Returns:
        {path: bounds}, without manifests that have no record.
    """
    recorded: dict[str, Bounds] = {}
    with begin() as connection:
        for batch in _chunks(paths):
            of_these = select(landing_manifests.c.path, landing_manifests.c.bounds)
            for path, bounds in connection.execute(of_these.where(landing_manifests.c.path.in_(batch))):
                recorded[path] = {int(partition): (start, end) for partition, (start, end) in bounds.items()}
    return recorded


def store_bounds(table_uuid: str, bounds: Mapping[str, Bounds]) -> None:
    """Record the bounds of manifests. It is safe to repeat, even in two processes at once.

    Args:
        table_uuid: Iceberg's id of the table.
        bounds: {path: bounds} of its manifests.
    """
    rows = [
        {"path": path, "table_uuid": table_uuid, "bounds": {str(p): list(ends) for p, ends in of_manifest.items()}}
        # Sorted: two processes that insert the same paths in different orders would deadlock.
        for path, of_manifest in sorted(bounds.items())
    ]
    with begin() as connection:
        for batch in _chunks(rows):
            connection.execute(insert(landing_manifests).on_conflict_do_nothing(), batch)


def delete_others(table_uuid: str, paths: Iterable[str]) -> int:
    """Delete the recorded bounds of manifests that the table no longer has.

    Args:
        table_uuid: Iceberg's id of the table.
        paths: The manifests that the table still has.

    Returns:
        How many rows were deleted.
    """
    recorded = select(landing_manifests.c.path).where(landing_manifests.c.table_uuid == table_uuid)
    removed = 0
    with begin() as connection:
        gone = sorted(set(connection.execute(recorded).scalars()) - set(paths))
        for batch in _chunks(gone):
            removed += connection.execute(delete(landing_manifests).where(landing_manifests.c.path.in_(batch))).rowcount
    return removed


def _chunks(items: Collection) -> Iterable[list]:
    listed = list(items)
    return (listed[first : first + AT_ONCE] for first in range(0, len(listed), AT_ONCE))
