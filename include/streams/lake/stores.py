"""The object stores: Google Cloud Storage and Amazon S3 (with every store that speaks S3's protocol).

The warehouse's address, in the extra of the connection `landing_catalog`, selects the store of tables, staging files,
models and reports: `gs://BUCKET/PATH` or `s3://BUCKET/PATH`. A bucket's name may have a scheme too (`s3://artifacts`);
then this bucket is in that store. Each store has one Airflow connection with its credentials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from include.streams.lake.amazon import AmazonStore
from include.streams.lake.google import GoogleStore
from include.streams.lake.store import DEFAULT_BUCKET, VARIABLE, Store

if TYPE_CHECKING:
    from airflow.sdk import Connection

CATALOG_CONN_ID = "landing_catalog"
# A key in the extra of the connection `landing_catalog`: another connection for objects than the store's usual one.
CONN_ID_KEY = "objects_conn_id"


def of_address(address: str, conn_id: str | None = None) -> Store:
    """The store of an address.

    Args:
        address: An address such as s3://bucket/path. Without a scheme, it is in Google Cloud Storage, as in releases
            that knew no other store.
        conn_id: The Airflow connection of the store; None: the store's usual one.

    Raises:
        ValueError: There is no store for the address.
    """
    scheme = urlsplit(address).scheme
    for store in (GoogleStore, AmazonStore):
        if not scheme or scheme in store.schemes:
            return store(conn_id)
    raise ValueError(f"{address}: no store for addresses of {scheme}://; use gs:// or s3://")


def of_catalog(connection: Connection) -> Store:
    """The store of the warehouse.

    The warehouse of a REST catalog may be a name without a scheme. Then the scheme of the artifacts bucket counts.

    Args:
        connection: The Airflow connection of the catalog.

    Raises:
        ValueError: There is no store for the warehouse's address.
    """
    extra = connection.extra_dejson
    address = str(extra.get("warehouse") or "")
    return of_address(address if "://" in address else _artifacts(), extra.get(CONN_ID_KEY))


def store_in_use() -> Store:
    """The store of this deployment: that of the warehouse; without one, that of the artifacts bucket.

    Raises:
        LookUpFailed: It could not be determined whether the connection of the catalog is defined.
        ValueError: There is no store for the address.
    """
    from airflow.sdk import BaseHook

    from include.streams.compat.connections import is_defined

    if not is_defined(CATALOG_CONN_ID):
        return of_address(_artifacts())
    return of_catalog(BaseHook.get_connection(CATALOG_CONN_ID))


def _artifacts() -> str:
    """The artifacts bucket as the Variable names it: with or without a scheme."""
    from airflow.sdk import Variable

    return str(Variable.get(VARIABLE, default=DEFAULT_BUCKET))


def artifacts_bucket() -> str:
    """The name of the bucket for models, reports and usage."""
    return _artifacts().rpartition("://")[2].rstrip("/")


def store_of_bucket(name: str | None, conn_id: str | None = None) -> tuple[Store, str]:
    """The store of a bucket, and the bucket's name in it.

    Args:
        name: The bucket's name, with or without a scheme; None: the artifacts bucket.
        conn_id: The Airflow connection of the store; None: the store's usual one.

    Raises:
        LookUpFailed: As for `store_in_use`.
        ValueError: There is no store for the bucket's scheme.
    """
    address = name or _artifacts()
    store = of_address(address, conn_id) if "://" in address else store_in_use()
    if conn_id:
        store.conn_id = conn_id
    return store, address.rpartition("://")[2].rstrip("/")
