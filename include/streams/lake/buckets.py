"""Read, write, list, move and delete objects in a bucket of any store (`stores.py`)."""

from __future__ import annotations

from include.streams.lake import stores
from include.streams.lake.store import (
    ABSENT,
    UPDATE_TRIES,
    VARIABLE,
    Bucket,
    BucketError,
    Entry,
    GenerationChanged,
    StoreUnavailable,
    UnsafeStore,
)
from include.streams.lake.stores import artifacts_bucket

__all__ = [
    "ABSENT",
    "UPDATE_TRIES",
    "VARIABLE",
    "Bucket",
    "BucketError",
    "Entry",
    "GenerationChanged",
    "StoreUnavailable",
    "UnsafeStore",
    "artifacts_bucket",
    "bucket",
]


def bucket(name: str | None = None, conn_id: str | None = None) -> Bucket:
    """Return a bucket by name. This sends no request to the store.

    Args:
        name: The bucket's name, in the store of the warehouse; with a scheme (s3://NAME) in the store of the scheme.
            None: the artifacts bucket.
        conn_id: The Airflow connection of the store; None: the store's usual one.

    Raises:
        AirflowNotFoundException: The connection is not defined.
        LookUpFailed: It could not be determined whether the connection of the catalog is defined.
        ValueError: There is no store for the bucket's scheme.
    """
    store, name = stores.store_of_bucket(name, conn_id)
    return store.bucket(name)
