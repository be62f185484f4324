"""Upkeep of the lane: landing tables with the care that their sink and their gaps need, all others, and results."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from include.contracts import Topic
from include.kafka.connection import CONN_ID
from include.landing.consumers import LandingConsumer

if TYPE_CHECKING:
    from pyiceberg.table.snapshots import Snapshot

    from include.lake.buckets import Entry

log = logging.getLogger(__name__)

# The sink finds how far it has come in the summary of its last commit.
SINK_SUMMARY = "kafka.connect."
# Of a landing table. For a writer whose commit is under way, and for a person who looks back: not for readers.
SNAPSHOTS_KEPT = timedelta(minutes=30)


def keep_table(name: str, snapshots_kept: timedelta) -> dict[str, int] | None:
    """Expire snapshots of a table, bundle its small files, remove what no snapshot knows; None when there is none."""
    from pyiceberg.exceptions import NoSuchTableError

    from include.lake import maintenance
    from include.lake.catalog import load_catalog

    try:
        table = load_catalog().load_table(name)
    except NoSuchTableError:
        return None
    found = {
        "bundled": maintenance.bundle_small_files(table),
        "expired": maintenance.expire_snapshots(table, snapshots_kept),
        "removed": maintenance.remove_unreferenced(table),
    }
    log.info("table %s: %s", name, found)
    return found


def expire_landing_snapshots(topics: Iterable[Topic], kept: timedelta = SNAPSHOTS_KEPT) -> dict[str, int]:
    """Forget the snapshots of landing tables that are older than `kept`.

    A sink commits every few seconds, and whoever reads or commits loads the list of all snapshots. No reader needs an
    old one: a run looks its files up by its offsets, and a file is removed a day after nothing refers to it. What was
    recorded of manifests that the table no longer has is removed too.

    Args:
        topics: Those that are not landed, or have no table yet, are passed over.
        kept: Age up to which snapshots stay; the newest stays, and the sink's last with all after it.

    Returns:
        {table: how many snapshots were forgotten}.

    Raises:
        ExpiryFailed: Of some tables; the others are done.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.landing.tables import raw_table

    found: dict[str, int] = {}
    failures: list[str] = []
    for topic in topics:
        if not topic.landed:
            continue
        try:
            found[raw_table(topic)] = _expire_landing_snapshots(topic, kept)
        except NoSuchTableError:
            continue
        except Exception as error:
            log.exception("snapshots stay: table=%s", raw_table(topic))
            failures.append(f"table {raw_table(topic)}: {error}")
    log.info("expired snapshots: %s", found)
    if failures:
        raise ExpiryFailed("; ".join(failures))
    return found


class ExpiryFailed(Exception):
    """The snapshots of some tables could not be forgotten: the next run does it."""


def _expire_landing_snapshots(topic: Topic, kept: timedelta) -> int:
    from include.lake import maintenance
    from include.landing import manifests
    from include.landing.tables import PROPERTIES, load_landing_table

    table = load_landing_table(topic)
    expired = maintenance.expire_snapshots(table, kept, _is_of_sink)
    # Afterwards, when there is less to write.
    maintenance.set_properties(table.refresh(), PROPERTIES)
    snapshot = table.current_snapshot()
    paths = [manifest.manifest_path for manifest in snapshot.manifests(table.io)] if snapshot else []
    manifests.forget_others(str(table.metadata.table_uuid), paths)
    return expired


def keep_landing_table(
    topic: Topic, lanes: Iterable[LandingConsumer] = (), *, seconds: float = math.inf, conn_id: str = CONN_ID
) -> dict[str, Any] | None:
    """Bundle the small files of a topic's landing table, and remove what no snapshot knows.

    Bundled are files whose offsets every lane of the topic has claimed, in claims that are closed. While offsets are
    missing nothing is removed: files that no snapshot knows may be the missing rows. Files that the control topic names
    since the sink's coordinator has committed last are still to be committed, however old they are: they stay.

    Args:
        topic: The landed topic.
        lanes: All consumers of landing tables; those of other topics are passed over.
        seconds: After about this long, bundling leaves the rest for the next time.
        conn_id: The Airflow connection of Kafka.

    Returns:
        {"bundled": files replaced, "removed": files deleted, or None when none may be}; None when there is no table.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.lake import maintenance
    from include.landing import bundling
    from include.landing.control import named_files
    from include.landing.tables import load_landing_table, raw_table
    from include.landing.verification import verify

    try:
        table = load_landing_table(topic)
    except NoSuchTableError:
        return None
    found: dict[str, Any] = {"bundled": bundling.bundle(table, topic, lanes, seconds=seconds)}
    if missing := verify(topic, conn_id=conn_id).missing:
        log.warning("table %s: offsets are missing, nothing is removed: %d gaps", raw_table(topic), len(missing))
        return {**found, "removed": None}
    # Before the snapshots are read: what the coordinator commits in between is named here, or known there.
    spared = named_files(topic, conn_id)
    if spared is None:
        log.warning("table %s: how far its coordinator has come is not known, nothing is removed", raw_table(topic))
        return {**found, "removed": None}
    return {**found, "removed": maintenance.remove_unreferenced(table, spared=spared)}


def remove_results(consumers: Iterable[LandingConsumer], older_than: timedelta, *, seconds: float) -> int:
    """Remove what checks of runs have left, when it is old and the run's claim is not on record any more.

    Returns of how many runs; for about this long, the rest is the next time's. A run whose claim is there may be
    cleared, and what people accepted of it must be known then, however old it is. Killed in between: what is left of a
    run is found the next time; what people accepted goes last.
    """
    from include.lake.buckets import bucket
    from include.validators.results import ACCEPTANCE, FOLDER

    until = time.monotonic() + seconds
    before = datetime.now(UTC) - older_than
    objects, removed = bucket(), 0
    for consumer in consumers:
        runs: dict[int, list[Entry]] = {}
        for entry in objects.list(f"{FOLDER}/{consumer.name}/"):
            # Beside the runs' folders lie the statistics of the last ones.
            if (key := entry.path.split("/")[2]).isdigit():
                runs.setdefault(int(key), []).append(entry)
        # After the listing: of a claim that is made in between, nothing is listed.
        on_record = _claims_of(consumer)
        for claim_id, entries in sorted(runs.items()):
            if time.monotonic() > until:
                break
            if claim_id not in on_record and max(entry.updated for entry in entries) < before:
                for entry in sorted(entries, key=lambda entry: entry.path.endswith(ACCEPTANCE)):
                    objects.delete(entry.path)
                removed += 1
    log.info("removed results: runs=%d older_than_days=%d", removed, older_than.days)
    return removed


def _claims_of(consumer: LandingConsumer) -> set[int]:
    from sqlalchemy import select

    from include.operations.database import begin
    from include.operations.tables import claims

    with begin() as connection:
        return set(connection.execute(select(claims.c.id).where(claims.c.consumer == consumer.name)).scalars())


def _is_of_sink(snapshot: Snapshot) -> bool:
    summary = snapshot.summary
    return summary is not None and any(name.startswith(SINK_SUMMARY) for name in summary.additional_properties)
