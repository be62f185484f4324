"""Remove connectors whose topic is no longer landed. Only a person does this; `apply` removes no connector.

If a topic is missing from the registry, the registry may be wrong, or the topic may belong to another project.
"""

from collections.abc import Iterable

from sqlalchemy import delete

from include.streams.contracts import Topic
from include.streams.landing.connect import Connect
from include.streams.landing.connectors import connected_topics, left_over
from include.streams.landing.tables import connector_name
from include.streams.landing.watchdog import connector_watch
from include.streams.operations.alarms import close_alarm, open_alarms
from include.streams.operations.database import begin


def remove(name: str, topics: Iterable[Topic], connect: Connect) -> list[str]:
    """Remove a connector that `left_over` names, then close its alarms, because no check updates them any more.

    If the process is killed in between, the next call does the rest. The landing table, the control topic and the
    groups' offsets stay: if the topic is landed again, it continues where it stopped.

    Args:
        name: The connector.
        topics: The topics of the registry.
        connect: Kafka Connect.

    Returns:
        What changed, in words.

    Raises:
        ValueError: A landed topic needs the connector.
        LookupError: There is nothing to remove.
    """
    topics = connected_topics(topics)
    if name in map(connector_name, topics):
        raise ValueError(
            f"connector {name} lands a topic of the registry, so `apply` would create it again: first remove "
            f"landed=True from the topic. `stop` stops the connector without removing it"
        )
    left_over_connectors = left_over(topics, connect)
    changes = [f"connector {name}: removed"] if name in left_over_connectors and connect.delete(name) else []
    changes += _forget_watch(name)
    if not changes:
        raise LookupError(
            f"no connector {name} is left over from a topic that is no longer landed; left over are "
            f"{', '.join(sorted(left_over_connectors)) or 'none'}"
        )
    return changes


def _forget_watch(name: str) -> list[str]:
    with begin() as connection:
        kinds = [alarm.kind for alarm in open_alarms(connection) if alarm.source == name]
        row = delete(connector_watch).where(connector_watch.c.connector == name).returning(connector_watch.c.connector)
        if connection.execute(row).first() is None:
            # Not a connector of this project, so its alarms may belong to another project and stay open.
            return []
        closed = [kind for kind in kinds if close_alarm(connection, name, kind, "the connector was removed")]
    return [f"connector {name}: no longer watched", *(f"alarm {kind} of {name}: closed" for kind in closed)]
