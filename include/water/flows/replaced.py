"""Hours whose readings a run replaces in the clean table, recorded before the commit.

A cleared run may have fewer clean rows than before, for example because its contract became stricter. The flows of the
hours that lost rows must be recomputed. After the commit, the table no longer shows these hours, so they are recorded
before the commit, and kept as long as the claim.

Killed before the record: nothing was replaced. Killed between the record and the commit: the retry records the same
hours. Killed after the commit: the hours are recorded. A first try replaces no rows and records nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from include.streams import LandingConsumer, begin
from include.water.tables import replaced_hours

if TYPE_CHECKING:
    from include.streams.landing.xcom import RunSummary, ValidatedUnit

log = logging.getLogger(__name__)


def commit(consumer: LandingConsumer, results: Iterable[ValidatedUnit], run_id: str) -> RunSummary:
    """Replace the run's rows in the clean table.

    Args:
        consumer: The landing consumer.
        results: The results of the run's validation tasks.
        run_id: The Dag run.

    Returns:
        The run's summary.
    """
    from include.streams.landing import tasks

    record_replaced_hours(consumer, run_id)
    return tasks.commit(consumer, results, run_id)


def record_replaced_hours(consumer: LandingConsumer, run_id: str) -> None:
    """Record the hours of the readings that the run has in the clean table now; hours on record stay."""
    from include.streams.lake.engine import connect
    from include.streams.landing.clean import as_parts, ensure_clean_table
    from include.streams.landing.positions import claim_of
    from include.streams.validators.coordinates import files_of
    from include.water.flows.touched import hours_of

    claim_id, ranges = claim_of(consumer, run_id)
    readings = ensure_clean_table(consumer.topic)
    # With their logs: a recreated topic had other readings at the same offsets.
    parts = as_parts(ranges)
    if not files_of(readings, parts):
        # A first try has nothing in the table.
        return
    with connect() as connection:
        hours = hours_of(connection, readings, parts)
    if hours:
        rows = [{"claim_id": claim_id, "hour": hour} for hour in hours]
        with begin() as connection:
            connection.execute(upsert(replaced_hours).on_conflict_do_nothing(), rows)
        log.info("readings will be replaced: claim=%d hours=%d first_hour=%s", claim_id, len(hours), hours[0])


def hours_replaced_by(claim_id: int) -> list[datetime]:
    """The hours (UTC, sorted) whose readings earlier tries of this claim have replaced."""
    of_claim = select(replaced_hours.c.hour).where(replaced_hours.c.claim_id == claim_id)
    with begin() as connection:
        # The database answers in its session's time zone, but the tables' days are UTC days.
        return [hour.astimezone(UTC) for hour in connection.execute(of_claim.order_by(replaced_hours.c.hour)).scalars()]
