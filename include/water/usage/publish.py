"""Customers' usage: computed from the flows; changed days and objects are written.

First one commit writes the table's days, and records their hashes in the table's properties. Then the objects are
written in batches, and each batch is recorded in the manifest. If the process is killed at any step, the retry reads
both records and does the rest. An object that was written but not recorded is found to be correct. A second run for the
same flows writes nothing.

A late run that was believed dead may have read older flows and an older register than the run that took over. Each
publication has a number, higher than all earlier numbers (`Manifest.begin`), in every object and in the table's
properties. The late run finds a higher number, or finds that the manifest has changed, and fails. If it has written an
object at that moment, the next publication writes the object again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from include.water import clock, throttle
from include.water.flows.definition import TIME_ZONE
from include.water.flows.tables import METER_HOURS
from include.water.local_days import midnight
from include.water.usage.compute import Usage, compute, last_days
from include.water.usage.customers import Customer, assign, read_register
from include.water.usage.documents import documents
from include.water.usage.manifest import Manifest, load
from include.water.usage.objects import write_objects

if TYPE_CHECKING:
    import pyarrow
    from pyiceberg.table import Table, Transaction

log = logging.getLogger(__name__)

# The days that every run recomputes, so that late readings are included: somewhat more than the app shows.
WINDOW_DAYS = 35
# Extra days before the window: long enough for a continuous flow (24 hours), also with a day of 23 hours.
MARGIN_DAYS = 2
# How often the objects are updated; the flows change every minute.
MIN_INTERVAL = timedelta(minutes=15)
# The table property with {day: hash of its rows}, for the days of the last run that changed the table.
CONTENTS = "water.usage.contents"
# The table property with the number of the last publication that compared the days.
PUBLICATION = "water.usage.publication"


class PublishedMeanwhile(Exception):
    """Another run has published since this run began. A retry starts again from the beginning."""


def next_turn(asked_at: datetime, now: datetime | None = None) -> datetime | None:
    """When this run may publish.

    Args:
        asked_at: When the run was requested.
        now: The clock; by default the current time.

    Returns:
        The time; None when usage was published after the request.
    """
    from include.streams.lake.buckets import bucket

    return throttle.next_publish_time(load(bucket()).published_at, asked_at, MIN_INTERVAL, now or datetime.now(UTC))


def publish_usage(window_days: int = WINDOW_DAYS, now: datetime | None = None) -> dict[str, Any]:
    """Publish changed days and objects. Neither the counts nor the log contain anything about a single customer.

    Args:
        window_days: How many days up to today are recomputed.
        now: The clock; by default the current time.

    Returns:
        Counts for the run's XCom.

    Raises:
        PublishedMeanwhile: Another run has changed the table's days.
        NewerObject: Another run has published newer usage of a customer.
        GenerationChanged: Another run has saved the manifest.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams import begin
    from include.streams.lake.buckets import bucket
    from include.streams.lake.catalog import load_catalog
    from include.water.usage.tables import ensure_customer_days

    started = now or datetime.now(UTC)
    today = started.astimezone(TIME_ZONE).date()
    # Both are read before the register and the flows: a run that commits after this may have read newer ones.
    remote = bucket()
    manifest = load(remote)
    days_table = ensure_customer_days(load_catalog())
    with begin() as connection:
        register = read_register(connection)
    if not register:
        return _nothing("the register has no customers: import_site_register fills it")
    try:
        table = load_catalog().load_table(METER_HOURS)
    except NoSuchTableError:
        return _nothing("no hourly flows have been computed yet")
    snapshot = table.current_snapshot()
    if snapshot is None:
        return _nothing("no hourly flows have been computed yet")
    customers, tenures = assign(register, manifest.tenures, today)
    source = _source(snapshot.snapshot_id, customers, today, window_days)
    if manifest.source == source:
        return _nothing("flows and register are those of the last publication")
    manifest.begin(remote, started)
    manifest.tenures = tenures
    days = last_days(today, window_days)
    usage = _compute(table, customers, days, clock.horizon(now))
    changed = write_days(days_table, usage.days, manifest, days)
    written, removed = write_objects(remote, manifest, documents(usage.days.to_pylist(), usage.flows.to_pylist()))
    manifest.source, manifest.published_at = source, started
    manifest.save(remote)
    result = {"customers": len(customers), "days_written": len(changed), "written": written, "removed": removed}
    log.info("usage published: %s", result)
    return result


def write_days(table: Table, days: pyarrow.Table, manifest: Manifest, window: list[date]) -> list[date]:
    """Replace the days that differ from the published days, in one commit.

    Args:
        table: The table as it was before the flows and the register were read.
        days: The rows of all days.
        manifest: The manifest of this publication, which has begun; it is updated.
        window: The days that were computed.

    Returns:
        The days that were written.

    Raises:
        PublishedMeanwhile: Another run has changed the table's days, or a later publication has found them correct.
    """
    from include.streams.lake.writing import commit
    from include.water.usage.tables import CUSTOMER_DAYS

    record = table.properties.get(CONTENTS)
    before = json.loads(record or "{}")
    contents = {day.isoformat(): content for day, content in contents_by_day(days).items()}
    # A day without rows may have had rows, if its only customers have left since. If an older release has written the
    # table, the hashes in its properties do not belong to its rows: every day is written once.
    changed = [day for day in window if manifest.days or contents.get(day.isoformat()) != before.get(day.isoformat())]
    rows = _with_schema(days, table, changed)
    row_filter = f"day in ({', '.join(repr(day.isoformat()) for day in changed)})"

    def change(transaction: Transaction) -> None:
        is_late = int(table.properties.get(PUBLICATION, 0)) > manifest.publication
        if is_late or table.properties.get(CONTENTS) != record:
            raise PublishedMeanwhile(f"{CUSTOMER_DAYS}: another run has published since this run began")
        # Set also if no day has changed, so that a late run with older data fails.
        properties = {PUBLICATION: str(manifest.publication)}
        if changed:
            transaction.overwrite(rows, overwrite_filter=row_filter)
            properties[CONTENTS] = json.dumps(contents, separators=(",", ":"))
        transaction.set_properties(properties)

    commit(table, change)
    log.info("%s: %d days written", CUSTOMER_DAYS, len(changed))
    manifest.days = {}
    return changed


def contents_by_day(days: pyarrow.Table) -> dict[date, str]:
    """{day: a hash of its rows}."""
    digests: dict[date, Any] = {}
    for row in days.to_pylist():
        digests.setdefault(row["day"], hashlib.sha256()).update(repr(tuple(row.values())).encode())
    return {day: digest.hexdigest()[:24] for day, digest in digests.items()}


def _with_schema(days: pyarrow.Table, table: Table, changed: list[date]) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = table.schema().as_arrow()
    rows = days.filter(pc.field("day").isin(pa.array(changed, pa.date32())))
    return rows.select(schema.names).cast(schema)


def _compute(table: Table, customers: list[Customer], days: list[date], horizon: datetime) -> Usage:
    from include.streams.lake.engine import connect, scan

    # A continuous flow on the first day may have begun in the hours before.
    days = [*(days[0] - timedelta(days=n) for n in range(MARGIN_DAYS, 0, -1)), *days]
    since, until = midnight(days[0], TIME_ZONE), midnight(days[-1] + timedelta(days=1), TIME_ZONE)
    until = min(until, horizon)
    row_filter = f"hour >= '{since.isoformat()}' and hour < '{until.isoformat()}'"
    with connect() as connection:
        flows = scan(connection, table, row_filter=row_filter, columns=("meter_id", "hour", "litres"))
        return compute(connection, flows, customers, days, shown=days[MARGIN_DAYS:])


def _source(snapshot_id: int, customers: list[Customer], today: date, window_days: int) -> str:
    """A hash of all inputs of the publication."""
    return hashlib.sha256(repr((snapshot_id, customers, today, window_days)).encode()).hexdigest()[:24]


def _nothing(reason: str) -> dict[str, Any]:
    log.info("nothing to publish: %s", reason)
    return {"customers": 0, "days_written": 0, "written": 0, "removed": 0, "skipped": reason}
