"""Repairs of rows of the operational database: alarms."""

from __future__ import annotations

from sqlalchemy import Connection, delete

from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, last_closed
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, one_line, repair_rows
from include.streams.operations.tables import heartbeats


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
