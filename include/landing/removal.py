"""Removing connectors whose topic is no longer landed: by a person, never by `apply`.

A registry from which a topic has vanished may be one that is wrong, or another project's.
"""

from collections.abc import Iterable

from sqlalchemy import delete

from include.contracts import Topic
from include.landing.connect import Connect
from include.landing.connectors import landed, left_over
from include.landing.tables import connector_name
from include.landing.watchdog import connector_watch
from include.operations.alarms import close_alarm, open_alarms
from include.operations.database import begin


def remove(name: str, topics: Iterable[Topic], connect: Connect) -> list[str]:
    """Remove a connector that `left_over` names, then its alarms, which nobody looks after any more.

    Killed in between, the next call does the rest. Landing table, control topic and the groups' offsets stay: a topic
    that is landed again goes on where it was. Returns what changed.

    Raises ValueError when a landed topic needs the connector, LookupError when there is nothing to remove.
    """
    topics = landed(topics)
    if name in map(connector_name, topics):
        raise ValueError(
            f"connector {name} lands a topic of the registry, and `apply` would make it again: take landed=True from "
            f"the topic first; `stop` ends it for a while"
        )
    found = left_over(topics, connect)
    changes = [f"connector {name}: removed"] if name in found and connect.delete(name) else []
    changes += _forget(name)
    if not changes:
        raise LookupError(
            f"no connector {name} is left over from a topic that is no longer landed; there are "
            f"{', '.join(sorted(found)) or 'none'}"
        )
    return changes


def _forget(name: str) -> list[str]:
    kinds = [alarm.kind for alarm in open_alarms() if alarm.source == name]
    with begin() as connection:
        mine = delete(connector_watch).where(connector_watch.c.connector == name).returning(connector_watch.c.connector)
        if connection.execute(mine).first() is None:
            # Not a name of ours: alarms of others stay.
            return []
        closed = [kind for kind in kinds if close_alarm(connection, name, kind, "the connector was removed")]
    return [f"connector {name}: no longer watched", *(f"alarm {kind} of {name}: closed" for kind in closed)]
