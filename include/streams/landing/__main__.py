"""Commands for connectors and landing tables: `python -m include.streams.landing --help`."""

import argparse
import sys
from collections.abc import Callable

from include.streams.contracts import Registry
from include.streams.contracts.__main__ import DEFAULT_REGISTRY, load_registry
from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.landing.connect import CONN_ID
from include.streams.operations.commands import BY_HAND, UnhealthyError, acting_user, add_repair_arguments, run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options, load_registry(options.registry)), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from confluent_kafka import KafkaException
    from pyiceberg.exceptions import NoSuchTableError, RESTError
    from sqlalchemy.exc import DBAPIError

    from include.streams.kafka.reading import ReadingStalled
    from include.streams.kafka.topics import SettingsRefused
    from include.streams.landing.connect import ConnectRefused, ConnectUnreachable
    from include.streams.landing.connectors import UnsafeConnector
    from include.streams.landing.tables import LandingTableMismatch

    return (
        ConnectRefused, ConnectUnreachable, DBAPIError, ImportError, KafkaException, LandingTableMismatch, LookupError,
        NoSuchTableError, OSError, ReadingStalled, RESTError, SettingsRefused, TypeError, UnsafeConnector, ValueError,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams.landing", description=__doc__)
    parser.add_argument("--registry", metavar="MODULE:NAME", default=DEFAULT_REGISTRY, help="default: %(default)s")
    parser.add_argument("--conn-id", default=CONN_ID, help="Airflow connection to Kafka Connect (default: %(default)s)")
    parser.add_argument("--kafka-conn-id", default=KAFKA_CONN_ID, help="default: %(default)s")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, action: Callable[[argparse.Namespace, Registry], list[str]], text: str) -> None:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        if name != "apply":
            # Optional for commands that only read; commands that change something need a name.
            command.add_argument(
                "connector",
                nargs="?" if name in ("status", "gaps") else None,
                help="the connector's name, as `status` shows it",
            )
        if name not in ("apply", "status", "gaps"):
            add_repair_arguments(command, reason="the reason", default=BY_HAND)

    add(
        "apply",
        _apply,
        "create or update tables, control topics and connectors of landed topics; safe to repeat",
    )
    add(
        "status",
        _status,
        "show each connector's state, its tasks and its lag; exits with 1 if a connector is not running",
    )
    add("restart", _operate, "restart a connector's failed tasks, or all of them if none has failed; loses nothing")
    add("stop", _operate, "stop a connector's tasks; its configuration and offsets stay")
    add("resume", _operate, "resume a stopped connector")
    add(
        "step-over",
        _operate,
        "move a connector past records whose timestamp Kafka Connect refuses; `repair` or the next run of the lane "
        "then appends the skipped records from Kafka",
    )
    add(
        "remove",
        _operate,
        "remove the connector of a topic that is no longer landed, and close its alarms; its table, control topic and "
        "offsets stay",
    )
    add(
        "gaps",
        _gaps,
        "show the offsets that should have landed and are missing; exits with 1 if there are any",
    )
    _add_verify(commands)
    add("repair", _repair, "read the offsets that have not landed from Kafka and append them now, each once")
    return parser


def _add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = (
        "compare any landing with Kafka and list holes and doubles: an Iceberg table that any product writes, or plain "
        "objects; it changes nothing, and exits with 1 if there are any"
    )
    verify = commands.add_parser("verify", help=text, description=text)
    verify.set_defaults(action=_verify)
    verify.add_argument("landing", help="the table's identifier (namespace.name), or the prefix (gs://bucket/folder)")
    verify.add_argument("topic", help="the topic's name; it need not be in the registry")
    verify.add_argument("--json", action="store_true", help="print one JSON object; JSON=1 in the environment does too")
    table = verify.add_argument_group("a table")
    table.add_argument("--partition-column", default="partition", help="default: %(default)s")
    table.add_argument("--offset-column", default="offset", help="default: %(default)s")
    table.add_argument("--topic-column", help="the column with the topic, if the table holds several topics")
    objects = verify.add_argument_group("a prefix")
    objects.add_argument("--layout", default="confluent", help="as in PlainObjects (default: %(default)s)")
    objects.add_argument("--records", default="envelope", choices=["envelope", "values"], help="default: %(default)s")
    objects.add_argument("--offset-field", default="offset", help="default: %(default)s")
    objects.add_argument("--value-field", default="value", help="default: %(default)s")


def _verify(options: argparse.Namespace, registry: Registry) -> list[str]:
    import dataclasses
    import json
    import os

    from include.streams.contracts import PlainObjects
    from include.streams.lake.catalog import load_catalog
    from include.streams.landing import comparison

    damaged: list[str] = []
    if "://" in options.landing:
        names = ("layout", "records", "offset_field", "value_field")
        source = PlainObjects(prefix=options.landing, **{name: getattr(options, name) for name in names})
        landed, damaged = comparison.of_objects(source, options.topic)
    else:
        table = load_catalog().load_table(options.landing)
        columns = (options.partition_column, options.offset_column, options.topic_column)
        landed = comparison.of_table(table, options.topic, *columns)
    compared = comparison.compare(options.topic, landed, options.kafka_conn_id)
    is_right = not damaged and all(each.is_right for each in compared)
    if options.json or os.environ.get("JSON"):
        facts = {"is_right": is_right, "damaged": damaged, "partitions": list(map(dataclasses.asdict, compared))}
        lines = [json.dumps(facts)]
    else:
        lines = [f"damaged: {text}" for text in damaged] + list(comparison.texts(compared))
    if not is_right:
        raise UnhealthyError(lines)
    return lines


def _apply(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.connectors import apply, left_over

    changes = apply(registry, conn_id=options.conn_id, kafka_conn_id=options.kafka_conn_id)
    done = changes or ["nothing to do: everything matches the registry and connectors/"]
    return [*done, *left_over(registry, Connect(options.conn_id)).values()]


def _status(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.connectors import connected_topics, left_over
    from include.streams.landing.repairs import status_line, topic_of

    connect = Connect(options.conn_id)
    topics = connected_topics(registry) if options.connector is None else [topic_of(options.connector, registry)]
    found = [status_line(topic, connect, options.kafka_conn_id) for topic in topics]
    lines = [line for line, _ in found] or ["no topic of the registry has landed=True"]
    if options.connector is None:
        lines += left_over(registry, connect).values()
    if not all(is_running for _, is_running in found):
        raise UnhealthyError(lines)
    return lines


def _operate(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.repairs import OperateConnector, operate_connector
    from include.streams.operations.audit import Actor

    params = OperateConnector(
        connector=options.connector,
        action=options.command.replace("-", "_"),
        reason=options.reason,
        dry_run=options.dry_run,
    )
    by, connect = Actor(acting_user(options.by)), Connect(options.conn_id)
    return operate_connector(params, by, topics=registry, connect=connect, kafka_conn_id=options.kafka_conn_id)["lines"]


def _gaps(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connectors import landed_topics
    from include.streams.landing.repairs import gap_lines, topic_of

    topics = landed_topics(registry) if options.connector is None else [topic_of(options.connector, registry)]
    found = [gap_lines(topic, options.kafka_conn_id) for topic in topics]
    lines = [line for lines, _ in found for line in lines]
    if not all(is_complete for _, is_complete in found):
        raise UnhealthyError(lines)
    return lines


def _repair(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.repairs import RepairLanding, repair_landing, topic_of
    from include.streams.operations.audit import Actor

    topic = topic_of(options.connector, registry).name
    params = RepairLanding(topic=topic, reason=options.reason, dry_run=options.dry_run)
    report = repair_landing(params, Actor(acting_user(options.by)), topics=registry, conn_id=options.kafka_conn_id)
    if not report["is_complete"]:
        raise UnhealthyError(report["lines"])
    return report["lines"]


if __name__ == "__main__":
    sys.exit(main())
