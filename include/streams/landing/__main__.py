"""Commands for connectors and landing tables: `python -m include.streams.landing --help`."""

import argparse
import sys
from collections.abc import Callable, Iterable

from include.streams.contracts import Registry, Topic
from include.streams.contracts.__main__ import DEFAULT_REGISTRY, load_registry
from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.landing.connect import CONN_ID
from include.streams.operations.commands import UnhealthyError, run


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
    add("restart", _restart, "restart a connector's failed tasks, or all of them if none has failed; loses nothing")
    add("stop", _stop, "stop a connector's tasks; its configuration and offsets stay")
    add("resume", _resume, "resume a stopped connector")
    add(
        "step-over",
        _step_over,
        "move a connector past records whose timestamp Kafka Connect refuses; `repair` or the next run of the lane "
        "then appends the skipped records from Kafka",
    )
    add(
        "remove",
        _remove,
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
    from include.streams.landing.connector_status import ConnectorStatus, sink_progress
    from include.streams.landing.connectors import connected_topics, left_over
    from include.streams.landing.tables import connector_name, raw_table

    connect, lines, all_well = Connect(options.conn_id), [], True
    for topic in connected_topics(registry) if options.connector is None else [_topic(options.connector, registry)]:
        status = ConnectorStatus.of(connect, connector_name(topic))
        progress = sink_progress(topic, options.kafka_conn_id)
        all_well &= status.is_running
        lines.append(
            f"{connector_name(topic)}  {status}  {topic.name} -> {raw_table(topic)}  lag {progress.lag}"
            + (f"  {status.cause}" if status.cause else "")
        )
    lines = lines or ["no topic of the registry has landed=True"]
    if options.connector is None:
        lines += left_over(registry, connect).values()
    if not all_well:
        raise UnhealthyError(lines)
    return lines


def _restart(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.connector_status import ConnectorStatus
    from include.streams.landing.tables import connector_name
    from include.streams.landing.watchdog import forget_restarts

    name, connect = connector_name(_topic(options.connector, registry)), Connect(options.conn_id)
    status = ConnectorStatus.of(connect, name)
    if not connect.restart(name, only_failed=status.has_failed):
        raise ValueError(f"connector {name} does not exist; `apply` creates it")
    forget_restarts(name)
    return [f"connector {name}: restarted {'its failed tasks' if status.has_failed else 'with all its tasks'}"]


def _stop(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.tables import connector_name

    name = connector_name(_topic(options.connector, registry))
    if not Connect(options.conn_id).stop(name):
        raise ValueError(f"connector {name} does not exist; `apply` creates it")
    return [f"connector {name}: stopped; `resume` resumes it"]


def _remove(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.removal import remove

    return remove(options.connector, registry, Connect(options.conn_id))


def _gaps(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connectors import landed_topics
    from include.streams.landing.gaps import RUNBOOK
    from include.streams.landing.stored import BrokenFiles
    from include.streams.landing.tables import raw_table
    from include.streams.landing.verification import verify

    lines, is_whole = [], True
    for topic in landed_topics(registry) if options.connector is None else [_topic(options.connector, registry)]:
        try:
            verified = verify(topic, conn_id=options.kafka_conn_id)
        except BrokenFiles as broken:
            is_whole = False
            lines.append(f"{raw_table(topic)}: {broken}; `repair` reads the records from Kafka")
            continue
        is_whole &= not verified.missing and not verified.snapshot.lost
        lines += [f"{raw_table(topic)}: {why}; {RUNBOOK}" for why in verified.snapshot.lost.values()]
        lines += [f"{raw_table(topic)}: {gap.offsets} missing for {gap.age}" for gap in verified.missing]
        if not verified.missing and not verified.snapshot.lost:
            lines.append(f"{raw_table(topic)}: complete")
    if not is_whole:
        raise UnhealthyError(lines)
    return lines


def _repair(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.broken_files import read_with_repair
    from include.streams.landing.gaps import RUNBOOK
    from include.streams.landing.repair import Repaired, repair
    from include.streams.landing.tables import raw_table
    from include.streams.landing.verification import verify

    topic = _topic(options.connector, registry)
    name, conn_id = raw_table(topic), options.kafka_conn_id

    def check_and_repair() -> Repaired:
        before = verify(topic, conn_id=conn_id, repairs=True)
        return repair(topic, before.missing, conn_id=conn_id)

    repaired = read_with_repair(topic, check_and_repair, conn_id=conn_id, repairs=False)
    lines = [f"{name}: {repaired.appended} records appended, {repaired.without_record} offsets hold no record"]
    if repaired.lost:
        lines.append(f"{name}: {repaired.lost} offsets are lost: retention had removed them from Kafka ({RUNBOOK})")
    after = verify(topic, conn_id=conn_id)
    lines += [f"{name}: {gap.offsets} still missing" for gap in after.missing]
    lines += [f"{name}: {why}; {RUNBOOK}" for why in after.snapshot.lost.values()]
    if repaired.lost or after.missing or after.snapshot.lost:
        raise UnhealthyError(lines)
    return lines


def _resume(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.connectors import preset_coordinator
    from include.streams.landing.tables import connector_name

    topic, connect = _topic(options.connector, registry), Connect(options.conn_id)
    name = connector_name(topic)
    if connect.config(name) is None:
        raise ValueError(f"connector {name} does not exist; `apply` creates it")
    # Needed because Kafka deletes the committed offsets of a group without members after a week.
    changes = preset_coordinator(topic, options.kafka_conn_id)
    connect.resume(name)
    return [*changes, f"connector {name}: resumed"]


def _step_over(options: argparse.Namespace, registry: Registry) -> list[str]:
    from include.streams.landing.connect import Connect
    from include.streams.landing.stepping import step_over
    from include.streams.landing.watchdog import forget_restarts

    topic = _topic(options.connector, registry)
    steps = step_over(topic, Connect(options.conn_id), options.kafka_conn_id)
    if not steps:
        return [
            f"{topic.name}: no record with a negative timestamp between the sink's offsets and the end of the topic"
        ]
    forget_restarts(options.connector)
    return [f"{topic.name} {step}" for step in steps]


def _topic(connector: str, registry: Iterable[Topic]) -> Topic:
    from include.streams.landing.connectors import landed_topics
    from include.streams.landing.tables import connector_name

    by_connector = {connector_name(topic): topic for topic in landed_topics(registry)}
    if connector not in by_connector:
        raise LookupError(
            f"no landed topic has a connector {connector!r}; there are {', '.join(sorted(by_connector)) or 'none'}"
        )
    return by_connector[connector]


if __name__ == "__main__":
    sys.exit(main())
