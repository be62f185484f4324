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
    from pyiceberg.exceptions import RESTError
    from sqlalchemy.exc import DBAPIError

    from include.streams.kafka.reading import ReadingStalled
    from include.streams.kafka.topics import SettingsRefused
    from include.streams.landing.connect import ConnectRefused, ConnectUnreachable
    from include.streams.landing.connectors import UnsafeConnector
    from include.streams.landing.tables import LandingTableMismatch

    return (
        ConnectRefused, ConnectUnreachable, DBAPIError, ImportError, KafkaException, LandingTableMismatch, LookupError,
        OSError, ReadingStalled, RESTError, SettingsRefused, TypeError, UnsafeConnector, ValueError,
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
    add("repair", _repair, "read the offsets that have not landed from Kafka and append them now, each once")
    return parser


def _apply(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.connectors import apply, left_over

    changes = apply(registry, conn_id=options.conn_id, kafka_conn_id=options.kafka_conn_id)
    done = changes or ["nothing to do: everything matches the registry and connectors/"]
    return [*done, *left_over(registry, Connect(options.conn_id)).values()]


def _status(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.connectors import landed_topics, left_over
    from include.streams.landing.repairs import status_line, topic_of

    connect = Connect(options.conn_id)
    topics = landed_topics(registry) if options.connector is None else [topic_of(options.connector, registry)]
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
