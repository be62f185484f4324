"""The gauges that the Dag `maintain` sends from the operational database: open claims, outbox, alarms, gaps.

Each series is sent at every call, also with 0: a collector keeps the last value of a series that is not sent any more,
and an alert would never end.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import Connection, func, select

from include.streams.kafka.claims import count_open_claims
from include.streams.landing.gaps import missing_offsets
from include.streams.operations import metrics
from include.streams.operations.alarms import SENDER, open_alarms
from include.streams.operations.database import begin
from include.streams.operations.tables import outbox

log = logging.getLogger(__name__)


def show_gauges(consumers: Iterable[str], kinds: Iterable[str], landed_topics: Iterable[str]) -> None:
    """Send the gauges.

    Never raises: an error is logged, and the next call sends again.

    Args:
        consumers: The names of the declared consumers of both lanes.
        kinds: The declared kinds of alarms.
        landed_topics: The names of the topics that land.
    """
    names = list(consumers)
    try:
        with begin() as connection:
            open_claims = count_open_claims(connection, names)
            rows = _outbox_rows(connection)
            missing = missing_offsets(connection)
            alarms = Counter(alarm.kind for alarm in open_alarms(connection))
    except Exception as error:
        log.warning("no gauges are sent: %s: %s", type(error).__name__, error)
        return
    for name in names:
        number, age = open_claims.get(name, (0, timedelta()))
        metrics.OPEN_CLAIMS.show(number, name)
        metrics.OLDEST_CLAIM.show(age, name)
    # Also the rows of consumers that are no longer declared.
    for name in dict.fromkeys((*names, SENDER, *(consumer for consumer, _ in rows))):
        pending, age = rows.get((name, "pending"), (0, timedelta()))
        metrics.OUTBOX.show(pending, name, "pending")
        metrics.OUTBOX.show(rows.get((name, "failed"), (0, timedelta()))[0], name, "failed")
        metrics.OUTBOX_AGE.show(age, name)
    for kind in dict.fromkeys((*kinds, *alarms)):
        metrics.ALARMS.show(alarms[kind], kind)
    by_topic: Counter[str] = Counter(dict.fromkeys(landed_topics, 0))
    for (topic, _), number in missing.items():
        by_topic[topic] += number
    for topic, number in by_topic.items():
        metrics.GAPS.show(number, topic)


def _outbox_rows(connection: Connection) -> dict[tuple[str, str], tuple[int, timedelta]]:
    """{(consumer, state): number and greatest age of its rows}."""
    found: dict[tuple[str, str], tuple[int, timedelta]] = {}
    age = func.now() - func.min(outbox.c.created_at)
    # Two queries, because each state has an index of its own.
    for state in ("pending", "failed"):
        query = select(outbox.c.consumer, func.count(), age).where(outbox.c.state == state)
        for consumer, number, oldest in connection.execute(query.group_by(outbox.c.consumer)):
            found[consumer, state] = number, oldest
    return found
