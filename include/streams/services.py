"""Create what the Dags need in the services: tables, topics, connectors and schemas."""

from __future__ import annotations

from include.streams.contracts import Registry


def prepare(topics: Registry) -> list[str]:
    """Bring databases, Kafka, Kafka Connect and schema registry to the state that this version of the code needs.

    It can be repeated without harm.

    Args:
        topics: All topics of the project.

    Returns:
        One text for each change.

    Raises:
        Exception: An error of the database, Kafka, Kafka Connect or the schema registry. Earlier changes stay.
    """
    from include.streams.contracts.registering import register_schemas
    from include.streams.kafka.topics import create_topics
    from include.streams.operations.migrate import upgrade

    migrations = [f"operational database: {revision}" for revision in upgrade()]
    changes = migrations + create_topics(topics) + register_schemas(topics)
    return changes + _land(topics) + _check_artifacts()


def _land(topics: Registry) -> list[str]:
    """Create landing tables and their connectors, if Kafka Connect is available: the event lane works without it."""
    from include.streams.compat.connections import is_defined
    from include.streams.lake import catalog
    from include.streams.lake.stores import store_in_use
    from include.streams.landing import connect
    from include.streams.landing.connectors import apply

    needed = (connect.CONN_ID, catalog.CONN_ID, store_in_use().conn_id)
    if missing := [conn_id for conn_id in needed if not is_defined(conn_id)]:
        return [f"no topic lands, because these connections are not defined: {', '.join(missing)}"]
    return apply(topics)


def _check_artifacts() -> list[str]:
    """Check that the store of models and reports honors the conditions of writes, if a store is in use."""
    from include.streams.compat.connections import is_defined
    from include.streams.lake.buckets import BucketError, UnsafeStore, bucket
    from include.streams.lake.stores import store_in_use

    if not is_defined(store_in_use().conn_id):
        return []
    try:
        bucket().prove_conditions()
    except UnsafeStore:
        raise
    except BucketError as error:
        # Only the standard lane and models need it.
        return [f"models and reports cannot be stored: {error}"]
    return []
