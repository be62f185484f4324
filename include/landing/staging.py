"""Staging files: the good rows of a run's units, on the object store until the run is finished."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from include.lake.writing import filesystem
from include.landing.consumers import LandingConsumer

if TYPE_CHECKING:
    from pathlib import Path

    from pyiceberg.io import FileIO

log = logging.getLogger(__name__)

PREFIX = "staging"


def folder(consumer: LandingConsumer, claim_id: int, location: str) -> str:
    """The address of the staging files of a claim, in the bucket of the table at `location`."""
    bucket = urlsplit(location)
    return f"{bucket.scheme}://{bucket.netloc}/{PREFIX}/{consumer.name}/{int(claim_id)}"


def upload(io: FileIO, local: Path, address: str) -> None:
    """Put a file there whole: it appears under its name when it is complete, and replaces what an earlier try left."""
    filesystem(io, address).put_file(str(local), address)


def remove(io: FileIO, address: str) -> None:
    """Remove a folder of staging files. What stays because the store is away, the maintenance removes."""
    store = filesystem(io, address)
    try:
        store.invalidate_cache()
        for path in store.find(address):
            store.rm_file(path)
    except FileNotFoundError:
        pass
    except Exception:
        log.warning("staging files stay: %s", address, exc_info=True)
