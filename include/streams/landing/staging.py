"""Staging files: the good rows of a run's units, in the object store until the run is finished."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from include.streams.lake.datafiles import filesystem, require_whole
from include.streams.landing.consumers import LandingConsumer

if TYPE_CHECKING:
    from pathlib import Path

    from pyiceberg.io import FileIO

log = logging.getLogger(__name__)

PREFIX = "staging"


def folder(consumer: LandingConsumer, claim_id: int, location: str) -> str:
    """The address of the folder of a claim's staging files, in the bucket of the table at `location`.

    Args:
        consumer: The landing consumer.
        claim_id: The claim.
        location: The address of a table in the bucket.
    """
    bucket = urlsplit(location)
    return f"{bucket.scheme}://{bucket.netloc}/{PREFIX}/{consumer.name}/{int(claim_id)}"


def upload(io: FileIO, local: Path, address: str) -> None:
    """Upload a file. It appears under its name only when it is complete.

    Args:
        io: The file IO of the table.
        local: The local file.
        address: The address of the staging file.

    Raises:
        OSError: The store has not kept the file as it was uploaded.
    """
    store = filesystem(io, address)
    store.put_file(str(local), address)
    require_whole(store, {address: local.stat().st_size})


def remove(io: FileIO, address: str, before: datetime | None = None) -> int:
    """Remove a folder of staging files. If the store is unavailable, files stay and maintenance removes them later.

    Args:
        io: The file IO of the table.
        address: The address of the folder.
        before: Only files that were written before this time; None: all.

    Returns:
        How many files were removed.
    """
    store = filesystem(io, address)
    removed = 0
    try:
        for path in store.find(address):
            # Another process may remove the same files at the same time.
            with suppress(FileNotFoundError):
                if before is None or store.modified(path) < before:
                    store.rm_file(path)
                    removed += 1
    except Exception:
        log.warning("staging files stay: %s", address, exc_info=True)
    return removed


def remove_finished(consumers: Iterable[LandingConsumer], older_than: timedelta = timedelta(days=1)) -> int:
    """Remove staging files of closed claims: a run leaves them if it is killed at its end.

    The files of an open claim stay, however old they are. If a run is cleared long after its claim was closed, the
    files that it has just written stay too.

    Args:
        consumers: The landing consumers.
        older_than: The least age of the removed files, and of the end of their claims. Must be longer than a run
            (`dagrun_timeout`).

    Returns:
        The number of claims whose files were removed.
    """
    from pyiceberg.exceptions import NoSuchTableError
    from sqlalchemy import func, select

    from include.streams.compat.connections import lacks_connection
    from include.streams.lake.catalog import CONN_ID
    from include.streams.landing.tables import load_landing_table
    from include.streams.operations.database import begin
    from include.streams.operations.tables import claims

    removed = 0
    if lacks_connection(CONN_ID):
        return removed
    for consumer in consumers:
        try:
            table = load_landing_table(consumer.topic)
        except NoSuchTableError:
            # Nothing has landed yet.
            continue
        above = folder(consumer, 0, table.location()).rpartition("/")[0]
        store = filesystem(table.io, above)
        claim_ids = {int(name) for path in store.find(above) if (name := path.split("/")[-2]).isdigit()}
        own_claims = select(claims.c.id).where(claims.c.consumer == consumer.name)
        recent = claims.c.closed_at.is_(None) | (claims.c.closed_at > func.now() - older_than)
        with begin() as connection:
            kept = set(connection.execute(own_claims.where(recent)).scalars())
        before = datetime.now(UTC) - older_than
        for claim_id in sorted(claim_ids - kept):
            removed += remove(table.io, folder(consumer, claim_id, table.location()), before) > 0
    return removed
