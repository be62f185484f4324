"""Restart failed connectors, and raise alarms about problems that Connect does not show.

A failed task of Kafka Connect stays failed until it is restarted; a restart loses nothing. The state RUNNING proves
little: the tasks commit their offsets before the coordinator has committed their files to the table. So the offsets of
both groups are watched.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import BigInteger, Column, Connection, Row, Table, Text, func, select, update
from sqlalchemy.dialects.postgresql import insert

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.kafka.reading import ReadingStalled
from include.streams.kafka.watch import CheckFailed, watch_transactions
from include.streams.landing import stepping
from include.streams.landing.connect import CONN_ID, Connect, ConnectRefused, ConnectSilent, ConnectUnreachable
from include.streams.landing.connector_status import MISSING, ConnectorStatus, SinkProgress, sink_progress
from include.streams.landing.connectors import landed_topics
from include.streams.landing.tables import connector_name
from include.streams.operations import samples
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.operations.each import do_each, shuffled
from include.streams.operations.tables import Timestamp, metadata, now_column

log = logging.getLogger(__name__)

# The key of an advisory lock. The number is arbitrary, but all watchdogs must use the same.
STEPPING_LOCK = 7_401_514

# One row per connector.
connector_watch = Table(
    "connector_watch",
    metadata,
    Column("connector", Text, primary_key=True),
    # How often it was restarted since it was last healthy, and when it was last restarted.
    Column("restarts", BigInteger, server_default="0", nullable=False),
    Column("restarted_at", Timestamp),
    # The sum of the committed offsets of the tasks, and of the coordinator, and when each sum last changed. -1: none
    # yet.
    Column("sink_offsets", BigInteger, server_default="-1", nullable=False),
    now_column("sink_moved_at"),
    Column("table_offsets", BigInteger, server_default="-1", nullable=False),
    now_column("table_moved_at"),
)


@dataclass(frozen=True)
class Limits:
    """When to restart a connector, and when to raise an alarm."""

    # Records that the sink has not read. It reads some ten thousand per second, so with a larger lag it is too slow.
    max_lag: int = 1_000_000
    # A few commit intervals. A killed coordinator is replaced within its session timeout, which is shorter.
    stalled_after: timedelta = timedelta(minutes=10)
    # A producer's transactions may take one minute by default. A transaction that is open for longer may never end.
    max_transaction_age: timedelta = timedelta(minutes=5)
    # At once, then after 2, 4, 8 ... minutes, at most an hour: enough for an outage of seven hours without a person.
    max_restarts: int = 12
    first_pause: timedelta = timedelta(minutes=2)
    longest_pause: timedelta = timedelta(hours=1)
    # A restarted task runs for a moment before it fails again. A connector counts as healthy when it has run this long.
    well_after: timedelta = timedelta(minutes=10)

    def pause(self, restarts: int) -> timedelta:
        """The pause between the last restart and the next.

        Args:
            restarts: How often the connector was restarted so far, at least 1.
        """
        return min(self.first_pause * 2 ** min(restarts - 1, 20), self.longest_pause)


def check_connectors(
    topics: Iterable[Topic],
    limits: Limits | None = None,
    *,
    conn_id: str = CONN_ID,
    kafka_conn_id: str = KAFKA_CONN_ID,
) -> list[str]:
    """Check the connector of every landed topic, even if the check of another one fails.

    If Connect does not answer, an alarm is raised, and the groups' offsets are still checked.

    Args:
        topics: Topics that are not landed are ignored.
        limits: When to restart and when to raise an alarm.
        conn_id: The Airflow connection of Kafka Connect.
        kafka_conn_id: The Airflow connection of Kafka.

    Returns:
        The names of the connectors that were restarted or moved past records.

    Raises:
        AirflowNotFoundException: The connection is not defined.
        CheckFailed: At least one topic could not be checked, for example because the broker is unavailable or refuses.
            Raised after all others were checked. The text also names the connectors that were restarted.
    """
    checks = _Checks(Connect(conn_id), kafka_conn_id, limits or Limits())
    failed: CheckFailed | None = None
    try:
        by_topic = {f"topic {topic.name}": partial(checks.check, topic) for topic in landed_topics(topics)}
        do_each(shuffled(by_topic), CheckFailed)
    except CheckFailed as error:
        failed = error
    if not checks.is_unreachable:
        with begin() as connection:
            close_alarm(connection, conn_id, AlarmKind.connect_unreachable)
    if failed is None:
        return checks.restarted
    if not checks.restarted:
        raise failed
    # A failed task has no result, so its error must name the restarted connectors.
    raise CheckFailed(f"{failed}; restarted or moved past records: {', '.join(checks.restarted)}") from failed


class _Checks:
    """The checks of the topics in one call.

    Attributes:
        restarted: The names of the connectors that were restarted or moved past records.
        is_unreachable: Connect did not answer, or refused, at least once.
    """

    def __init__(self, connect: Connect, kafka_conn_id: str, limits: Limits) -> None:
        self._connect, self._kafka_conn_id, self._limits = connect, kafka_conn_id, limits
        self._silent: ConnectSilent | None = None
        self.restarted: list[str] = []
        self.is_unreachable = False

    def check(self, topic: Topic) -> None:
        """Check one topic. Raises what the databases, Connect and Kafka raise."""
        name = connector_name(topic)
        status: ConnectorStatus | None = None
        failed: Exception | None = None
        try:
            status = self._restart_if_failed(topic, name)
        except (ConnectUnreachable, ConnectRefused) as error:
            self._note_unreachable(error)
        except Exception as error:
            log.warning("connector=%s cannot be checked in Connect: %r", name, error)
            failed = error
        progress = sink_progress(topic, self._kafka_conn_id)
        _note_progress(name, progress, self._limits)
        with begin() as connection:
            state, cause = (str(status), status.cause) if status else (None, None)
            samples.record_landing(connection, topic.name, connector=state, cause=cause, not_landed=progress.lag)
        log.info("checked: connector=%s state=%s lag=%d", name, status or "unknown", progress.lag)
        # Raised last, so that an error of Connect does not prevent the alarms about the progress.
        if failed is not None:
            raise failed

    def _restart_if_failed(self, topic: Topic, name: str) -> ConnectorStatus:
        if self._silent is not None:
            # Each topic would wait as long again, and together they would use up the task's time.
            raise self._silent
        status = ConnectorStatus.of(self._connect, name)
        if status.refuses_timestamp or stepping.is_stepping(name):
            # A restart would fail at the same record.
            if _step_over(topic, self._connect, self._kafka_conn_id):
                self.restarted.append(name)
            status = ConnectorStatus.of(self._connect, name)
        if _note_state(name, status, self._limits):
            self._connect.restart(name)
            self.restarted.append(name)
        return status

    def _note_unreachable(self, error: ConnectUnreachable | ConnectRefused) -> None:
        self.is_unreachable = True
        if isinstance(error, ConnectSilent):
            self._silent = error
        # Opened at once, because the task may time out before all topics are checked.
        with begin() as connection:
            text = f"{error}: no record lands"
            open_alarm(connection, self._connect.conn_id, AlarmKind.connect_unreachable, text)


def _step_over(topic: Topic, connect: Connect, kafka_conn_id: str) -> bool:
    """Move the connector past records that Connect refuses.

    Returns:
        Whether it was moved. False when another watchdog moves it, or when there is no such record.
    """
    from confluent_kafka import KafkaException

    name = connector_name(topic)
    with begin() as connection:
        lock = func.pg_try_advisory_xact_lock(func.hashtextextended(name, STEPPING_LOCK))
        if not connection.scalar(select(lock)):
            return False
        try:
            if not stepping.step_over(topic, connect, kafka_conn_id):
                return False
            # Recorded as a restart, so that the alarm about the records stays open until the tasks have run for a
            # while.
            _locked_row(connection, name)
            _update(connection, name, restarted_at=func.now())
            return True
        except (KafkaException, ReadingStalled) as error:
            # Not raised, so that the alarm about the failed connector opens.
            log.warning(
                "connector=%s: the refused record was not found; the next check searches again: %s", name, error
            )
            return False


def forget_restarts(name: str) -> None:
    """Reset the number of restarts, because a person has acted: the watchdog may restart the connector again."""
    with begin() as connection:
        connection.execute(update(connector_watch).where(connector_watch.c.connector == name).values(restarts=0))
        close_alarm(connection, name, AlarmKind.connector_given_up)


def _note_state(name: str, status: ConnectorStatus, limits: Limits) -> bool:
    """Open or close the alarms about Connect's status.

    Returns:
        Whether the connector is to be restarted now; the restart is then recorded.
    """
    with begin() as connection:
        row = _locked_row(connection, name)
        now = connection.scalar(select(func.now()))
        if status.connector == MISSING:
            text = "the connector does not exist: the Dag prepare_services creates it"
            open_alarm(connection, name, AlarmKind.connector_missing, text)
            return False
        close_alarm(connection, name, AlarmKind.connector_missing)
        if not status.has_failed:
            is_well = row.restarted_at is None or now - row.restarted_at >= limits.well_after
            if status.is_running and is_well:
                _update(connection, name, restarts=0, restarted_at=None)
                close_alarm(connection, name, AlarmKind.connector_failed)
                close_alarm(connection, name, AlarmKind.connector_given_up)
                close_alarm(connection, name, AlarmKind.records_stepped_over)
            return False
        open_alarm(connection, name, AlarmKind.connector_failed, f"{status}: {status.cause}")
        if row.restarts >= limits.max_restarts:
            text = f"failed again after {row.restarts} restarts and is not restarted any more: {status.cause}"
            open_alarm(connection, name, AlarmKind.connector_given_up, text)
            return False
        if row.restarts and now - row.restarted_at < limits.pause(row.restarts):
            return False
        _update(connection, name, restarts=row.restarts + 1, restarted_at=now)
    log.warning("restarting: connector=%s restart=%d cause=%s", name, row.restarts + 1, status.cause)
    return True


def _note_progress(name: str, progress: SinkProgress, limits: Limits) -> None:
    with begin() as connection:
        row = _locked_row(connection, name)
        now = connection.scalar(select(func.now()))
        sink, table = -1 if progress.sink is None else progress.sink, -1 if progress.table is None else progress.table
        changes = {}
        if sink != row.sink_offsets or not progress.lag:
            changes |= {"sink_offsets": sink, "sink_moved_at": now}
        if table != row.table_offsets:
            changes |= {"table_offsets": table, "table_moved_at": now}
        if changes:
            row = _update(connection, name, **changes)
        _alarm(
            connection, name, AlarmKind.sink_stalled, now - row.sink_moved_at > limits.stalled_after,
            f"{progress.lag} records wait, and none was read since {row.sink_moved_at.isoformat(timespec='seconds')}",
        )  # fmt: skip
        _alarm(
            connection, name, AlarmKind.landing_stalled, now - row.table_moved_at > limits.stalled_after,
            f"no commit of the table has succeeded since {row.table_moved_at.isoformat(timespec='seconds')}, whatever "
            "the status of the tasks is",
        )  # fmt: skip
        text = f"{progress.lag} records behind, limit {limits.max_lag}"
        if progress.lag > limits.max_lag:
            open_alarm(connection, name, AlarmKind.sink_lag, text)
        elif progress.lag <= limits.max_lag / 2:
            close_alarm(connection, name, AlarmKind.sink_lag)
        watch_transactions(
            connection, name, progress.log, progress.held, limits.max_transaction_age, is_whole=progress.is_whole
        )


def _alarm(connection: Connection, name: str, kind: AlarmKind, is_wrong: bool, text: str) -> None:
    if is_wrong:
        open_alarm(connection, name, kind, text)
    else:
        close_alarm(connection, name, kind)


def _locked_row(connection: Connection, name: str) -> Row:
    """The connector's row, locked until the transaction ends, so that only one of two watchdogs restarts it."""
    connection.execute(insert(connector_watch).values(connector=name).on_conflict_do_nothing())
    row = select(connector_watch).where(connector_watch.c.connector == name).with_for_update()
    return connection.execute(row).one()


def _update(connection: Connection, name: str, **values: object) -> Row:
    row = update(connector_watch).where(connector_watch.c.connector == name)
    return connection.execute(row.values(**values).returning(connector_watch)).one()
