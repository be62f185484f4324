"""Objects that another product writes: list them by name, and read one in exactly the version that was listed.

A version is opaque: Cloud Storage's generation. It changes whenever an object is written, even with the same content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

CONN_ID = "google_cloud_default"
# To connect, and between two packets of an answer; and how long a call is repeated while the store is unavailable.
TIMEOUT_SECONDS: Any = (10.0, 60.0)
RETRY_SECONDS = 120.0


class ObjectChanged(OSError):
    """The object no longer exists in this version: it was written again or removed."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in one version. `path` is its name in the bucket, `size` is in bytes."""

    path: str
    version: str
    size: int
    modified: datetime


class ObjectStore(Protocol):
    """The objects of one bucket. Calls retry while the store is unavailable, then raise the client's exception."""

    def list(self, prefix: str, start_at: str | None = None) -> Iterator[StoredObject]:
        """The objects whose names begin with `prefix`, sorted by name.

        Args:
            prefix: What the names begin with.
            start_at: Only this name and later names.
        """
        ...

    def find(self, path: str) -> StoredObject | None:
        """The object with this name now; None if there is none."""
        ...

    def fetch(self, path: str, version: str, local: Path) -> None:
        """Copy the object to a local file, as it is stored.

        Args:
            path: The object's name.
            version: The version to copy.
            local: The local file.

        Raises:
            ObjectChanged: The object no longer exists in this version.
        """
        ...


def object_store(scheme: str, bucket: str, conn_id: str = CONN_ID) -> ObjectStore:
    """The objects of a bucket. This sends no request to the store.

    Args:
        scheme: The scheme of the bucket's address: `gs`.
        bucket: The bucket's name.
        conn_id: The Airflow connection of the store.

    Raises:
        ValueError: There is no store for this scheme.
        AirflowNotFoundException: The connection is not defined.
    """
    if scheme not in ("gs", "gcs"):
        raise ValueError(f"{scheme}://{bucket}: no store for this scheme; there is gs://")
    from airflow.providers.google.cloud.hooks.gcs import GCSHook

    return _Google(GCSHook(gcp_conn_id=conn_id).get_conn(), bucket)


class _Google:
    def __init__(self, client: Any, bucket: str) -> None:
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._client, self._bucket = client, client.bucket(bucket)
        self._options: dict[str, Any] = {
            "timeout": TIMEOUT_SECONDS,
            "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS),
        }

    def list(self, prefix: str, start_at: str | None = None) -> Iterator[StoredObject]:
        fields = "items(name,generation,size,updated),nextPageToken"
        blobs = self._client.list_blobs(
            self._bucket, prefix=prefix, start_offset=start_at, fields=fields, **self._options
        )
        return map(_stored, blobs)

    def find(self, path: str) -> StoredObject | None:
        blob = self._bucket.get_blob(path, **self._options)
        return None if blob is None else _stored(blob)

    def fetch(self, path: str, version: str, local: Path) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        # The condition, not only the generation: the local stack's store ignores the generation alone.
        blob = self._bucket.blob(path, generation=int(version))
        try:
            blob.download_to_filename(
                # Otherwise the client would decompress some objects, depending on how the sink describes them.
                str(local), raw_download=True, if_generation_match=int(version), **self._options
            )  # fmt: skip
        except (NotFound, PreconditionFailed) as error:
            raise ObjectChanged(f"gs://{self._bucket.name}/{path} is no longer stored as {version}") from error


def _stored(blob: Any) -> StoredObject:
    return StoredObject(blob.name, str(blob.generation), int(blob.size or 0), blob.updated)
