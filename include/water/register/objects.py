"""List the register's files in the bucket, and move them out of the prefix.

An object is identified by its path and generation. If somebody replaces a file while it is read, the new generation is
another file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from include.streams.lake.buckets import Bucket, Entry, bucket
from include.water.register.layout import INCOMING

log = logging.getLogger(__name__)

# The most mapped tasks of a run; the next run, which starts at once, imports the rest.
MAX_FILES = 100
# Objects appear whole. But some tools create an empty object first, or upload under another name and rename. Such
# objects are left alone for this long; after that they are treated like any other file.
SETTLING = timedelta(seconds=60)
_UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart")
# The client takes pairs; its annotations allow only int.
_TIMEOUT_SECONDS: Any = (10.0, 60.0)


class NotSettled(Exception):
    """All objects may still be in upload: check again later."""


def list_files(now: datetime | None = None) -> list[dict[str, Any]]:
    """The files to import, the oldest first.

    Directory markers are deleted, because the sensor would fire on them forever.

    Args:
        now: The clock; by default the current time.

    Returns:
        `name`, `generation`, `size` (bytes) and `uploaded_at` of each file, at most MAX_FILES.

    Raises:
        NotSettled: There are only files that may still be in upload.
    """
    objects, now = bucket(), now or datetime.now(UTC)
    entries = objects.list(INCOMING)
    for marker in (entry for entry in entries if entry.path.endswith("/") and not entry.size):
        log.info("removed a directory marker: generation=%d", marker.generation)
        objects.delete(marker.path)
    files = [entry for entry in entries if not (entry.path.endswith("/") and not entry.size)]
    settled = sorted(_settled(files, now), key=lambda entry: (entry.updated, entry.path))
    if files and not settled:
        raise NotSettled(f"{len(files)} objects below {INCOMING} are empty or have a temporary name, and are new")
    log.info("files: found=%d to import now=%d", len(files), min(len(settled), MAX_FILES))
    return [
        {"name": e.path, "generation": e.generation, "size": e.size, "uploaded_at": e.updated.isoformat()}
        for e in settled[:MAX_FILES]
    ]


def _settled(files: Iterable[Entry], now: datetime) -> Iterable[Entry]:
    for entry in files:
        unfinished = not entry.size or entry.path.lower().endswith(_UNFINISHED)
        if not unfinished or now - entry.updated > SETTLING:
            yield entry


def move(objects: Bucket, path: str, generation: int, to: str) -> bool:
    """Move exactly this generation of an object. It is safe to repeat.

    If the process is killed between the copy and the deletion, the next call finds the copy and deletes the original.
    On Google's store, both steps have the generation as a condition, so an object that was replaced in the meantime
    stays. Emulators may ignore conditions on a deletion: there, an object is lost if it is replaced in the milliseconds
    between the last check and the deletion.

    Args:
        objects: The bucket.
        path: The object's path.
        generation: The object's generation.
        to: The new path.

    Returns:
        False when the object no longer exists.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    remote = _remote(objects)
    source = remote.blob(path, generation=generation)
    try:
        remote.copy_blob(
            source,
            remote,
            to,
            source_generation=generation,
            if_source_generation_match=generation,
            # An existing copy was made by an earlier try.
            if_generation_match=0,
            timeout=_TIMEOUT_SECONDS,
        )
    except PreconditionFailed:
        if remote.get_blob(to, timeout=_TIMEOUT_SECONDS) is None:
            return False
    except NotFound:
        return remote.get_blob(to, timeout=_TIMEOUT_SECONDS) is not None
    now = remote.get_blob(path, timeout=_TIMEOUT_SECONDS)
    if now is None or int(now.generation or 0) != generation:
        return True
    try:
        remote.delete_blob(path, if_generation_match=generation, timeout=_TIMEOUT_SECONDS)
    except (NotFound, PreconditionFailed):
        log.info("replaced while it was moved; the new one stays: generation=%d", generation)
    return True


def _remote(objects: Bucket) -> Any:
    """The client's own bucket, for operations that `Bucket` does not have."""
    from airflow.providers.google.cloud.hooks.gcs import GCSHook

    from include.streams.lake.buckets import CONN_ID

    return GCSHook(gcp_conn_id=CONN_ID).get_conn().bucket(objects.name)
