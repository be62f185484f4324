"""Alarms about consumers of landing tables that are behind or whose claim stays open.

The sensor and the claim of a lane check the lane themselves. This check needs no run: a Dag that is paused or does not
import has none, and while a task of a failed run is retried for hours, `max_active_runs=1` allows no other.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
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
from include.streams.operations.database import begin
from include.streams.operations.each import do_each, shuffled

log = logging.getLogger(__name__)


def check_consumers(consumers: Iterable[LandingConsumer]) -> None:
    """Check every consumer, also when a check fails.

    Args:
        consumers: The declared consumers.

    Raises:
        CheckFailed: At least one consumer could not be checked; raised after all others were.
    """
    do_each(shuffled({f"consumer {each.name}": partial(check_consumer, each) for each in consumers}), CheckFailed)


def check_consumer(consumer: LandingConsumer) -> ConsumerStatus:
    """Open and close the consumer's alarms by the present state of the database and the landing table.

    It reads the table's list of manifests, and no file, message or offset of Kafka. What is in Kafka and has not landed
    is the connector's lag, which `watch_connectors` watches. So a deployment without Kafka Connect has no lag here.

    Args:
        consumer: The declared consumer.

    Returns:
        The consumer's state.

    Raises:
        Exception: What the databases, the catalog and the store raise.
    """
    with begin() as connection:
        oldest_claim = watch_claims(connection, consumer)
    standing = standing_of(consumer, oldest_claim, remembers=True)
    with begin() as connection:
        watch_lag(connection, consumer, standing.behind)
        watch_waiting(connection, consumer, standing)
    log.info(
        "checked: consumer=%s behind=%s oldest_unclaimed=%s oldest_open_claim=%s",
        consumer.name,
        dict(standing.behind),
        {topic: str(age) for topic, age in standing.waiting.items()},
        oldest_claim,
    )
    return standing


def standing_of(
    consumer: LandingConsumer, oldest_claim: timedelta | None = None, *, remembers: bool = False
) -> ConsumerStatus:
    """The consumer's state now; it opens no alarm.

    Args:
        consumer: The declared consumer.
        oldest_claim: The age of its oldest open claim, for the result.
        remembers: Whether the present end of the table is recorded, from which the age of what waits is known.

    Raises:
        Exception: What the databases, the catalog and the store raise.
    """
    # The table before the positions: a claim in between is not counted as lag.
    landed = _landed(consumer)
    starts: dict[Partition, int] = {}
    found: dict[Partition, PartitionOffsets] = {}
    with begin() as connection:
        known = positions_of(connection, consumer.name, [consumer.topic.name])
        for partition, offsets in landed.items():
            identity, claimed = known.get(partition, (offsets.topic_id, 0))
            if is_same_topic(identity, offsets.topic_id):
                starts[partition] = max(claimed, offsets.low)
                # Offsets that are claimed without a record may be beyond the last file.
                found[partition] = replace(offsets, end=max(offsets.end, starts[partition]))
        waiting = waited_at_least(connection, consumer, found, starts, remembers=remembers)
    behind = sum(offsets.end - starts[partition] for partition, offsets in found.items())
    return ConsumerStatus({consumer.topic.name: behind}, waiting, oldest_claim, is_whole=True)


def _landed(consumer: LandingConsumer) -> dict[Partition, PartitionOffsets]:
    """The offsets of each partition between the beginning of the landing table and the last one that has landed."""
    from airflow.sdk.exceptions import AirflowNotFoundException
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.landing.landed import Landed
    from include.streams.landing.tables import load_landing_table, start_offsets, topic_id

    try:
        table = load_landing_table(consumer.topic)
    except NoSuchTableError:
        return {}
    except AirflowNotFoundException:
        # A deployment without the lane. A task gets the same exception when Airflow's API server does not answer, so a
        # lane that has ever claimed is not taken for one that does not exist.
        if _has_claimed(consumer):
            raise
        log.info("no catalog is configured, and nothing was ever claimed: consumer=%s", consumer.name)
        return {}
    landed, begins = Landed(table), start_offsets(table)
    return {
        Partition(consumer.topic.name, number): PartitionOffsets(
            topic_id(table), begins.get(number, 0), landed.end(number)
        )
        for number in landed.partitions
    }


def _has_claimed(consumer: LandingConsumer) -> bool:
    with begin() as connection:
        return bool(positions_of(connection, consumer.name))
