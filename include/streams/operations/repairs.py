"""Repairs of rows of the operational database: alarms, and the outbox."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, last_closed
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, one_line, repair_rows
from include.streams.operations.tables import heartbeats, outbox, outbox_routes

# Rows of the outbox that a report lists.
MAX_LISTED = 20
# An error may contain the answer of a receiver.
MAX_ERROR = 200


class CloseAlarm(RepairParams):
    """The parameters of `close`.

    Attributes:
        source: The alarm's source: a consumer, table, connector, topic, Dag or task.
        kind: Its kind, such as messages_lost.
        key: Its key; "" for an alarm without one.
    """

    source: str
    kind: str
    key: str


def close(params: CloseAlarm, by: Actor) -> RepairReport:
    """Close an alarm whose cause was removed. If the cause still exists, the alarm opens again.

    The alarm `dag_silent` is about a Dag that was removed on purpose: the time of the Dag's last run is deleted too.
    Otherwise the next check would open the alarm again. A Dag that runs again records its time again.

    Args:
        params: The alarm.
        by: Who closes it; written to the alarm's text, with the reason.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, or no such alarm is open.
    """
    source, kind, key = params["source"], params["kind"], params["key"]
    named = " ".join(filter(None, (kind, key))) + f" of {source}"

    def work(connection: Connection) -> list[str]:
        note = f"closed by {by.name}: {one_line(params['reason'])}"
        if not close_alarm(connection, source, kind, note, key=key):
            last = last_closed(connection, source, kind, key)
            before = f" (the last one was closed at {last:%Y-%m-%d %H:%M:%S %Z})" if last else ""
            raise Refused(f"no alarm {named} is open{before}; `alarms` lists the open ones")
        lines = [f"closed: {named}"]
        if kind == AlarmKind.dag_silent:
            gone = connection.execute(delete(heartbeats).where(heartbeats.c.dag_id == source)).rowcount
            lines += [f"forgotten: when the Dag {source} last ran"] * gone
        return lines

    return repair_rows("close_alarm", params, by, work)


class OutboxAction(StrEnum):
    """What `repair_outbox` does."""

    # Set the rows to pending, with all their attempts.
    deliver_again = "deliver_again"
    # Do not deliver the rows any more.
    skip = "skip"
    # Try unavailable receivers at once, without the wait for the next attempt.
    deliver_now = "deliver_now"


class RepairOutbox(RepairParams):
    """The parameters of `repair_outbox`.

    Attributes:
        action: An `OutboxAction`.
        state: For `deliver_again` and `skip`: rows in this state (failed, skipped or pending).
        consumer: Only rows of this consumer; None for all.
        destination: Only rows for this topic or Airflow HTTP connection; None for all.
        row: Only the row with this id; None for all.
    """

    action: str
    state: str
    consumer: str | None
    destination: str | None
    row: str | None


def repair_outbox(params: RepairOutbox, by: Actor) -> RepairReport:
    """Deliver rows of the outbox again or at once, or skip them.

    A row that is delivered again has the same idempotency key as before.

    Args:
        params: What to do, and with which rows.
        by: Who does it.

    Returns:
        The report: the numbers by consumer and destination, and the first rows, without their content.

    Raises:
        Refused: The reason is empty, the selection would take every row, or it takes none.
    """
    action = OutboxAction(params["action"])

    def work(connection: Connection) -> list[str]:
        if action is OutboxAction.deliver_now:
            return _deliver_now(connection, params)
        chosen = [outbox.c.state == params["state"], *_chosen(params)]
        if len(chosen) == 1 and not params["dry_run"]:
            raise Refused("name a consumer, a destination or a row: without one, every row would be taken")
        if action is OutboxAction.skip and params["state"] == "skipped":
            raise Refused("the rows are skipped already: choose the state failed or pending")
        number = func.count().label("number")
        columns = outbox.c.consumer, outbox.c.destination
        lines = [
            f"{row.number} {params['state']} rows of {row.consumer} to {row.destination}: {_RESULTS[action]}"
            for row in connection.execute(select(*columns, number).where(*chosen).group_by(*columns).order_by(*columns))
        ]
        if not lines:
            raise Refused(f"no {params['state']} row is in the selection")
        details = select(outbox.c.id, outbox.c.attempts, outbox.c.last_error).where(*chosen)
        lines += [
            f"{row.id}: {row.attempts} attempts{_error(row.last_error)}"
            for row in connection.execute(details.order_by(outbox.c.sequence).limit(MAX_LISTED))
        ]
        values = {"state": "pending", "attempts": 0, "due_at": func.now()}
        if action is OutboxAction.skip:
            values = {"state": "skipped"}
        connection.execute(update(outbox).where(*chosen).values(values))
        return lines

    return repair_rows("repair_outbox", params, by, work)


_RESULTS = {
    OutboxAction.deliver_again: "pending, deliver_outbox delivers them within seconds",
    OutboxAction.skip: "skipped, they will not be delivered",
}


def _chosen(params: RepairOutbox) -> list[ColumnElement[bool]]:
    chosen = [outbox.c[name] == params[name] for name in ("consumer", "destination") if params[name]]
    if params["row"]:
        try:
            chosen.append(outbox.c.id == UUID(params["row"]))
        except ValueError:
            raise Refused(f"{params['row'][:40]!r} is no id of a row: copy it from the dry run") from None
    return chosen


def _deliver_now(connection: Connection, params: RepairOutbox) -> list[str]:
    away = [outbox_routes.c.failures > 0]
    away += [outbox_routes.c[name] == params[name] for name in ("consumer", "destination") if params[name]]
    freed = update(outbox_routes).where(*away).values(retry_at=func.now()).returning(outbox_routes)
    lines = [
        f"{row.consumer} to {row.destination}: tried at once, after {row.failures} failed attempts"
        f"{_error(row.last_error)}"
        for row in connection.execute(freed)
    ]
    if not lines:
        raise Refused("no receiver in the selection is known to be unavailable, so no delivery waits for one")
    return sorted(lines)


def _error(text: str | None) -> str:
    return f" ({text[:MAX_ERROR].encode('unicode_escape').decode()})" if text else ""
