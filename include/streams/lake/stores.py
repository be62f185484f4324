"""The object stores: Google Cloud Storage and Amazon S3 (with every store that speaks S3's protocol).

The warehouse's address, in the extra of the connection `landing_catalog`, selects the store of tables, staging files,
models and reports: `gs://BUCKET/PATH` or `s3://BUCKET/PATH`. A bucket's name may have a scheme too (`s3://artifacts`);
then this bucket is in that store. Each store has one Airflow connection with its credentials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from include.streams.lake.buckets import Bucket

CATALOG_CONN_ID = "landing_catalog"
# The bucket for derived data: models, reports, usage. Its name is an Airflow Variable, because bucket names are
# globally unique: a deployment cannot use the default name.
VARIABLE = "artifacts_bucket"
DEFAULT_BUCKET = "artifacts"
# A key in the extra of the connection `landing_catalog`: another connection for objects than the store's usual one.
CONN_ID_KEY = "objects_conn_id"


class Store(ABC):
    """One object store, with the credentials of an Airflow connection. Creating it sends no request.

    Args:
        conn_id: The Airflow connection; None: the store's usual one.
    """

    title: ClassVar[str]
    # The first one is used in addresses that this project writes.
    schemes: ClassVar[tuple[str, ...]]
    default_conn_id: ClassVar[str]

    def __init__(self, conn_id: str | None = None) -> None:
        self.conn_id = conn_id or self.default_conn_id

    @abstractmethod
    def file_properties(self) -> dict[str, Any]:
        """PyIceberg's properties for objects, with the credentials of the connection.

        Raises:
            AirflowNotFoundException: The connection is not defined.
        """

    @abstractmethod
    def sink_settings(self) -> dict[str, str]:
        """The settings of the Iceberg sink's file IO, without passwords.

        Raises:
            AirflowNotFoundException: The connection is not defined.
        """

    @abstractmethod
    def bucket(self, name: str) -> Bucket:
        """A bucket of the store; see `buckets.bucket`."""


def of_address(address: str, conn_id: str | None = None) -> Store:
    """The store of an address.

    Args:
        address: An address such as s3://bucket/path. Without a scheme, it is in Google Cloud Storage, as in releases
            that knew no other store.
        conn_id: The Airflow connection of the store; None: the store's usual one.

    Raises:
        ValueError: There is no store for the address.
    """
    from include.streams.lake.amazon import AmazonStore
    from include.streams.lake.google import GoogleStore

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
