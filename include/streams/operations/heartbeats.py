"""Alarms about failed tasks of Dags that own no claim, and about maintenance Dags that do not run.

A callback of the task reports its failure. A Dag that owns a claim needs no callback: its claim stays open, and an
alarm reports open claims. A Dag does not run if it is paused, if its file does not import, or if the scheduler starts
no runs. Another Dag detects this: each maintenance Dag records when it ran, and checks the records of the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from include.streams.operations.alarm_kinds import AlarmKind

log = logging.getLogger(__name__)

# The alarm opens after this many missed runs, but not before LEAST_SILENCE, because a deploy restarts the scheduler.
MISSED_RUNS = 3
LEAST_SILENCE = timedelta(minutes=15)
# The longest partition key, in characters, that an alarm's key contains unchanged.
MAX_KEY_LENGTH = 100
_PLAIN = "[A-Za-z0-9._:-]"


def report_failure(context: Mapping[str, Any]) -> None:
    """Open the alarm `dag_failed` of a task; its `on_failure_callback`.

    If the operational database is unavailable, which may be the cause of the failure, the alarm is sent to the webhook
    directly.

    Args:
        context: The context of Airflow's callback.
    """
    (source, key), error = _about(context), context.get("exception")
    message = (
        f"run {context['ti'].run_id} failed: {type(error).__name__ if error else 'its process ended'}; see the log"
    )
    message += f" of the task, then clear it. Meanwhile the work of {context['ti'].dag_id} is not done"

    from include.streams.operations.alarm_delivery import deliver_alarms
    from include.streams.operations.alarms import named, open_alarm
    from include.streams.operations.database import begin

    try:
        with begin() as connection:
            open_alarm(connection, source, AlarmKind.dag_failed, message, key=key)
        deliver_alarms()
    except Exception as unavailable:
        log.error("alarm: %s %s (not written: %s)", named(source, AlarmKind.dag_failed, key), message, unavailable)
        _post(source, key, message)


def report_end(context: Mapping[str, Any]) -> None:
    """Close the alarm `dag_failed` of a task; its `on_success_callback` and `on_skipped_callback`.

    Args:
        context: The context of Airflow's callback.
    """
    from include.streams.operations.alarms import close_alarm
    from include.streams.operations.database import begin

    source, key = _about(context)
    with begin() as connection:
        close_alarm(connection, source, AlarmKind.dag_failed, key=key)
        if key:
            # The previous release wrote the key behind the source.
            close_alarm(connection, _old_source(context), AlarmKind.dag_failed)


# Callbacks of a task that reports its failures; `task_defaults` sets them.
REPORTED = {
    "on_failure_callback": report_failure,
    "on_success_callback": report_end,
    "on_skipped_callback": report_end,
}


def beat(dag_id: str, every: timedelta) -> list[str]:
    """Record that this Dag runs, and open alarms about other Dags that are silent.

    Args:
        dag_id: The Dag that calls this.
        every: The time between two of its runs.

    Returns:
        The ids of the silent Dags.
    """
    from sqlalchemy import func, select
    from sqlalchemy.dialects.postgresql import insert

    from include.streams.operations.alarms import close_alarm, open_alarm
    from include.streams.operations.database import begin
    from include.streams.operations.tables import heartbeats

    silent = []
    with begin() as connection:
        row = insert(heartbeats).values(dag_id=dag_id, every_seconds=int(every.total_seconds()))
        now = {"beat_at": func.now(), "every_seconds": row.excluded.every_seconds}
        connection.execute(row.on_conflict_do_update(index_elements=["dag_id"], set_=now))
        close_alarm(connection, dag_id, AlarmKind.dag_silent)
        age = func.extract("epoch", func.now() - heartbeats.c.beat_at).label("age")
        for other in connection.execute(select(heartbeats, age).where(heartbeats.c.dag_id != dag_id)):
            allowed = max(timedelta(seconds=other.every_seconds) * MISSED_RUNS, LEAST_SILENCE)
            if timedelta(seconds=float(other.age)) <= allowed:
                continue
            silent.append(other.dag_id)
            open_alarm(
                connection,
                other.dag_id,
                AlarmKind.dag_silent,
                f"last ran at {other.beat_at:%Y-%m-%d %H:%M:%S %Z}, and should run every {other.every_seconds} "
                "seconds; unpause it, or see its import errors and its last run. If it was removed on purpose, close "
                "this alarm (Dag close_alarm)",
            )
    return silent


def _about(context: Mapping[str, Any]) -> tuple[str, str]:
    """The alarm's source, which is the task, and its key: `<partition key>`, `map_index=<n>`, or both with a comma."""
    ti = context["ti"]
    # The success of one partition key must not close the alarm of another key, whose work is not done. The same holds
    # for mapped task instances. A key that is emitted again has the same alarm.
    parts = [_partition_key(context), "" if ti.map_index in (None, -1) else f"map_index={ti.map_index}"]
    return f"{ti.dag_id}.{ti.task_id}", ",".join(filter(None, parts))


def _old_source(context: Mapping[str, Any]) -> str:
    ti, key = context["ti"], _partition_key(context)
    mapped = "" if ti.map_index in (None, -1) else f"[{ti.map_index}]"
    return f"{ti.dag_id}.{ti.task_id}{mapped}" + (f"@{key}" if key else "")


def _partition_key(context: Mapping[str, Any]) -> str:
    key = getattr(context.get("dag_run"), "partition_key", None)
    return _plain(key) if key else ""


def _plain(key: str) -> str:
    """The key itself if it is short and has only plain characters; otherwise its beginning and a digest.

    A partition key may come from a message. The alarm's key is printed, and a person types it into `close-alarm`.
    """
    if re.fullmatch(f"{_PLAIN}{{1,{MAX_KEY_LENGTH}}}", key):
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return re.sub(f"(?!{_PLAIN}).", "_", key[:MAX_KEY_LENGTH], flags=re.DOTALL) + f"~{digest}"


def _post(source: str, key: str, message: str) -> None:
    from include.streams.compat.connections import LookUpFailed
    from include.streams.operations.alarms import WEBHOOK_CONN_ID, notification
    from include.streams.operations.webhooks import Requests

    message = AlarmKind.dag_failed.with_runbook(message)
    body = json.dumps(notification("opened", source, AlarmKind.dag_failed, key, message))
    request: Any = SimpleNamespace(id=uuid.uuid4(), sequence=0, body=body)
    requests = Requests()
    try:
        if requests.why_skipped(WEBHOOK_CONN_ID) is not None:
            return
        attempt = requests.deliver(WEBHOOK_CONN_ID, [request], time.monotonic() + 1)
        answer, error = attempt.answers.get(0, (None, attempt.away))
    except LookUpFailed as failed:
        answer, error = None, str(failed)
    if answer != "delivered":
        log.error("the alarm was not delivered to the webhook either: %s", error)
