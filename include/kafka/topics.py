"""Create the topics of a registry, with their dead-letter topics."""

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from include.contracts import Topic
from include.kafka.connection import CONN_ID, ClientErrors, admin_config, client_config
from include.kafka.offsets import REQUEST_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient, TopicMetadata

log = logging.getLogger(__name__)


def create_topics(topics: Iterable[Topic], conn_id: str = CONN_ID, *, replication_factor: int = -1) -> list[str]:
    """Make what is missing, add partitions that are missing; returns what changed, in words.

    Harmless to run again. Settings of a topic that exists are left as they are (somebody may have tuned them), and
    so are surplus partitions. -1 as replication factor is the broker's default. Raises KafkaException.
    """
    from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

    config = client_config(conn_id)
    errors = ClientErrors(conn_id, config)
    admin = AdminClient(admin_config(config))
    wanted: dict[str, NewTopic] = {}
    for topic in topics:
        for name, config in (
            (topic.name, topic.kafka_config()),
            (topic.dead_letter_name, topic.dead_letter_config()),
        ):
            partitions = topic.partitions if name == topic.name else 1
            wanted[name] = NewTopic(name, partitions, replication_factor, config=config)
    with errors.explaining(admin):
        there = admin.list_topics(timeout=REQUEST_TIMEOUT_SECONDS).topics
    changes: list[str] = []
    if missing := [new for name, new in wanted.items() if name not in there]:
        for name, future in admin.create_topics(missing, request_timeout=REQUEST_TIMEOUT_SECONDS).items():
            if _done(future, "TOPIC_ALREADY_EXISTS"):
                changes.append(f"topic {name}: created, {wanted[name].num_partitions} partitions")
    grown = [
        NewPartitions(name, new.num_partitions)
        for name, new in wanted.items()
        if name in there and len(there[name].partitions) < new.num_partitions
    ]
    if grown:
        for name, future in admin.create_partitions(grown, request_timeout=REQUEST_TIMEOUT_SECONDS).items():
            # Another process was quicker.
            if _done(future, "INVALID_PARTITIONS"):
                changes.append(f"topic {name}: grown to {wanted[name].num_partitions} partitions")
    _wait_for_leaders(admin, wanted)
    for change in changes:
        log.info("%s", change)
    return changes


def _done(future, harmless: str) -> bool:
    """False when somebody else has done it meanwhile."""
    from confluent_kafka import KafkaException

    try:
        future.result()
    except KafkaException as error:
        if error.args[0].name() == harmless:
            return False
        raise
    return True


def _wait_for_leaders(admin: "AdminClient", names: Iterable[str]) -> None:
    """A topic is usable a moment after it was made; whoever runs next should not have to know."""
    until = time.monotonic() + 30
    waiting = set(names)
    while waiting and time.monotonic() < until:
        topics = admin.list_topics(timeout=REQUEST_TIMEOUT_SECONDS).topics
        waiting = {name for name in waiting if not _has_leaders(topics.get(name))}
        time.sleep(0.1 if waiting else 0)


def _has_leaders(metadata: "TopicMetadata | None") -> bool:
    return metadata is not None and all(p.leader >= 0 for p in metadata.partitions.values())
