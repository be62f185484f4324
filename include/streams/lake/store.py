"""What every object store offers: buckets with conditional writes, and the settings of PyIceberg and of the sink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

# The bucket for derived data: models, reports, usage. Its name is an Airflow Variable, because bucket names are
# globally unique: a deployment cannot use the default name.
VARIABLE = "artifacts_bucket"
DEFAULT_BUCKET = "artifacts"
# A store that is unavailable for longer fails the task: Airflow's retries wait without holding a worker.
RETRY_SECONDS = 120.0
# Tries to update an object that other processes write too. Two processes conflict once; this many conflicts are a
# fault.
UPDATE_TRIES = 5
# The generation of an object that does not exist. With `if_generation_match`: "write only if there is no object yet".
ABSENT = 0
# In the metadata of each object: recognizes a write whose response was lost.
WRITE_ID = "write-id"


class BucketError(Exception):
    """The bucket cannot be used: it does not exist, or the connection has no permission."""


class UnsafeStore(BucketError):
    """The store ignores the conditions of a write: concurrent writers would silently overwrite each other's objects."""


class StoreUnavailable(Exception):
    """The store stays unavailable, or fails; a later try may succeed."""


class GenerationChanged(Exception):
    """The object has changed since the writer read it: another process has replaced or created it."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing. `size` is in bytes."""

    path: str
    generation: int
    size: int
    updated: datetime


class Bucket(ABC):
    """One bucket. Every call retries for about RETRY_SECONDS while the store is unavailable.

    Each write of an object gives it another generation, a number below 2**63. Of two writes in different seconds, the
    later one has the higher number.

    Attributes:
        name: The bucket's name.
        scheme: The scheme of its addresses.

    Raises:
        BucketError: The bucket does not exist, or the connection has no permission.
        StoreUnavailable: The store stays unavailable.
    """

    scheme: str

    def __init__(self, name: str, conn_id: str) -> None:
        self.name = name
        self._conn_id = conn_id

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, int] | None:
        """Read an object.

        Args:
            path: The object's name in the bucket.

        Returns:
            (content, generation), which belong together; None when there is no such object.
        """

    @abstractmethod
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
            UnsafeStore: The store ignores conditions.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> list[Entry]:
        """The objects whose path begins with `prefix`, sorted by path."""

    @abstractmethod
    def delete(self, path: str, *, if_generation_match: int | None = None) -> None:
        """Remove the object; no error when it does not exist.

        Some stores ignore the condition of a deletion. Then an object is lost if it is replaced in the milliseconds
        between a check, which comes first, and the deletion.

        Args:
            path: The object's name in the bucket.
            if_generation_match: Remove the object only if it still has this generation. None: always.

        Raises:
            GenerationChanged: The object has another generation than `if_generation_match`.
        """

    @abstractmethod
    def _copy(self, path: str, generation: int, to: str) -> bool:
        """Copy exactly this generation, unless there is an object at `to`. Returns False if the generation is gone."""

    @abstractmethod
    def _has(self, path: str) -> bool:
        """Whether there is an object."""

    @abstractmethod
    def prove_conditions(self) -> None:
        """Check with small objects of an own name that the store refuses a write whose condition does not hold.

        Raises:
            UnsafeStore: The store ignores conditions.
        """

    def address(self, path: str) -> str:
        """The address of an object, such as s3://bucket/path."""
        return f"{self.scheme}://{self.name}/{path}"

    def move(self, path: str, generation: int, to: str) -> bool:
        """Move exactly this generation of an object. It is safe to repeat.

        If the process is killed between the copy and the deletion, the next call finds the copy and deletes the
        original. An object that was replaced in the meantime stays (see `delete`).

        Args:
            path: The object's path.
            generation: The object's generation.
            to: The new path, which only this generation of this object may have.

        Returns:
            False when the object no longer exists.
        """
        if not self._has(to) and not self._copy(path, generation, to):
            return False
        # A newer object stays.
        with suppress(GenerationChanged):
            self.delete(path, if_generation_match=generation)
        return True

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

    def _changed(self, path: str, state: str, expected: int) -> GenerationChanged:
        return GenerationChanged(
            f"{self.address(path)} {state}, not {expected}: another process has written it; read it again"
        )

    def _missing(self) -> BucketError:
        return BucketError(
            f"bucket {self.name} does not exist; create it, or name another in the Airflow Variable that holds its "
            f"name (artifacts: {VARIABLE})"
        )

    def _denied(self, reason: str, remedy: str) -> BucketError:
        return BucketError(f"bucket {self.name}: connection {self._conn_id} lacks permission ({reason}); {remedy}")

    def _unsafe(self) -> UnsafeStore:
        return UnsafeStore(
            f"bucket {self.name}: the store ignores the conditions of a write (If-None-Match, If-Match), so concurrent "
            "runs would overwrite each other's results; use a store, or a version of it, that honors them"
        )


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
