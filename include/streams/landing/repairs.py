"""Repairs of the standard lane by people: missing offsets of a landing table, and connectors in Kafka Connect."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.landing.connect import Connect
from include.streams.landing.tables import connector_name, raw_table
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, repair_services

if TYPE_CHECKING:
    from include.streams.contracts import Registry, Topic


class RepairLanding(RepairParams):
    """The parameters of `repair_landing`.

    Attributes:
        topic: The landed topic.
    """

    topic: str


class LandingReport(RepairReport):
    """The report of `repair_landing`.

    Attributes:
        is_complete: Whether no offset is missing or lost after the repair, or before it in a dry run.
    """

    is_complete: bool


class ConnectorAction(StrEnum):
    """What `operate_connector` does."""

    # Show its state, its tasks and its lag.
    status = "status"
    # Restart its failed tasks, or all of them if none has failed.
    restart = "restart"
    stop = "stop"
    resume = "resume"
    # Move it past records whose timestamp Kafka Connect refuses.
    step_over = "step_over"
    # Remove the connector of a topic that is no longer landed.
    remove = "remove"


class OperateConnector(RepairParams):
    """The parameters of `operate_connector`.

    Attributes:
        connector: The connector's name.
        action: A `ConnectorAction`.
    """

    connector: str
    action: str


def gap_lines(topic: Topic, conn_id: str = KAFKA_CONN_ID) -> tuple[list[str], bool]:
    """What a landing table lacks.

    Args:
        topic: The landed topic.
        conn_id: The Airflow connection of the broker.

    Returns:
        A text for each gap and each unreadable file, or "complete"; and whether it is complete.
    """
    from include.streams.landing.gaps import RUNBOOK
    from include.streams.landing.stored import BrokenFiles
    from include.streams.landing.verification import verify

    name = raw_table(topic)
    try:
        verified = verify(topic, conn_id=conn_id)
    except BrokenFiles as broken:
        return [f"{name}: {broken}; `repair` reads the records from Kafka"], False
    lines = [f"{name}: {why}; {RUNBOOK}" for why in verified.snapshot.lost.values()]
    lines += [f"{name}: {gap.offsets} missing for {gap.age}" for gap in verified.missing]
    return lines or [f"{name}: complete"], not lines


def repair_landing(
    params: RepairLanding, by: Actor, *, topics: Registry, conn_id: str = KAFKA_CONN_ID
) -> LandingReport:
    """Read the offsets that have not landed from Kafka and append them, each once.

    Args:
        params: The topic. A dry run shows the gaps.
        by: Who does it.
        topics: The project's topics.
        conn_id: The Airflow connection of the broker.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, or the topic has no landing table.
        Exception: An error of the broker, the catalog or the object store. What was appended stays; the next try does
            the rest.
    """
    is_complete = True

    def work() -> list[str]:
        nonlocal is_complete
        topic = topics[params["topic"]]
        if not topic.landed:
            raise Refused(f"topic {topic.name} has no landing table, because it is declared without landed=True")
        lines, is_complete = gap_lines(topic, conn_id) if params["dry_run"] else _repair(topic, conn_id)
        return lines

    report = repair_services("repair_landing", params, by, work, repeats=True)
    return {**report, "is_complete": is_complete}


def _repair(topic: Topic, conn_id: str) -> tuple[list[str], bool]:
    from include.streams.landing.broken_files import read_with_repair
    from include.streams.landing.gaps import RUNBOOK
    from include.streams.landing.repair import Repaired, repair
    from include.streams.landing.verification import verify

    name = raw_table(topic)

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
    return lines, not (repaired.lost or after.missing or after.snapshot.lost)


def operate_connector(
    params: OperateConnector, by: Actor, *, topics: Registry, connect: Connect, kafka_conn_id: str = KAFKA_CONN_ID
) -> RepairReport:
    """Show, restart, stop, resume or remove a connector, or move it past records that it cannot read.

    Each action is safe to repeat, and loses no record.

    Args:
        params: The connector and the action. A dry run shows the connector's status.
        by: Who does it.
        topics: The project's topics.
        connect: Kafka Connect.
        kafka_conn_id: The Airflow connection of Kafka.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, or there is no such connector, or it must not be removed.
        ConnectUnreachable, ConnectRefused: Connect does not answer, or refuses.
        KafkaException, ReadingStalled: Kafka does not answer.
    """
    name, action = params["connector"], ConnectorAction(params["action"])

    def work() -> list[str]:
        if action is ConnectorAction.status:
            return [_status(topic_of(name, topics), connect, kafka_conn_id)]
        if action is ConnectorAction.remove:
            return _remove(name, topics, connect, dry_run=params["dry_run"])
        topic = topic_of(name, topics)
        if params["dry_run"]:
            return [_status(topic, connect, kafka_conn_id), f"connector {name}: {_PLANS[action]}"]
        return _ACTIONS[action](topic, connect, kafka_conn_id)

    # To look needs no reason.
    is_look = action is ConnectorAction.status
    return repair_services("operate_connector", {**params, "dry_run": True} if is_look else params, by, work)


def topic_of(connector: str, topics: Iterable[Topic]) -> Topic:
    """The landed topic of a connector; raises Refused if there is none."""
    from include.streams.landing.connectors import landed_topics

    by_connector = {connector_name(topic): topic for topic in landed_topics(topics)}
    if connector not in by_connector:
        raise Refused(
            f"no landed topic has a connector {connector!r}; there are {', '.join(sorted(by_connector)) or 'none'}"
        )
    return by_connector[connector]


def _status(topic: Topic, connect: Connect, kafka_conn_id: str) -> str:
    return status_line(topic, connect, kafka_conn_id)[0]


def status_line(topic: Topic, connect: Connect, kafka_conn_id: str = KAFKA_CONN_ID) -> tuple[str, bool]:
    """A connector's state, its tasks and its lag as one line; and whether it runs."""
    from include.streams.landing.connector_status import ConnectorStatus, sink_progress

    status = ConnectorStatus.of(connect, connector_name(topic))
    progress = sink_progress(topic, kafka_conn_id)
    line = f"{connector_name(topic)}  {status}  {topic.name} -> {raw_table(topic)}  lag {progress.lag}"
    return line + (f"  {status.cause}" if status.cause else ""), status.is_running


def _restart(topic: Topic, connect: Connect, kafka_conn_id: str) -> list[str]:
    from include.streams.landing.connector_status import ConnectorStatus
    from include.streams.landing.watchdog import forget_restarts

    name = connector_name(topic)
    status = ConnectorStatus.of(connect, name)
    if not connect.restart(name, only_failed=status.has_failed):
        raise _missing(name)
    forget_restarts(name)
    return [f"connector {name}: restarted {'its failed tasks' if status.has_failed else 'with all its tasks'}"]


def _stop(topic: Topic, connect: Connect, kafka_conn_id: str) -> list[str]:
    name = connector_name(topic)
    if not connect.stop(name):
        raise _missing(name)
    return [f"connector {name}: stopped; `resume` resumes it"]


def _resume(topic: Topic, connect: Connect, kafka_conn_id: str) -> list[str]:
    from include.streams.landing.connectors import preset_coordinator

    name = connector_name(topic)
    if connect.config(name) is None:
        raise _missing(name)
    # Needed because Kafka deletes the committed offsets of a group without members after a week.
    changes = preset_coordinator(topic, kafka_conn_id)
    connect.resume(name)
    return [*changes, f"connector {name}: resumed"]


def _step_over(topic: Topic, connect: Connect, kafka_conn_id: str) -> list[str]:
    from include.streams.landing.stepping import step_over
    from include.streams.landing.watchdog import forget_restarts

    steps = step_over(topic, connect, kafka_conn_id)
    if not steps:
        return [
            f"{topic.name}: no record with a negative timestamp between the sink's offsets and the end of the topic"
        ]
    forget_restarts(connector_name(topic))
    return [f"{topic.name} {step}" for step in steps]


def _remove(name: str, topics: Registry, connect: Connect, *, dry_run: bool) -> list[str]:
    from include.streams.landing.connectors import landed_topics, left_over
    from include.streams.landing.removal import remove

    if dry_run:
        left = left_over(landed_topics(topics), connect)
        return [left.get(name, f"connector {name}: is not left over, so only its alarms would be closed, if any")]
    try:
        return remove(name, topics, connect)
    except (LookupError, ValueError) as error:
        raise Refused(str(error)) from None


def _missing(name: str) -> Refused:
    return Refused(f"connector {name} does not exist; `apply` creates it, and so does the Dag prepare_services")


_ACTIONS = {
    ConnectorAction.restart: _restart,
    ConnectorAction.stop: _stop,
    ConnectorAction.resume: _resume,
    ConnectorAction.step_over: _step_over,
}
_PLANS = {
    ConnectorAction.restart: "its failed tasks would be restarted, or all of its tasks if none has failed",
    ConnectorAction.stop: "would be stopped; nothing lands until it is resumed",
    ConnectorAction.resume: "would be resumed",
    ConnectorAction.step_over: "would be stopped, moved past records with a negative timestamp, and resumed",
}
