"""Google Cloud Storage, through the Airflow connection `google_cloud_default`.

The connection sets how to authenticate: with a key file, the machine's own account, impersonation, or anonymously
(`is_anonymous` in its extra). STORAGE_EMULATOR_HOST makes the client use another server than Google's.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from include.streams.compat.gcsfs_settings import disable_layout_calls
from include.streams.lake.store import (
    ABSENT,
    RETRY_SECONDS,
    WRITE_ID,
    Bucket,
    BucketError,
    Entry,
    GenerationChanged,
    Store,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from google.cloud.storage import Blob
    from google.cloud.storage import Bucket as CloudBucket

# To connect, and between two packets of an answer. The client takes pairs; its annotations allow only int.
TIMEOUT_SECONDS: Any = (10.0, 60.0)


class GoogleStore(Store):
    """Google Cloud Storage."""

    title = "Google Cloud Storage"
    schemes = ("gs", "gcs")
    default_conn_id = "google_cloud_default"

    def file_properties(self) -> dict[str, Any]:
        from airflow.sdk import BaseHook

        extra = BaseHook.get_connection(self.conn_id).extra_dejson
        properties: dict[str, Any] = {}
        if project := extra.get("project"):
            properties["gcs.project-id"] = project
        if extra.get("is_anonymous"):
            properties["gcs.oauth2.token"] = "anon"
        else:
            from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

            # Key files, impersonation and workload identity work as in every Google operator; gcsfs renews the
            # credentials.
            properties["gcs.oauth2.token"] = GoogleBaseHook(gcp_conn_id=self.conn_id).get_credentials()
        if host := _emulator():
            properties["gcs.service.host"] = host
            disable_layout_calls()
        return properties

    def sink_settings(self) -> dict[str, str]:
        """The sink's credentials are those of the machine on which Kafka Connect runs."""
        from airflow.sdk import BaseHook

        extra = BaseHook.get_connection(self.conn_id).extra_dejson
        settings = {
            "io-impl": "org.apache.iceberg.gcp.gcs.GCSFileIO",
            # Each open file has a buffer of this size, and each task has an open file for each partition. With the
            # default of 16 MB, the buffers would fill a small heap.
            "gcs.channel.write.chunk-size-bytes": str(2 * 1024 * 1024),
        }
        if project := extra.get("project"):
            settings["gcs.project-id"] = str(project)
        if host := _emulator():
            settings["gcs.service.host"] = host
        if extra.get("is_anonymous"):
            settings["gcs.no-auth"] = "true"
        return settings

    def bucket(self, name: str) -> Bucket:
        from airflow.providers.google.cloud.hooks.gcs import GCSHook

        return GoogleBucket(GCSHook(gcp_conn_id=self.conn_id).get_conn().bucket(name), self.conn_id)


def _emulator() -> str | None:
    """The address of STORAGE_EMULATOR_HOST, which Google's own clients also use, with a scheme."""
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    return f"http://{host}" if host and urlsplit(host).scheme not in ("http", "https") else host or None


class GoogleBucket(Bucket):
    """A bucket in Google Cloud Storage."""

    scheme = "gs"

    def __init__(self, remote: CloudBucket, conn_id: str) -> None:
        super().__init__(str(remote.name), conn_id)
        self._remote = remote
        # A deadline for the whole call, retries included; a single request has the shorter TIMEOUT_SECONDS.
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._options: dict[str, Any] = {
            "timeout": TIMEOUT_SECONDS,
            "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS),
        }

    def read(self, path: str) -> tuple[bytes, int] | None:
        from google.api_core.exceptions import NotFound

        blob = self._remote.blob(path)
        with self._explaining():
            try:
                data = blob.download_as_bytes(**self._options)
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
        from google.api_core.exceptions import PreconditionFailed

        blob = self._remote.blob(path)
        write_id = uuid.uuid4().hex
        blob.metadata = {WRITE_ID: write_id}
        with self._explaining():
            try:
                blob.upload_from_string(
                    data, content_type=content_type, if_generation_match=if_generation_match, **self._options
                )
            except PreconditionFailed as error:
                existing = self._remote.get_blob(path, **self._options)
                if existing is not None and (existing.metadata or {}).get(WRITE_ID) == write_id:
                    return _generation(existing)
                state = "does not exist" if existing is None else f"has generation {existing.generation}"
                raise self._changed(path, state, if_generation_match or ABSENT) from error
        return _generation(blob)

    def list(self, prefix: str = "") -> list[Entry]:
        with self._explaining():
            blobs = self._remote.client.list_blobs(self._remote, prefix=prefix, **self._options)
            return sorted((_entry(blob) for blob in blobs), key=lambda entry: entry.path)

    def delete(self, path: str, *, if_generation_match: int | None = None) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._explaining():
            try:
                if if_generation_match is not None:
                    # Checked first, because the local stack's store ignores the condition when it removes an object.
                    existing = self._remote.get_blob(path, **self._options)
                    if existing is not None and _generation(existing) != if_generation_match:
                        raise PreconditionFailed(f"generation {existing.generation}")
                self._remote.delete_blob(path, if_generation_match=if_generation_match, **self._options)
            except NotFound:
                self._require_bucket()
            except PreconditionFailed as error:
                raise self._changed(path, "has another generation", if_generation_match or ABSENT) from error

    def prove_conditions(self) -> None:
        path = f"probes/{uuid.uuid4().hex}"
        try:
            generation = self.write(path, b"first", if_generation_match=ABSENT)
            for wrong in (ABSENT, generation + 1):
                with suppress(GenerationChanged):
                    self.write(path, b"second", if_generation_match=wrong)
                    raise self._unsafe()
        finally:
            self.delete(path)

    def _copy(self, path: str, generation: int, to: str) -> bool:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._explaining():
            try:
                self._remote.copy_blob(
                    self._remote.blob(path, generation=generation),
                    self._remote,
                    to,
                    source_generation=generation,
                    if_source_generation_match=generation,
                    # Another process may have made the copy since `move` looked.
                    if_generation_match=ABSENT,
                    timeout=TIMEOUT_SECONDS,
                )
            except (NotFound, PreconditionFailed):
                self._require_bucket()
                return self._has(to)
        return True

    def _has(self, path: str) -> bool:
        with self._explaining():
            return self._remote.get_blob(path, **self._options) is not None

    def _require_bucket(self) -> None:
        """Raise NotFound when the bucket is missing. A listing needs no permission on the bucket itself."""
        next(iter(self._remote.client.list_blobs(self._remote, max_results=1, timeout=TIMEOUT_SECONDS)), None)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Replace the client's errors, which show only a URL, by errors that name the bucket and the remedy."""
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized

        try:
            yield
        except NotFound as error:
            raise self._missing() from error
        except (Forbidden, Unauthorized) as error:
            remedy = "give its account the role Storage Object User on the bucket"
            raise self._denied(error.message, remedy) from error
        except GoogleAPIError as error:
            raise StoreUnavailable(f"bucket {self.name}: {error}") from error


def _generation(blob: Blob) -> int:
    if blob.generation is None:
        raise BucketError(f"the store returns no generation of {blob.name}, so replacing the object would not be safe")
    return int(blob.generation)


def _entry(blob: Blob) -> Entry:
    return Entry(blob.name or "", _generation(blob), int(blob.size or 0), blob.updated)  # type: ignore[arg-type]
