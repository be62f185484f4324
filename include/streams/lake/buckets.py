"""Read, write, list and delete objects in a bucket, through the Airflow connection `google_cloud_default`.

The connection sets how to authenticate: with a key file, the machine's own account, impersonation, or anonymously
(`is_anonymous` in its extra). STORAGE_EMULATOR_HOST makes the client use another server than Google's.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.cloud.storage import Blob
    from google.cloud.storage import Bucket as CloudBucket

log = logging.getLogger(__name__)

CONN_ID = "google_cloud_default"

# The bucket for derived data: models, reports, usage. Its name is an Airflow Variable, because bucket names are
# globally unique: a deployment cannot use the default name.
VARIABLE = "artifacts_bucket"
DEFAULT_BUCKET = "artifacts"

# To connect, and between two packets of an answer. The client takes pairs; its annotations allow only int.
TIMEOUT_SECONDS: Any = (10.0, 60.0)
# A store that is unavailable for longer fails the task: Airflow's retries wait without holding a worker.
RETRY_SECONDS = 120.0

# Tries to update an object that other processes write too. Two processes conflict once; this many conflicts are a
# fault.
UPDATE_TRIES = 5
# The generation of an object that does not exist. With `if_generation_match`: "write only if there is no object yet".
ABSENT = 0

_WRITE_ID = "write-id"


class BucketError(Exception):
    """The bucket cannot be used: it does not exist, or the connection has no permission."""


class GenerationChanged(Exception):
    """The object has changed since the writer read it: another process has replaced or created it."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing. `size` is in bytes."""

    path: str
    generation: int
    size: int
    updated: datetime


def artifacts_bucket() -> str:
    """The name of the bucket for models, reports and usage."""
    from airflow.sdk import Variable

    return str(Variable.get(VARIABLE, default=DEFAULT_BUCKET))


def bucket(name: str | None = None, conn_id: str = CONN_ID) -> Bucket:
    """Return a bucket by name. This sends no request to the store.

    Args:
        name: The bucket's name; None: the artifacts bucket.
        conn_id: The Airflow connection of Google Cloud.

    Raises:
        AirflowNotFoundException: The connection is not defined.
    """
    from airflow.providers.google.cloud.hooks.gcs import GCSHook

    name = name or artifacts_bucket()
    return Bucket(GCSHook(gcp_conn_id=conn_id).get_conn().bucket(name), conn_id)


class Bucket:
    """One bucket. Every call retries for at most RETRY_SECONDS while the store is unavailable.

    Raises:
        BucketError: The bucket does not exist, or the connection has no permission.
        google.api_core.exceptions.GoogleAPIError: The store stays unavailable.
    """

    def __init__(self, remote: CloudBucket, conn_id: str) -> None:
        self._remote = remote
        self._conn_id = conn_id
        # A deadline for the whole call, retries included; a single request has the shorter TIMEOUT_SECONDS.
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._retry = DEFAULT_RETRY.with_timeout(RETRY_SECONDS)

    @property
    def name(self) -> str:
        return str(self._remote.name)

    def read(self, path: str) -> tuple[bytes, int] | None:
        """Read an object.

        Args:
            path: The object's name in the bucket.

        Returns:
            (content, generation), which belong together; None when there is no such object.
        """
        from google.api_core.exceptions import NotFound

        blob = self._remote.blob(path)
        with self._explaining():
            try:
                data = blob.download_as_bytes(timeout=TIMEOUT_SECONDS, retry=self._retry)
            except NotFound:
                # A missing bucket gives the same answer. If it were treated as "no object", a training would start
                # without the champion.
                self._require_bucket()
                return None
        # From the headers of the download itself: a separate request could return the generation of other content.
        return data, _generation(blob)

    def write(
        self,
        path: str,
        data: bytes,
        content_type: str = "application/octet-stream",
        *,
        if_generation_match: int | None = None,
    ) -> int:
        """Write the whole object, or nothing.

        Args:
            path: The object's name in the bucket.
            data: The content.
            content_type: The content's MIME type.
            if_generation_match: Write only if the object still has this generation. ABSENT: only if there is no object
                yet. None: always.

        Returns:
            The generation of the new object. A write whose response was lost is recognized when it is retried.

        Raises:
            GenerationChanged: The object has another generation than `if_generation_match`.
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
                existing = self._remote.get_blob(path, timeout=TIMEOUT_SECONDS, retry=self._retry)
                if existing is not None and (existing.metadata or {}).get(_WRITE_ID) == write_id:
                    return _generation(existing)
                state = "does not exist" if existing is None else f"has generation {existing.generation}"
                raise GenerationChanged(
                    f"gs://{self.name}/{path} {state}, not {if_generation_match}: another process has written it; "
                    "read it again"
                ) from error
        return _generation(blob)

    def update(
        self,
        path: str,
        change: Callable[[bytes | None], bytes | None],
        content_type: str = "application/octet-stream",
    ) -> bool:
        """Replace an object by the result of `change`, and repeat this on newer content if another process writes.

        Args:
            path: The object's name in the bucket.
            change: Gets the content, or None when there is no such object. Returns the new content, or None to leave
                the object as it is. It may be called several times.
            content_type: The content's MIME type.

        Returns:
            Whether the object was written.

        Raises:
            GenerationChanged: Another process has written the object during each of UPDATE_TRIES tries.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        def once() -> bool:
            content, generation = self.read(path) or (None, ABSENT)
            changed = change(content)
            if changed is not None:
                self.write(path, changed, content_type, if_generation_match=generation)
            return changed is not None

        conflict = retry_if_exception_type(GenerationChanged)
        return Retrying(retry=conflict, stop=stop_after_attempt(UPDATE_TRIES), reraise=True)(once)

    def list(self, prefix: str = "") -> list[Entry]:
        """The objects whose path begins with `prefix`, sorted by path."""
        with self._explaining():
            blobs = self._remote.client.list_blobs(
                self._remote, prefix=prefix, timeout=TIMEOUT_SECONDS, retry=self._retry
            )
            return sorted((_entry(blob) for blob in blobs), key=lambda entry: entry.path)

    def delete(self, path: str, *, if_generation_match: int | None = None) -> None:
        """Remove the object; no error when it does not exist.

        Args:
            path: The object's name in the bucket.
            if_generation_match: Remove the object only if it still has this generation. None: always.

        Raises:
            GenerationChanged: The object has another generation than `if_generation_match`.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        options: dict[str, Any] = {"timeout": TIMEOUT_SECONDS, "retry": self._retry}
        with self._explaining():
            try:
                if if_generation_match is not None:
                    # Checked first, because the local stack's store ignores the condition when it removes an object.
                    existing = self._remote.get_blob(path, **options)
                    if existing is not None and _generation(existing) != if_generation_match:
                        raise PreconditionFailed(f"generation {existing.generation}")
                self._remote.delete_blob(path, if_generation_match=if_generation_match, **options)
            except NotFound:
                self._require_bucket()
            except PreconditionFailed as error:
                raise GenerationChanged(
                    f"gs://{self.name}/{path} has no longer generation {if_generation_match}: another process has "
                    "written it; read it again"
                ) from error

    def _require_bucket(self) -> None:
        """Raise NotFound when the bucket is missing. A listing needs no permission on the bucket itself."""
        next(iter(self._remote.client.list_blobs(self._remote, max_results=1, timeout=TIMEOUT_SECONDS)), None)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Replace the client's errors, which show only a URL, by errors that name the bucket and the remedy."""
        from google.api_core.exceptions import Forbidden, NotFound, Unauthorized

        try:
            yield
        except NotFound as error:
            raise BucketError(
                f"bucket {self.name} does not exist; create it, or name another in the Airflow Variable that holds its "
                f"name (artifacts: {VARIABLE})"
            ) from error
        except (Forbidden, Unauthorized) as error:
            raise BucketError(
                f"bucket {self.name}: connection {self._conn_id} lacks permission ({error.message}); give its account "
                "the role Storage Object User on the bucket"
            ) from error


def _generation(blob: Blob) -> int:
    if blob.generation is None:
        raise BucketError(f"the store returns no generation of {blob.name}, so replacing the object would not be safe")
    return int(blob.generation)


def _entry(blob: Blob) -> Entry:
    return Entry(blob.name or "", _generation(blob), int(blob.size or 0), blob.updated)  # type: ignore[arg-type]
