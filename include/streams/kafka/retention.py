"""How long the brokers keep messages, which decides how long inbox rows must be kept.

Somebody may have changed the settings of a topic, or the topic may have existed before: then the broker keeps messages
for longer than the topic's declaration says, and a message that is read again must still be recognized.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from include.streams.contracts import Topic
from include.streams.kafka.connection import ClientErrors, admin_config, client_config
from include.streams.kafka.offsets import REQUEST_TIMEOUT_SECONDS
from include.streams.operations.retention import Stay, inbox_time

log = logging.getLogger(__name__)

# A thousand years: a broker takes numbers that no timedelta holds.
MAX_MILLISECONDS = 1_000 * 365 * 86_400_000


def inbox_days(wanted: int, read: Iterable[tuple[str, Topic]]) -> int | None:
    """The days for which inbox rows are kept: as wanted, or longer if a broker keeps messages for longer than declared.

    Args:
        wanted: The days that the parameter says; enough for what the topics declare.
        read: (connection, topic) of all topics that a consumer reads.

    Returns:
        The days; None to keep all rows, because a broker keeps messages forever, or its settings cannot be read. The
        log says which.
    """
    by_connection: dict[str, dict[str, Topic]] = {}
    for conn_id, topic in read:
        by_connection.setdefault(conn_id, {})[topic.name] = topic
    days: int | None = wanted
    for conn_id, topics in by_connection.items():
        try:
            settings = _read_settings(conn_id, topics.values())
            needed = {topic.name: _needed(topic, settings) for topic in topics.values()}
        except Exception as error:
            # Whatever the reason: rows that are deleted cannot be restored, and rows that stay do no harm.
            log.warning(
                "no inbox rows are deleted: the settings of the topics on %s cannot be read (%s: %s); the connection "
                "needs the right DescribeConfigs on its topics",
                conn_id, type(error).__name__, error,
            )  # fmt: skip
            return None
        for name, time in needed.items():
            if time is None:
                log.warning(
                    "no inbox rows are deleted: the broker of %s keeps the messages of topic %s, or of its dead-letter "
                    "topic, forever; to prune the inbox, set retention.ms", conn_id, name,
                )  # fmt: skip
                days = None
            elif days is not None and time > timedelta(days=days):
                days = math.ceil(time / timedelta(days=1))
                log.warning(
                    "inbox rows are kept for %d days instead of %d: the broker of %s keeps the messages of topic %s, "
                    "or of its dead-letter topic, for longer than declared", days, wanted, conn_id, name,
                )  # fmt: skip
    return days


def _read_settings(conn_id: str, topics: Iterable[Topic]) -> dict[str, Mapping[str, Any]]:
    """{topic: its settings on the broker}, also of dead-letter topics; without topics that do not exist."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

    names = [name for topic in topics for name in (topic.name, topic.dead_letter_name)]
    config = client_config(conn_id)
    errors = ClientErrors(conn_id, config)
    admin = AdminClient(admin_config(config))
    found = {}
    with errors.explaining(admin):
        asked = admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, name) for name in names], request_timeout=REQUEST_TIMEOUT_SECONDS
        )
        for resource, future in asked.items():
            try:
                entries = future.result(REQUEST_TIMEOUT_SECONDS)
            except KafkaException as error:
                # It has no messages.
                if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
                    raise
            else:
                found[resource.name] = {name: entry.value for name, entry in entries.items()}
    return found


def _needed(topic: Topic, settings: Mapping[str, Mapping[str, Any]]) -> timedelta | None:
    messages, dead_letters = (
        _stay(settings[name]) if name in settings else None for name in (topic.name, topic.dead_letter_name)
    )
    return inbox_time(topic, messages, dead_letters)


def _stay(settings: Mapping[str, Any]) -> Stay:
    retention = int(settings["retention.ms"])
    # Some services of Kafka's protocol have no segments to set.
    segment = timedelta(milliseconds=int(settings.get("segment.ms") or 0))
    if retention < 0 or "delete" not in settings["cleanup.policy"]:
        return Stay(None, segment)
    return Stay(timedelta(milliseconds=min(retention, MAX_MILLISECONDS)), segment)
