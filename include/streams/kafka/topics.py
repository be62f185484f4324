"""Create the topics of a registry, with their dead-letter topics."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID, ClientErrors, admin_config, client_config
from include.streams.kafka.offsets import REQUEST_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient, NewTopic, TopicMetadata

log = logging.getLogger(__name__)

# A topic works without these settings, and some managed services do not allow them.
OPTIONAL_SETTINGS = ("compression.type", "message.timestamp.type")
# Errors of brokers and managed services for a setting that they refuse.
REFUSALS = ("INVALID_CONFIG", "POLICY_VIOLATION", "INVALID_REQUEST")


class SettingsRefused(Exception):
    """The broker refuses settings without which messages of the topic would not be safe."""


def create_missing(admin: "AdminClient", wanted: Iterable["NewTopic"]) -> dict[str, list[str]]:
    """Create topics, each without its optional settings if the broker refuses them.

    All topics are tried before an error is raised.

    Args:
        admin: A client of the cluster.
        wanted: The topics with all their settings. Topics that exist are not changed.

    Returns:
        {name: settings that were left out} of the topics that were created.

    Raises:
        SettingsRefused: The broker refuses the required settings of a topic too.
        KafkaException: Creating a topic failed for another reason.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import NewTopic

    created: dict[str, list[str]] = {}
    first_error: Exception | None = None
    wanted = list(wanted)
    if not wanted:
        return created
    futures = admin.create_topics(wanted, request_timeout=REQUEST_TIMEOUT_SECONDS)
    for new in wanted:
        config = dict(new.config or {})
        left_out = sorted(config.keys() & set(OPTIONAL_SETTINGS))
        required = {name: value for name, value in config.items() if name not in left_out}
        try:
            try:
                if _done(futures[new.topic], "TOPIC_ALREADY_EXISTS"):
                    created[new.topic] = []
            except KafkaException as error:
                if error.args[0].name() not in REFUSALS or not left_out:
                    raise
                reduced = NewTopic(new.topic, new.num_partitions, new.replication_factor, config=required)
                second_try = admin.create_topics([reduced], request_timeout=REQUEST_TIMEOUT_SECONDS)[new.topic]
                if _done(second_try, "TOPIC_ALREADY_EXISTS"):
                    created[new.topic] = left_out
                text = "topic %s: the broker refuses one of %s (%s), so it was created without them"
                log.warning(text, new.topic, ", ".join(left_out), error.args[0].str())
        except KafkaException as error:
            is_refusal = error.args[0].name() in REFUSALS
            first_error = first_error or (_settings_refused(new.topic, required, error) if is_refusal else error)
    if first_error:
        raise first_error
    return created


def _settings_refused(name: str, required: Mapping[str, str], error: Exception) -> SettingsRefused:
    settings = ", ".join(f"{setting}={value}" for setting, value in required.items())
    return SettingsRefused(
        f"topic {name}: the broker refuses {settings} ({error.args[0].str()}). Allow these settings for the topic, or "
        "create it with the nearest settings that the service accepts: settings of an existing topic are not changed"
    )


def create_topics(topics: Iterable[Topic], conn_id: str = CONN_ID, *, replication_factor: int = -1) -> list[str]:
    """Create missing topics and their dead-letter topics, and add missing partitions.

    Can be repeated without harm. Settings of an existing topic are not changed (a person may have tuned them), and
    surplus partitions stay. A topic that somebody else defines gets no further partitions.

    Args:
        topics: The topics. Each gets a dead-letter topic with one partition.
        conn_id: The Airflow connection of the cluster.
        replication_factor: Replicas per partition; -1 is the broker's default.

    Returns:
        One text for each change.

    Raises:
        SettingsRefused: The broker refuses required settings of a topic.
        KafkaException: The broker failed or did not answer.
    """
    from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

    config = client_config(conn_id)
    errors = ClientErrors(conn_id, config)
    admin = AdminClient(admin_config(config))
    wanted: dict[str, NewTopic] = {}
    foreign: set[str] = set()
    for topic in topics:
        if topic.is_foreign:
            foreign.add(topic.name)
        for name, config in (
            (topic.name, topic.kafka_config()),
            (topic.dead_letter_name, topic.dead_letter_config()),
        ):
            partitions = topic.partitions if name == topic.name else 1
            wanted[name] = NewTopic(name, partitions, replication_factor, config=config)
    with errors.explaining(admin):
        existing = admin.list_topics(timeout=REQUEST_TIMEOUT_SECONDS).topics
    changes: list[str] = []
    created = create_missing(admin, [new for name, new in wanted.items() if name not in existing])
    for name, left_out in created.items():
        without = f", without {', '.join(left_out)}, which the broker refuses" if left_out else ""
        changes.append(f"topic {name}: created, {wanted[name].num_partitions} partitions{without}")
    too_small = [
        NewPartitions(name, new.num_partitions)
        for name, new in wanted.items()
        if name in existing and name not in foreign and len(existing[name].partitions) < new.num_partitions
    ]
    if too_small:
        for name, future in admin.create_partitions(too_small, request_timeout=REQUEST_TIMEOUT_SECONDS).items():
            # False: another process has added the partitions at the same time.
            if _done(future, "INVALID_PARTITIONS"):
                changes.append(f"topic {name}: extended to {wanted[name].num_partitions} partitions")
    _wait_for_leaders(admin, wanted)
    for change in changes:
        log.info("%s", change)
    return changes


def _done(future, harmless: str) -> bool:
    """Wait for the result; False if it is the error `harmless`: another process has done the same."""
    from confluent_kafka import KafkaException

    try:
        future.result()
    except KafkaException as error:
        if error.args[0].name() == harmless:
            return False
        raise
    return True


def _wait_for_leaders(admin: "AdminClient", names: Iterable[str]) -> None:
    """Wait for at most 30 s until all partitions have a leader: a new topic has none for a moment.

    So the next task can use the topics at once.
    """
    until = time.monotonic() + 30
    waiting = set(names)
    while waiting and time.monotonic() < until:
        topics = admin.list_topics(timeout=REQUEST_TIMEOUT_SECONDS).topics
        waiting = {name for name in waiting if not _has_leaders(topics.get(name))}
        time.sleep(0.1 if waiting else 0)


def _has_leaders(metadata: "TopicMetadata | None") -> bool:
    return metadata is not None and all(p.leader >= 0 for p in metadata.partitions.values())
