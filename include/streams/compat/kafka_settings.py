"""The settings of a Kafka connection as the provider resolves them, without a Kafka client."""

from functools import cache
from typing import Any


def kafka_settings(conn_id: str) -> dict[str, Any]:
    """The settings of a connection, with its callbacks and the tokens of managed services.

    It blocks while the connection is fetched.

    Args:
        conn_id: The Airflow connection.

    Returns:
        {setting: value} of librdkafka.

    Raises:
        TypeError: This version of the provider creates its client in another way.
        Exception: The provider's error: the connection is missing, has no bootstrap.servers, or names a callback that
            is not allowed.
    """
    settings = _hook_class()(conn_id).get_conn
    # If a version of the provider does not call the override, this is a client.
    if not isinstance(settings, dict):
        raise TypeError(
            f"KafkaBaseHook.get_conn returned a {type(settings).__name__}: see include/streams/compat/__init__.py"
        )
    return dict(settings)


@cache
def _hook_class() -> Any:
    from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook

    class SettingsHook(KafkaBaseHook):
        def _get_client(self, config: dict[str, Any]) -> dict[str, Any]:
            return config

    return SettingsHook
