"""What the services must hold before the Dags can work: tables and topics."""

from __future__ import annotations


def prepare() -> list[str]:
    """Bring the operational database and Kafka to what this version of the code needs.

    Returns what changed, in words; harmless to run again. Used by the Dag `prepare_services` and the local stack.
    """
    from include.kafka.topics import create_topics
    from include.operations.migrate import upgrade
    from include.water.topics import TOPICS

    migrations = [f"operational database: {revision}" for revision in upgrade()]
    return migrations + create_topics(TOPICS)
