"""List the register's files in the bucket.

An object is identified by its path and generation. If somebody replaces a file while it is read, the new generation is
another file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from include.streams.lake.buckets import Entry, bucket
from include.water.register.layout import INCOMING

log = logging.getLogger(__name__)

# The most mapped tasks of a run; the next run, which starts at once, imports the rest.
MAX_FILES = 100
# Objects appear whole. But some tools create an empty object first, or upload under another name and rename. Such
# objects are left alone for this long; after that they are treated like any other file.
SETTLING = timedelta(seconds=60)
_UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart")


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
