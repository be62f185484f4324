"""Alarms about consumers of landing tables that are behind or whose claim stays open.

The sensor and the claim of a lane check the lane too, but only in a run. A Dag that is paused or does not import has no
run, and while a task of a failed run is retried for hours, `max_active_runs=1` allows no other run. So the Dag
`maintain` calls this check.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from include.streams.kafka.claims import positions_of
from include.streams.kafka.offsets import Partition, PartitionOffsets, is_same_topic
from include.streams.kafka.watch import (
    CheckFailed,
    ConsumerStatus,
    waited_at_least,
    watch_claims,
    watch_lag,
    watch_waiting,
)
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.tables import row_count
from include.streams.operations import samples
from include.streams.operations.database import begin
from include.streams.operations.each import do_each, shuffled

log = logging.getLogger(__name__)


def check_consumers(consumers: Iterable[LandingConsumer]) -> None:
    """Check every consumer, even if the check of another consumer fails.

    Args:
        consumers: The declared consumers.

    Raises:
        CheckFailed: At least one consumer could not be checked; raised after all others were.
    """
    do_each(shuffled({f"consumer {each.name}": partial(check_consumer, each) for each in consumers}), CheckFailed)


def check_consumer(consumer: LandingConsumer) -> ConsumerStatus:
    """Open and close the consumer's alarms, from the present state of the database and the landing table.

    Only the table's list of manifests is read: no data file, and nothing from Kafka. Records in Kafka that have not
    landed are the connector's lag, which `watch_connectors` watches.

    Args:
        consumer: The declared consumer.

    Returns:
        The consumer's state.

    Raises:
        Exception: A database, the catalog or the store is unavailable.
    """
    with begin() as connection:
        oldest_claim = watch_claims(connection, consumer)
    status = fetch_status(consumer, oldest_claim, remembers=True)
    _sample_table(consumer)
    with begin() as connection:
        watch_lag(connection, consumer, status.behind)
        watch_waiting(connection, consumer, status)
        samples.record_lag(connection, consumer.name, status.behind, status.waiting)
    log.info(
        "checked: consumer=%s behind=%s oldest_unclaimed=%s oldest_open_claim=%s",
        consumer.name,
        dict(status.behind),
        {topic: str(age) for topic, age in status.waiting.items()},
        oldest_claim,
    )
    return status


def _sample_table(consumer: LandingConsumer) -> None:
    """Record rows and last commit of the landing table, for the Streams page."""
    from airflow.sdk.exceptions import AirflowNotFoundException
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.landing.tables import load_landing_table, topic_id

    # `fetch_status` has reported a missing catalog where that is an error.
    with suppress(AirflowNotFoundException, NoSuchTableError):
        table = load_landing_table(consumer.topic)
        snapshot = table.current_snapshot()
        committed_at = snapshot and datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)
        rows = row_count(snapshot)
        with begin() as connection:
            samples.record_landing(
                connection, consumer.topic.name, topic_id=topic_id(table), table_rows=rows, committed_at=committed_at
            )


def fetch_status(
    consumer: LandingConsumer, oldest_claim: timedelta | None = None, *, remembers: bool = False
) -> ConsumerStatus:
    """The consumer's state now; it opens no alarm.

    Args:
        consumer: The declared consumer.
        oldest_claim: The age of its oldest open claim, for the result.
        remembers: Whether the present end of the table is recorded. Later checks compute the waiting time from it.

    Raises:
        Exception: A database, the catalog or the store is unavailable.
    """
    # The table is read before the positions, so that a claim in between is not counted as lag.
    landed = _landed(consumer)
    starts: dict[Partition, int] = {}
    unclaimed: dict[Partition, PartitionOffsets] = {}
    with begin() as connection:
        known = positions_of(connection, consumer.name, [consumer.topic.name])
        for partition, offsets in landed.items():
            identity, claimed = known.get(partition, (offsets.topic_id, 0))
            if is_same_topic(identity, offsets.topic_id):
                starts[partition] = max(claimed, offsets.low)
                # Claimed offsets that hold no record may be beyond the last file.
                unclaimed[partition] = replace(offsets, end=max(offsets.end, starts[partition]))
        waiting = waited_at_least(connection, consumer, unclaimed, starts, remembers=remembers)
    behind = sum(offsets.end - starts[partition] for partition, offsets in unclaimed.items())
    return ConsumerStatus({consumer.topic.name: behind}, waiting, oldest_claim, is_whole=True)


def _landed(consumer: LandingConsumer) -> dict[Partition, PartitionOffsets]:
    """The offsets of each partition from the beginning of the landing table to the highest landed offset."""
    from airflow.sdk.exceptions import AirflowNotFoundException
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.landing.index import LandingIndex
    from include.streams.landing.tables import load_landing_table, start_offsets, topic_id

    try:
        table = load_landing_table(consumer.topic)
    except NoSuchTableError:
        return {}
    except AirflowNotFoundException:
        # The deployment does not use the lane, or Airflow's API server does not answer: a task gets the same exception
        # for both. A consumer that has claimed before shows that the lane is in use.
        if _has_claimed(consumer):
            raise
        log.info("no catalog is configured, and nothing was ever claimed: consumer=%s", consumer.name)
        return {}
    landed, begins = LandingIndex(table), start_offsets(table)
    return {
        Partition(consumer.topic.name, number): PartitionOffsets(
            topic_id(table), begins.get(number, 0), landed.end(number)
        )
        for number in landed.partitions
    }


def _has_claimed(consumer: LandingConsumer) -> bool:
    with begin() as connection:
        return bool(positions_of(connection, consumer.name))
