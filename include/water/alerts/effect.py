"""The effect of the consumer `raise_alerts`: an event creates an alert, makes one more severe, or changes nothing."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from sqlalchemy import Connection, Executable, func
from sqlalchemy.dialects.postgresql import insert

from include.streams import Message, outbox
from include.water.alerts.rules import Alert, assess
from include.water.consumers import RAISE_ALERTS
from include.water.tables import alerts
from include.water.topics import ALERTS_RAISED, AlertRaised

log = logging.getLogger(__name__)

WEBHOOK_CONN_ID = "alert_webhook"
# The columns that a more severe message replaces.
_CONTENT = (
    "severity",
    "severity_rank",
    "district_id",
    "site_id",
    "title",
    "source_event_id",
    "source_topic",
    "source_partition",
    "source_offset",
    "source_timestamp",
)


def _upsert() -> Executable:
    statement = insert(alerts)
    return statement.on_conflict_do_update(
        index_elements=[alerts.c.alert_id],
        set_={
            **{name: statement.excluded[name] for name in _CONTENT},
            "revision": alerts.c.revision + 1,
            "updated_at": func.now(),
        },
        where=alerts.c.severity_rank < statement.excluded.severity_rank,
    ).returning(alerts.c.revision)


# Built once: building the statement for every alert takes longer than PostgreSQL takes to run it.
_UPSERT = _upsert()


def raise_alert(connection: Connection, message: Message) -> None:
    """Write the alert for a message, and its notifications, in the caller's transaction.

    An earthquake or leak has one alert, however many messages are about it:
    - the first message that the rules find severe enough raises the alert (revision 1);
    - a later, more severe message replaces the content and increments the revision; people are notified again;
    - a later message of the same or lower severity changes nothing, and nobody is notified: the crew is on its way, and
      only a person withdraws an alert. So the result does not depend on the order in which messages are handled.

    Each new alert and each rise in severity is a message on `alerts.raised` and a request to the connection
    `alert_webhook`. The outbox delivers both after the commit.

    Args:
        connection: A transaction on the operational database.
        message: A message on `seismic.events` or `leaks.detected`.
    """
    alert = assess(message.event)
    if alert is None:
        return
    revision = _write(connection, alert, message)
    if revision is None:
        log.info("alert unchanged: id=%s severity=%s message=%s", alert.alert_id, alert.severity, message)
        return
    raised = AlertRaised(
        version=1,
        alert_id=alert.alert_id,
        revision=revision,
        kind=alert.kind,
        severity=alert.severity,
        district_id=alert.district_id,
        site_id=alert.site_id,
        title=alert.title,
        raised_at=datetime.now(UTC),
        source_event_id=message.event.event_id,
        source_topic=message.topic,
        source_partition=message.partition,
        source_offset=message.offset,
    )
    outbox.add_message(connection, consumer=RAISE_ALERTS.name, topic=ALERTS_RAISED, event=raised)
    outbox.add_request(
        connection, consumer=RAISE_ALERTS.name, conn_id=WEBHOOK_CONN_ID, payload=raised.model_dump(mode="json")
    )
    log.info(
        "alert raised: id=%s revision=%d severity=%s message=%s",
        alert.alert_id,
        revision,
        alert.severity,
        message,
    )


def _write(connection: Connection, alert: Alert, message: Message) -> int | None:
    """Insert the alert or raise its severity; returns its revision, or None if nothing changes.

    One statement does both. Otherwise two tasks with revisions of one earthquake could both find no row, or both find
    the lower severity. With one statement, the second task waits for the first, and compares with the first one's row.
    """
    row = {
        "alert_id": alert.alert_id,
        "revision": 1,
        "kind": alert.kind.value,
        "severity": alert.severity.value,
        "severity_rank": alert.severity.rank,
        "district_id": alert.district_id,
        "site_id": alert.site_id,
        "title": alert.title,
        "source_event_id": message.event.event_id,
        "source_topic": message.topic,
        "source_partition": message.partition,
        "source_offset": message.offset,
        "source_timestamp": message.timestamp,
    }
    return connection.execute(_UPSERT, row).scalar_one_or_none()
