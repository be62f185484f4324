"""Create and update the connectors that land topics, through Kafka Connect's REST API.

`connectors/landing.json` defines all connectors. `connectors/NAME.json`, if it exists, changes settings of one
connector (for example `iceberg.control.commit.interval-ms`). The addresses of catalog and store come from the Airflow
connections that the Dags use, unless the files name others. Configurations contain no passwords: they refer to
variables of Connect's own environment.
"""

import json
import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from include.streams.contracts import Topic
from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.kafka.connection import ClientErrors, admin_config, client_config
from include.streams.kafka.offsets import REQUEST_TIMEOUT_SECONDS, GroupOffsets
from include.streams.kafka.topics import OPTIONAL_SETTINGS, REFUSALS, SettingsRefused, create_missing
from include.streams.lake.catalog import CATALOG_NAME, OBJECTS_CONN_ID
from include.streams.lake.catalog import CONN_ID as CATALOG_CONN_ID
from include.streams.landing.connect import CONN_ID, Connect
from include.streams.landing.tables import connector_name, create_landing_table, raw_table, sink_group

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[3] / "connectors"
TEMPLATE = "landing.json"
# References that Connect's worker resolves (`config.providers`), so that neither the REST API nor Connect's topics show
# a password.
PASSWORD, CREDENTIAL = "${env:LANDING_CATALOG_PASSWORD}", "${env:LANDING_CATALOG_CREDENTIAL}"
# How long to wait until a topic that was just created can be used.
TOPIC_SECONDS = 30.0
CONTROL_SETTING = "iceberg.control.topic"
# Kafka Connect itself has no transform that copies headers to fields. This one is in Debezium's jars, and in
# Confluent's managed Connect.
HEADER_TRANSFORM = "io.debezium.transforms.HeaderToValue"
# After a restart, the coordinator reads the control topic again from its last commit. Files in messages that Kafka has
# deleted by then would be lost.
CONTROL_CONFIG = {
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    # The broker compresses, because the worker's producers do not. Messages have 5 to 25 kB and compress well.
    "compression.type": "gzip",
}


class UnsafeConnector(Exception):
    """The connector runs in a way that can lose records silently."""


def control_topic(topic: Topic) -> str:
    """The name of the topic in which a sink's tasks report the files that they have written to its coordinator.

    Each connector has its own. With a shared topic, the coordinator of a new connector would first read the history of
    all others.
    """
    return control_topic_of(connector_name(topic))


def control_topic_of(connector: str) -> str:
    """The name of the control topic of a connector."""
    return f"{connector}.control"


def coordinator_group(topic: Topic) -> str:
    """The consumer group whose offsets record what a sink's coordinator has committed to the table."""
    return f"{sink_group(topic)}-coord"


def landed_topics(topics: Iterable[Topic]) -> list[Topic]:
    """Those of the topics that are landed."""
    return [topic for topic in topics if topic.landed]


def connector_config(topic: Topic, folder: Path = FOLDER) -> dict[str, str]:
    """The configuration of the topic's connector.

    Args:
        topic: The landed topic.
        folder: The folder of the connectors' JSON files.

    Raises:
        ValueError: A file cannot be used.
    """
    config = {**_catalog_settings(), **_object_settings(), **_read(folder / TEMPLATE)}
    if (own_file := folder / f"{connector_name(topic)}.json").exists():
        config |= _read(own_file)
    values = {"topic": topic.name, "table": raw_table(topic), "control_topic": control_topic(topic)}

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"{folder}: no placeholder {match[0]}; there are {', '.join(sorted(values))}")
        return values[match[1]]

    return _with_headers({name: re.sub(r"\{\{(\w+)\}\}", fill, value) for name, value in config.items()}, topic)


def _with_headers(config: dict[str, str], topic: Topic) -> dict[str, str]:
    """Add the transforms that copy the topic's headers into columns, and name these headers in each row.

    Each header has a transform of its own. A transform for several headers keeps the schema of the first record, and
    fails at the next record that has other headers of its list. A transform also fails at a record with two headers of
    one name, if it has kept no schema yet. Such a record is skipped (`errors.tolerance`); the next check finds that its
    offset is missing, and the repair appends the record from Kafka.
    """
    if not topic.headers:
        return config
    settings = {**config, "errors.tolerance": "all", "errors.log.enable": "true"}
    names = [config.get("transforms", "")]
    for number, header in enumerate(topic.headers):
        names.append(f"header{number}")
        prefix = f"transforms.header{number}"
        settings |= {
            f"{prefix}.type": HEADER_TRANSFORM,
            f"{prefix}.headers": header,
            f"{prefix}.fields": header_column(header),
            f"{prefix}.operation": "copy",
        }
    names.append("headers")
    settings |= {
        "transforms.headers.type": "org.apache.kafka.connect.transforms.InsertField$Value",
        "transforms.headers.static.field": HEADERS_LANDED,
        "transforms.headers.static.value": ",".join(topic.headers),
        "transforms": ",".join(filter(None, names)),
    }
    return settings


def apply(
    topics: Iterable[Topic], *, conn_id: str = CONN_ID, kafka_conn_id: str = KAFKA_CONN_ID, folder: Path = FOLDER
) -> list[str]:
    """Create or update the table, control topic, coordinator's offset and connector of every landed topic.

    It is safe to repeat, also after the process was killed: each step checks whether it is done, and the connector is
    created last. Offsets that a sink has committed are never reset. No connector is removed; the log names the
    connectors that no topic needs.

    Args:
        topics: Topics that are not landed are ignored.
        conn_id: The Airflow connection of Kafka Connect.
        kafka_conn_id: The Airflow connection of Kafka.
        folder: The folder of the connectors' JSON files.

    Returns:
        What changed, as texts for people.

    Raises:
        UnsafeConnector: A connector runs although its coordinator has committed no offset.
        Exception: As each step raises.
    """
    wanted = landed_topics(topics)
    if not wanted:
        return []
    connect = Connect(conn_id)
    changes = [change for topic in wanted for change in _apply(topic, connect, kafka_conn_id, folder)]
    for text in left_over(wanted, connect).values():
        log.warning("%s", text)
    return changes


def left_over(topics: Iterable[Topic], connect: Connect) -> dict[str, str]:
    """{name: remedy} of connectors that an earlier `apply` created for a topic that is no longer landed.

    These connectors continue to land. They are recognized by the name of their control topic, because the Connect
    cluster may also run connectors of other teams.

    Args:
        topics: The topics of the registry.
        connect: Kafka Connect.
    """
    wanted = {connector_name(topic) for topic in landed_topics(topics)}
    return {
        name: f"connector {name} still exists, but lands no topic of the registry; if none is missing there, remove "
        f"it: the Dag operate_connector, or `python -m include.streams.landing remove {name}`"
        for name, config in sorted(connect.configs().items())
        if name not in wanted and config.get(CONTROL_SETTING) == control_topic_of(name)
    }


def _apply(topic: Topic, connect: Connect, kafka_conn_id: str, folder: Path) -> list[str]:
    name, config = connector_name(topic), connector_config(topic, folder)
    changes = [] if _table_exists(topic) else [f"landing table {raw_table(topic)}: created"]
    create_landing_table(topic, kafka_conn_id)
    changes += _create_control_topic(topic, kafka_conn_id)
    changes += preset_coordinator(topic, kafka_conn_id)
    before = connect.config(name)
    # Connect adds the name to the given configuration. If nothing else differs, a PUT would restart the tasks
    # needlessly.
    if before is None or {k: v for k, v in before.items() if k != "name"} != config:
        connect.put_config(name, config)
        changes.append(f"connector {name}: {'created' if before is None else _difference(before, config)}")
    for change in changes:
        log.info("%s", change)
    return changes


def _table_exists(topic: Topic) -> bool:
    from include.streams.lake.catalog import load_catalog

    return load_catalog().table_exists(raw_table(topic))


def _create_control_topic(topic: Topic, kafka_conn_id: str) -> list[str]:
    """Create the control topic with unlimited retention, or correct its settings."""
    from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

    name = control_topic(topic)
    client = client_config(kafka_conn_id)
    errors = ClientErrors(kafka_conn_id, client)
    admin = AdminClient(admin_config(client))
    with errors.explaining(admin):
        # One partition: the coordinator must read events in the order in which they were written.
        created = create_missing(admin, [NewTopic(name, 1, -1, config=CONTROL_CONFIG)])
        if name in created:
            without = f", without {', '.join(created[name])}, which the broker refuses" if created[name] else ""
            return [f"topic {name}: created, unlimited retention{without}"]
        resource = ConfigResource(ResourceType.TOPIC, name)
        current = admin.describe_configs([resource])[resource].result(REQUEST_TIMEOUT_SECONDS)
        wrong = {k: v for k, v in CONTROL_CONFIG.items() if k not in current or current[k].value != v}
        return [change for k, v in wrong.items() if (change := _correct(admin, name, k, v))]


def _correct(admin: "AdminClient", topic: str, setting: str, value: str) -> str:
    """Set one setting of a control topic; returns what changed, or "" if the broker refuses an optional setting."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    try:
        admin.incremental_alter_configs([resource])[resource].result(REQUEST_TIMEOUT_SECONDS)
    except KafkaException as error:
        if error.args[0].name() not in REFUSALS:
            raise
        reason = error.args[0].str()
        if setting in OPTIONAL_SETTINGS:
            log.warning("topic %s: the broker refuses %s=%s (%s); it works without", topic, setting, value, reason)
            return ""
        raise SettingsRefused(
            f"topic {topic}: the broker refuses {setting}={value} ({reason}). Without it, the coordinator of the sink "
            "can lose files that it has not committed yet: have the service allow this setting"
        ) from error
    return f"topic {topic}: {setting} set to {value}"


def preset_coordinator(topic: Topic, kafka_conn_id: str) -> list[str]:
    """Commit offset 0 of every partition of the control topic for which the coordinator's group has no offset.

    Without a committed offset, a coordinator starts at the end of the control topic. The sink's tasks commit their own
    offsets before the coordinator has committed their files to the table. If the coordinator then restarts before its
    first commit, those files are never committed, although the tasks are RUNNING and show no lag. Starting too early is
    harmless: the table's snapshots name offsets of the control topic, so the coordinator skips files that the table
    already has.

    Args:
        topic: The landed topic.
        kafka_conn_id: The Airflow connection of Kafka.

    Returns:
        What changed, as texts for people.

    Raises:
        LookupError: The control topic has no leader within TOPIC_SECONDS.
        UnsafeConnector: The connector runs (its group has members), and the group has no committed offset.
    """
    from confluent_kafka import KafkaException

    group_name, control = coordinator_group(topic), control_topic(topic)
    with GroupOffsets(group_name, kafka_conn_id) as group:
        until = time.monotonic() + TOPIC_SECONDS
        while not (partitions := group.fetch_offsets_sync([control])) or group.incomplete:
            if time.monotonic() > until:
                raise LookupError(f"topic {control} has no leader; try again when all brokers are available")
            time.sleep(0.1)
        missing = [partition for partition, offsets in sorted(partitions.items()) if offsets.committed is None]
        if not missing:
            return []
        try:
            group.commit(dict.fromkeys(missing, 0))
        except KafkaException as error:
            # Kafka accepts commits for a group with members only from those members.
            name = connector_name(topic)
            raise UnsafeConnector(
                f"connector {name} runs although its coordinator has committed no offset of {control}. If it restarts "
                f"now, it loses records silently: run `python -m include.streams.landing stop {name}`, then `apply`, "
                f"then `resume {name}` ({error.args[0].str()})"
            ) from error
    return [f"group {group_name}: starts at offset 0 of {control}-{partition.number}" for partition in missing]


def _difference(before: dict[str, str], after: dict[str, str]) -> str:
    """The names of the settings that changed. Values are left out: they may reveal addresses, and are in the files."""
    changed = {k for k in {*before, *after} - {"name"} if before.get(k) != after.get(k)}
    return f"changed {', '.join(sorted(changed))}"


def _read(path: Path) -> dict[str, str]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise ValueError(f"{path}: a connector's settings are one JSON object whose values are strings")
    return settings


def _catalog_settings() -> dict[str, str]:
    """The settings of the sink's catalog: the same catalog that `include.streams.lake.catalog` reads."""
    from airflow.sdk import BaseHook

    connection = BaseHook.get_connection(CATALOG_CONN_ID)
    extra = {name: str(value) for name, value in connection.extra_dejson.items()}
    prefix = "iceberg.catalog."
    settings = {"iceberg.catalog": CATALOG_NAME}
    if "warehouse" in extra:
        settings[f"{prefix}warehouse"] = extra["warehouse"]
    if extra.get("type") == "rest":
        settings |= {f"{prefix}type": "rest", f"{prefix}uri": extra.get("uri", "")}
        return settings | ({f"{prefix}credential": CREDENTIAL} if connection.login else {})
    tls = f"?sslmode={extra['sslmode']}" if "sslmode" in extra else ""
    return settings | {
        f"{prefix}type": "jdbc",
        f"{prefix}uri": f"jdbc:postgresql://{connection.host}:{connection.port or 5432}/{connection.schema}{tls}",
        f"{prefix}jdbc.user": connection.login or "",
        f"{prefix}jdbc.password": PASSWORD,
        f"{prefix}jdbc.schema-version": "V1",
    }


def _object_settings() -> dict[str, str]:
    """The settings of Cloud Storage. The credentials are those of the machine on which Connect runs."""
    import os
    from urllib.parse import urlsplit

    from airflow.sdk import BaseHook

    extra = BaseHook.get_connection(OBJECTS_CONN_ID).extra_dejson
    prefix = "iceberg.catalog."
    settings = {
        f"{prefix}io-impl": "org.apache.iceberg.gcp.gcs.GCSFileIO",
        # Each open file has a buffer of this size, and each task has an open file for each partition. With the default
        # of 16 MB, the buffers would fill a small heap.
        f"{prefix}gcs.channel.write.chunk-size-bytes": str(2 * 1024 * 1024),
    }
    if project := extra.get("project"):
        settings[f"{prefix}gcs.project-id"] = str(project)
    if host := os.environ.get("STORAGE_EMULATOR_HOST"):
        settings[f"{prefix}gcs.service.host"] = host if urlsplit(host).scheme in ("http", "https") else f"http://{host}"
    if extra.get("is_anonymous"):
        settings[f"{prefix}gcs.no-auth"] = "true"
    return settings
