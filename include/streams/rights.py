"""The least rights in Kafka of each part of a deployment, from the declarations of the project.

`python -m include.streams rights` prints them as commands of Kafka, as JSON, or creates them. The rights in the
database are in `deploy/database_roles.sql`. `docs/deployment.md` explains both.

Each part has a principal of its own; one principal may also be several parts. Every right names a declared topic or
group, except for two names that the Iceberg sink chooses: the groups of its tasks, which begin with `cg-control-`, and
the ids of its transactions.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.offsets import REQUEST_TIMEOUT_SECONDS
from include.streams.kafka.replay import GROUP as REPLAY_GROUP
from include.streams.landing.connectors import control_topic, coordinator_group, landed_topics
from include.streams.landing.tables import sink_group

if TYPE_CHECKING:
    from confluent_kafka.admin import AclBinding

    from include.streams.packages import Project

# The names of the local stack; a worker's settings may name others.
SINK_GROUPS = "cg-control-"
CONNECT_TOPICS, CONNECT_GROUP = ("_connect-configs", "_connect-offsets", "_connect-status"), "connect"


class Part(StrEnum):
    """A part of a deployment that logs in to Kafka."""

    # Workers. `prepare_services` is a task too: it creates topics and adds partitions.
    tasks = "tasks"
    triggerer = "triggerer"
    # The api-server, for pages that read topics.
    pages = "pages"
    # Kafka Connect with the Iceberg sink.
    connect = "connect"
    # Whoever sends the messages of the topics that are not foreign.
    producers = "producers"


class Resource(StrEnum):
    """What a right is about, in the words of Kafka's command."""

    topic = "topic"
    group = "group"
    transaction = "transactional-id"


class Right(NamedTuple):
    """Operations that a part may do.

    Attributes:
        part: The part.
        resource: What `name` names.
        name: The name of one resource, or the beginning of the names of several.
        is_prefix: Whether `name` is the beginning of names.
        operations: The operations, in the words of Kafka's command without dashes.
    """

    part: Part
    resource: Resource
    name: str
    is_prefix: bool
    operations: tuple[str, ...]


LOOK = ("Describe", "DescribeConfigs")
PREPARE = ("Create", "Alter", *LOOK)


def rights(project: Project) -> list[Right]:
    """The rights of all parts, sorted.

    Args:
        project: The project.
    """
    collected: dict[tuple[Part, Resource, str], set[str]] = {}

    def allow(part: Part, resource: Resource, names: Iterable[str], *operations: str) -> None:
        for name in names:
            collected.setdefault((part, resource, name), set()).update(operations)

    topics = list(project.topics)
    names = [topic.name for topic in topics]
    letters = [topic.dead_letter_name for topic in topics]
    consumers = [consumer.group for consumer in project.consumers]
    landing = [consumer.group for consumer in project.landing_consumers]
    # Groups of the stock parts (a trigger, a page) that have a connection of their own.
    stock = [settings["group.id"] for settings in project.kafka_connections.values() if "group.id" in settings]

    # Writes: what effects send, and replays to any topic.
    allow(Part.tasks, Resource.topic, (*names, *letters), "Read", "Write", *PREPARE)
    allow(Part.tasks, Resource.group, (*consumers, *landing, *stock), "Read", "Describe")
    allow(Part.tasks, Resource.group, [REPLAY_GROUP], "Describe")
    # It reads no message, but fires only for topics that its user may read: a run could not read the others either.
    allow(Part.triggerer, Resource.topic, names, "Read", "Describe")
    allow(Part.triggerer, Resource.group, consumers, "Describe")
    if stock:
        allow(Part.triggerer, Resource.group, stock, "Read", "Describe")
        allow(Part.pages, Resource.topic, names, "Read", "Describe")
        allow(Part.pages, Resource.group, stock, "Read", "Describe")
    allow(Part.producers, Resource.topic, (t.name for t in topics if not t.is_foreign), "Write", "Describe")

    landed = landed_topics(topics)
    for topic in landed:
        groups = (sink_group(topic), coordinator_group(topic))
        # The watchdog looks at the sink's offsets, and reads which files it has not committed.
        allow(Part.tasks, Resource.group, groups, "Describe")
        allow(Part.tasks, Resource.topic, [control_topic(topic)], "Read", "AlterConfigs", *PREPARE)
        allow(Part.connect, Resource.topic, [topic.name], "Read", "Describe")
        allow(Part.connect, Resource.topic, [control_topic(topic)], "Read", "Write", "Describe")
        allow(Part.connect, Resource.group, groups, "Read", "Describe")
    if landed:
        allow(Part.connect, Resource.topic, CONNECT_TOPICS, "Read", "Write", "Create", *LOOK)
        allow(Part.connect, Resource.group, [CONNECT_GROUP, SINK_GROUPS], "Read", "Describe")
        allow(Part.connect, Resource.transaction, ["*"], "Write", "Describe")
    return sorted(
        Right(*which, which[2] == SINK_GROUPS, tuple(sorted(operations))) for which, operations in collected.items()
    )


def commands(wanted: Iterable[Right], principals: Mapping[str, str]) -> list[str]:
    """The commands of Kafka that create these rights.

    Args:
        wanted: The rights.
        principals: {part: principal, such as `User:airflow`}. A part that is not named is left out.
    """
    lines = []
    for right in wanted:
        if right.part in principals:
            arguments = ["--add", "--allow-principal", principals[right.part], f"--{right.resource}", right.name]
            arguments += ["--resource-pattern-type", "prefixed" if right.is_prefix else "literal"]
            operations = [argument for operation in right.operations for argument in ("--operation", operation)]
            lines.append(f"kafka-acls --bootstrap-server BROKER {shlex.join([*arguments, *operations])}")
    return lines


def as_rows(wanted: Iterable[Right], principals: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rights as objects, for Terraform and other tools.

    Args:
        wanted: The rights.
        principals: {part: principal}. A part that is not named is left out.
    """
    return [
        {**right._asdict(), "operations": list(right.operations), "principal": principals[right.part]}
        for right in wanted
        if right.part in principals
    ]


def apply(wanted: Iterable[Right], principals: Mapping[str, str], conn_id: str = CONN_ID) -> list[str]:
    """Create the rights. A right that exists is not changed, and none is removed.

    Args:
        wanted: The rights.
        principals: {part: principal}. A part that is not named is left out.
        conn_id: The Airflow connection of a user that may change rights.

    Returns:
        One text for each right.

    Raises:
        KafkaException: The broker failed or refused.
    """
    from confluent_kafka.admin import AdminClient

    from include.streams.kafka.connection import ClientErrors, admin_config, client_config

    config = client_config(conn_id)
    errors = ClientErrors(conn_id, config)
    admin = AdminClient(admin_config(config))
    kept = [right for right in wanted if right.part in principals]
    bindings = [binding for right in kept for binding in _bindings(right, principals[right.part])]
    with errors.explaining(admin):
        for future in admin.create_acls(bindings, request_timeout=REQUEST_TIMEOUT_SECONDS).values():
            future.result()
    return [
        f"{principals[right.part]} ({right.part}): {', '.join(right.operations)} on {right.resource} {right.name}"
        for right in kept
    ]


def _bindings(right: Right, principal: str) -> list[AclBinding]:
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    types = {
        Resource.topic: ResourceType.TOPIC,
        Resource.group: ResourceType.GROUP,
        Resource.transaction: ResourceType.TRANSACTIONAL_ID,
    }
    operations = {name.replace("_", "").lower(): operation for name, operation in AclOperation.__members__.items()}
    pattern = ResourcePatternType.PREFIXED if right.is_prefix else ResourcePatternType.LITERAL
    what = (types[right.resource], right.name, pattern, principal, "*")
    return [AclBinding(*what, operations[operation.lower()], AclPermissionType.ALLOW) for operation in right.operations]
