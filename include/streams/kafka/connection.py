"""Client configurations, all from one Airflow connection of the Kafka provider.

The settings in the connection's extra (bootstrap.servers, SASL, TLS, an OAuth callback for a managed service) apply to
the clients of triggers, claims, readers and producers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from include.streams.compat.kafka_settings import kafka_settings

CONN_ID = "kafka_default"
CALLBACK_ALLOWLIST = "AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST"

# Settings that would lose messages or handle them twice. The clients here override most of them, but the stock
# operators use the same connection. So a setting that contradicts the claims is rejected before messages are lost.
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
        "a misspelt topic would be created and read forever: set it to false",
    ),
}


class UnsafeKafkaConnection(ValueError):
    """The connection's extra holds a setting under which messages can be lost or handled twice."""


class CallbackNotAllowed(ValueError):
    """The connection's extra names a callback by a dotted path that Airflow's configuration does not allow."""


def check(conn_id: str, config: dict[str, Any]) -> None:
    """Reject unsafe settings.

    Args:
        conn_id: The connection's id, for the error text.
        config: The settings in the connection's extra.

    Raises:
        UnsafeKafkaConnection: A setting is unsafe; the text names the connection, the setting and the remedy.
    """
    for setting, (unsafe, remedy) in _UNSAFE.items():
        value = config.get(setting)
        if value is not None and str(value).strip().lower() in unsafe:
            raise UnsafeKafkaConnection(f"connection {conn_id}: {setting} is {value!r}; {remedy}")


def client_config(conn_id: str = CONN_ID) -> dict[str, Any]:
    """The checked configuration that all clients share; blocks while the connection is fetched.

    Args:
        conn_id: The Airflow connection of the broker.

    Returns:
        {setting: value} of librdkafka.

    Raises:
        UnsafeKafkaConnection: A setting is unsafe.
        CallbackNotAllowed: Airflow's configuration does not allow a callback in the connection's extra.
        Exception: The provider's error when the connection is missing or has no bootstrap.servers.
    """
    try:
        config = kafka_settings(conn_id)
    except ValueError as error:
        if "callback_allowlist" not in str(error):
            raise
        raise CallbackNotAllowed(
            f"connection {conn_id}: {error} If you trust it, add its dotted path to the environment variable "
            f"{CALLBACK_ALLOWLIST} of every Airflow process (Dockerfile, or the Deployment's variables)"
        ) from None
    check(conn_id, config)
    # Errors are raised as exceptions by the calls. The log lines of librdkafka would repeat the outage of a broker
    # endlessly.
    config.setdefault("log_level", 2)
    return config


class ClientErrors:
    """Remembers why the broker rejects a client, from the client's error callback.

    After a wrong password or an unknown certificate, the calls of the client only raise a timeout.

    Attributes:
        refusal: The connection's id and the last authentication or TLS error; None when there was none.
    """

    def __init__(self, conn_id: str, config: dict[str, Any]) -> None:
        """Register as error callback.

        Args:
            conn_id: The connection's id, for the text.
            config: The configuration from which the clients are created; changed in place.
        """
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
        """Replace a KafkaException of the client's calls by an exception with the known reason, if there is one.

        Args:
            client: The client whose calls are made in the block.
        """
        from confluent_kafka import KafkaError, KafkaException

        self.refusal = None
        try:
            yield
        except KafkaException as error:
            # The client runs its error callback only when it is polled.
            client.poll(0)
            if self.refusal is None:
                raise
            raise KafkaException(KafkaError(KafkaError._AUTHENTICATION, self.refusal)) from error


# Settings that only a consumer or only a producer knows: librdkafka warns about settings that a client does not know.
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
    """The configuration of an AdminClient.

    Args:
        config: The return value of `client_config`.
    """
    return _without(config, _CONSUMER_ONLY + _PRODUCER_ONLY)


def consumer_config(config: dict[str, Any], group: str) -> dict[str, Any]:
    """The configuration of a Consumer with manual assignment, which never joins the group and commits only on request.

    Args:
        config: The return value of `client_config`.
        group: The consumer group of its commits.
    """
    return {
        **_without(config, _PRODUCER_ONLY),
        "group.id": group,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        # Offsets that retention removed must raise an error: a jump to other offsets would hide the loss.
        "auto.offset.reset": "error",
        "allow.auto.create.topics": False,
    }


def producer_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an idempotent Producer that waits for all in-sync replicas.

    Args:
        config: The return value of `client_config`.
    """
    config = _without(config, _CONSUMER_ONLY)
    # librdkafka refuses a message above its own limit before the broker sees it. The topic's limit must decide, and a
    # dead-letter record is larger than the original message.
    config.setdefault("message.max.bytes", 64 * 1024 * 1024)
    # A broker measures compressed batches. Without compression, a message that its topic accepted compressed could be
    # too large for the dead-letter topic. lz4, because every broker and client of the last ten years reads it.
    config.setdefault("compression.type", "lz4")
    # Memory for messages that wait in the client, 1 GB by default. Larger than one message of the maximum size.
    config.setdefault("queue.buffering.max.kbytes", 128 * 1024)
    # Longer than a broker's restart. After this time the task fails, and Airflow retries it.
    config.setdefault("delivery.timeout.ms", 60_000)
    return {**config, "acks": "all", "enable.idempotence": True}


def _without(config: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in settings}
