"""Objects in a bucket: read, written, listed and deleted, through the Airflow connection `google_cloud_default`.

The connection says who we are (a key file, the machine's own account, somebody impersonated, or nobody: `is_anonymous`
in its extra). STORAGE_EMULATOR_HOST points the client at another server than Google's.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.cloud.storage import Blob
    from google.cloud.storage import Bucket as CloudBucket

log = logging.getLogger(__name__)

CONN_ID = "google_cloud_default"

# The bucket for what is made of the data: models, reports, usage. By Airflow Variable, since names of buckets are
# unique in the whole world: no deployment can have the default.
VARIABLE = "artifacts_bucket"
DEFAULT_BUCKET = "artifacts"

# To connect, and between two packets of an answer. (The client takes pairs; its annotations say only int.)
TIMEOUT_SECONDS: Any = (10.0, 60.0)
# A store that is away for longer fails the task: Airflow's retries wait without holding a worker.
RETRY_SECONDS = 120.0

# A generation that no object has: with `if_generation_match`, "only if there is none yet".
ABSENT = 0

_WRITE_ID = "write-id"


class BucketError(Exception):
    """The bucket cannot be used: it does not exist, or the connection may not use it."""


class GenerationChanged(Exception):
    """The object is not the one that the writer has read: somebody else has written, or it exists already."""


@dataclass(frozen=True)
class Entry:
    """An object, as a listing shows it."""

    path: str
    generation: int
    size: int
    updated: datetime


def artifacts_bucket() -> str:
    """The name of the bucket for models, reports and usage."""
    from airflow.sdk import Variable

    return str(Variable.get(VARIABLE, default=DEFAULT_BUCKET))


def bucket(name: str | None = None, conn_id: str = CONN_ID) -> Bucket:
    """A bucket by name; without one, the bucket for artifacts.

    Asks nothing of the store yet. Raises AirflowNotFoundException when the connection is not defined.
    """
    from airflow.providers.google.cloud.hooks.gcs import GCSHook

    name = name or artifacts_bucket()
    return Bucket(GCSHook(gcp_conn_id=conn_id).get_conn().bucket(name), conn_id)


class Bucket:
    """One bucket. Every call waits at most RETRY_SECONDS for a store that is away.

    Raises BucketError when the bucket does not exist or the connection may not use it, and what the client raises
    (google.api_core.exceptions) when the store stays away.
    """

    def __init__(self, remote: CloudBucket, conn_id: str) -> None:
        self._remote = remote
        self._conn_id = conn_id
        # One deadline for the whole call, and for single requests less than that.
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._retry = DEFAULT_RETRY.with_timeout(RETRY_SECONDS)

    @property
    def name(self) -> str:
        return str(self._remote.name)

    def read(self, path: str) -> tuple[bytes, int] | None:
        """(content, generation) of the object, both of one moment; None when there is none."""
        from google.api_core.exceptions import NotFound

        blob = self._remote.blob(path)
        with self._explaining():
            try:
                data = blob.download_as_bytes(timeout=TIMEOUT_SECONDS, retry=self._retry)
            except NotFound:
                # A bucket that is missing answers the same; taken for "no object", a champion would be trained anew.
                self._require_bucket()
                return None
        # From the headers of the download itself: asked for apart, it could be that of another content.
        return data, _generation(blob)

    def write(
        self,
        path: str,
        data: bytes,
        content_type: str = "application/octet-stream",
        *,
        if_generation_match: int | None = None,
    ) -> int:
        """Put the object there whole, or not at all; returns its generation.

        if_generation_match: write only if the object still has this generation; ABSENT: only if there is none.
        Raises GenerationChanged if not. A write whose answer was lost on the way is recognised when it is repeated.
        """
        from google.api_core.exceptions import PreconditionFailed

        blob = self._remote.blob(path)
        write_id = uuid.uuid4().hex
        blob.metadata = {_WRITE_ID: write_id}
        with self._explaining():
            try:
                blob.upload_from_string(
                    data,
                    content_type=content_type,
                    if_generation_match=if_generation_match,
                    timeout=TIMEOUT_SECONDS,
                    retry=self._retry,
                )
            except PreconditionFailed as error:
                found = self._remote.get_blob(path, timeout=TIMEOUT_SECONDS, retry=self._retry)
                if found is not None and (found.metadata or {}).get(_WRITE_ID) == write_id:
                    return _generation(found)
                state = "does not exist" if found is None else f"has generation {found.generation}"
                raise GenerationChanged(
                    f"gs://{self.name}/{path} {state}, not {if_generation_match}: somebody else has written it; "
                    "read it again"
                ) from error
        return _generation(blob)

    def list(self, prefix: str = "") -> list[Entry]:
        """The objects whose path begins with `prefix`, by path."""
        with self._explaining():
            found = self._remote.client.list_blobs(
                self._remote, prefix=prefix, timeout=TIMEOUT_SECONDS, retry=self._retry
            )
            return sorted((_entry(blob) for blob in found), key=lambda entry: entry.path)

    def delete(self, path: str) -> None:
        """Remove the object; harmless when there is none."""
        from google.api_core.exceptions import NotFound

        with self._explaining():
            try:
                self._remote.delete_blob(path, timeout=TIMEOUT_SECONDS, retry=self._retry)
            except NotFound:
                self._require_bucket()

    def _require_bucket(self) -> None:
        """Raise NotFound when the bucket itself is missing. By a listing, since that needs no right on the bucket."""
        next(iter(self._remote.client.list_blobs(self._remote, max_results=1, timeout=TIMEOUT_SECONDS)), None)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say which bucket, which connection and what to do, where the client's text names an URL."""
        from google.api_core.exceptions import Forbidden, NotFound, Unauthorized

        try:
            yield
        except NotFound as error:
            raise BucketError(
                f"bucket {self.name} does not exist; make it, or name another in the Airflow Variable that holds its "
                f"name (artifacts: {VARIABLE})"
            ) from error
        except (Forbidden, Unauthorized) as error:
            raise BucketError(
                f"bucket {self.name}: connection {self._conn_id} may not do this ({error.message}); give its account "
                "the role Storage Object User on the bucket"
            ) from error


def _generation(blob: Blob) -> int:
    if blob.generation is None:
        raise BucketError(f"the store names no generation of {blob.name}: replacing an object would not be safe")
    return int(blob.generation)


def _entry(blob: Blob) -> Entry:
    return Entry(blob.name or "", _generation(blob), int(blob.size or 0), blob.updated)  # type: ignore[arg-type]
