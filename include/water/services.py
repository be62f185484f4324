"""What must exist in the services before the Dags can work: tables, topics and connectors."""

from __future__ import annotations


def prepare() -> list[str]:
    """Bring the databases, Kafka and Kafka Connect to the state that this version of the code needs.

    It is safe to run again. The Dag `prepare_services` and the local stack call it.

    Returns:
        What changed, in words.
    """
    from include.kafka.topics import create_topics
    from include.operations.migrate import upgrade
    from include.water.topics import TOPICS

    migrations = [f"operational database: {revision}" for revision in upgrade()]
    return migrations + create_topics(TOPICS) + _land_topics()


def _land_topics() -> list[str]:
    """Create landing tables and their connectors, if there is a Kafka Connect: the event lane works without it."""
    from airflow.sdk.exceptions import AirflowNotFoundException

    from include.landing.connectors import apply
    from include.water.topics import TOPICS

    try:
        return apply(TOPICS)
    except AirflowNotFoundException as error:
        return [f"nothing lands, since a connection is missing: {error}"]
