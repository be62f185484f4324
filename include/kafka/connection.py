"""Client configurations, all from one Airflow connection of the Kafka provider.

Whatever the connection's extra says (bootstrap.servers, SASL, TLS, an OAuth callback for a managed service) reaches
every client: the trigger's, the claims', the readers', the producer's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

CONN_ID = "kafka_default"
CALLBACK_ALLOWLIST = "AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST"

# What would lose messages or act on them twice, whatever our own clients set: the stock operators use the same
# connection, and a setting that contradicts the claims is a misunderstanding to clear up before it costs data.
_UNSAFE: dict[str, tuple[set[str], str]] = {
    "enable.auto.commit": ({"true", "1"}, "offsets are committed by claims only: set it to false"),
    "isolation.level": ({"read_uncommitted"}, "messages of aborted transactions would be handled: remove it"),
    "auto.offset.reset": (
        {"latest", "largest", "end"},
        "messages would be skipped silently: remove it or set earliest",
    ),
    "acks": ({"0", "1"}, "an acknowledged message could be lost: set it to all"),
    "request.required.acks": ({"0", "1"}, "an acknowledged message could be lost: set it to all"),
    "enable.idempotence": ({"false", "0"}, "retries would write a message twice: set it to true"),
    "allow.auto.create.topics": (
        {"true", "1"},
        "a misspelt topic would be made and read for ever: set it to false",
    ),
}


class UnsafeKafkaConnection(ValueError):
    """The connection's extra holds a setting under which messages can be lost or handled twice."""


class CallbackNotAllowed(ValueError):
    """The connection's extra names a callback by a dotted path that Airflow's configuration does not allow."""


def check(conn_id: str, config: dict[str, Any]) -> None:
    """Raise UnsafeKafkaConnection when a setting is unsafe, naming the connection, the setting and the remedy."""
    for setting, (unsafe, remedy) in _UNSAFE.items():
        value = config.get(setting)
        if value is not None and str(value).strip().lower() in unsafe:
            raise UnsafeKafkaConnection(f"connection {conn_id}: {setting} is {value!r}; {remedy}")


@cache
def _hook_class():
    from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook

    class ConfigurationHook(KafkaBaseHook):
        """The provider's way to a configuration (callbacks, tokens of managed services), without a client."""

        def _get_client(self, config):
            return config

    return ConfigurationHook


def client_config(conn_id: str = CONN_ID) -> dict[str, Any]:
    """The checked configuration that all clients share; blocks while the connection is fetched.

    Raises UnsafeKafkaConnection, CallbackNotAllowed, or what the provider raises when the connection is missing or has
    no bootstrap.servers.
    """
    try:
        config = dict(_hook_class()(conn_id).get_conn)
    except ValueError as error:
        if "callback_allowlist" not in str(error):
            raise
        raise CallbackNotAllowed(
            f"connection {conn_id}: {error} If you trust it, add its dotted path to the environment variable "
            f"{CALLBACK_ALLOWLIST} of every Airflow process (Dockerfile, or the Deployment's variables)"
        ) from None
    check(conn_id, config)
    # Errors reach us as exceptions of the calls; librdkafka's own lines would repeat a broker's absence for ever.
    config.setdefault("log_level", 2)
    return config


class ClientErrors:
    """Why the broker does not let a client in, from what the client reports beside its calls.

    Of a wrong password or an unknown certificate, the calls themselves only say that they timed out.
    """

    def __init__(self, conn_id: str, config: dict[str, Any]) -> None:
        """Added to `config`, from which the clients are made."""
        self._conn_id = conn_id
        self._next = config.get("error_cb")
        self.refusal: str | None = None
        config["error_cb"] = self

    def __call__(self, error: Any) -> None:
        if error.name() in ("_AUTHENTICATION", "_SSL"):
            self.refusal = f"connection {self._conn_id}: {error.str()}"
        if self._next is not None:
            self._next(error)

    @contextmanager
    def explaining(self, client: Any) -> Iterator[None]:
        """Give the KafkaException of the client's calls this reason, if there is one."""
        from confluent_kafka import KafkaError, KafkaException

        self.refusal = None
        try:
            yield
        except KafkaException as error:
            # Reports wait until the client is polled.
            client.poll(0)
            if self.refusal is None:
                raise
            raise KafkaException(KafkaError(KafkaError._AUTHENTICATION, self.refusal)) from error


# Settings of the connection that only a consumer or only a producer knows; librdkafka warns about strangers.
_CONSUMER_ONLY = (
    "enable.auto.commit",
    "isolation.level",
    "auto.offset.reset",
    "group.id",
    "group.instance.id",
)
_PRODUCER_ONLY = (
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "linger.ms",
    "compression.type",
    "compression.codec",
    "queue.buffering.max.kbytes",
)


def admin_config(config: dict[str, Any]) -> dict[str, Any]:
    """For an AdminClient, from what `client_config` returned."""
    return _without(config, _CONSUMER_ONLY + _PRODUCER_ONLY)


def consumer_config(config: dict[str, Any], group: str) -> dict[str, Any]:
    """For a Consumer that is given partitions and offsets by hand: it never joins the group.

    It commits only what it is told to.
    """
    return {
        **_without(config, _PRODUCER_ONLY),
        "group.id": group,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        # Offsets that retention removed are an error to be told, not a reason to jump.
        "auto.offset.reset": "error",
        "allow.auto.create.topics": False,
    }


def producer_config(config: dict[str, Any]) -> dict[str, Any]:
    """For an idempotent Producer that waits for all in-sync replicas."""
    config = _without(config, _CONSUMER_ONLY)
    # librdkafka refuses a message above its own limit before the broker sees it; the topic's limit is the one that
    # counts, and a dead letter is larger than the message it keeps.
    config.setdefault("message.max.bytes", 64 * 1024 * 1024)
    # A broker measures compressed batches: without this, a message that it took compressed fits no dead-letter topic.
    # lz4, because every broker and client of the last ten years reads it.
    config.setdefault("compression.type", "lz4")
    # What waits in the client's memory to be sent, a gigabyte by default. More than one message of the largest size.
    config.setdefault("queue.buffering.max.kbytes", 128 * 1024)
    # Longer than a broker's restart; after that the task fails and Airflow's retries take over.
    config.setdefault("delivery.timeout.ms", 60_000)
    return {**config, "acks": "all", "enable.idempotence": True}


def _without(config: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in settings}
