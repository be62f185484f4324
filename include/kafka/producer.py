"""A producer that never takes silence for success."""

import logging
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from include.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from include.kafka.connection import ClientErrors

log = logging.getLogger(__name__)

LEADERS_TIMEOUT_SECONDS = 2.0

Headers = list[tuple[str, bytes | None]]


class DeliveryFailed(Exception):
    """A message was not acknowledged by all in-sync replicas."""


def raise_on_delivery_failure(error: Any, record: Any) -> None:
    """Delivery callback for `ProduceToTopicOperator`: the stock one logs a failed delivery and succeeds.

    Raised from the client's poll or flush, so the operator's task fails and is retried.
    """
    if error is not None:
        raise DeliveryFailed(f"topic {record.topic()}: {error}")


class AcknowledgedProducer:
    """Idempotent, acks=all; `flush` returns when everything sent is acknowledged, or raises DeliveryFailed.

    As a context manager it flushes at the end of the block, so a task cannot succeed before its messages are safe.
    It connects with the first message: most handling tasks send none.
    """

    def __init__(self, conn_id: str = CONN_ID) -> None:
        self._conn_id = conn_id
        self._failures: list[str] = []
        self._known: set[str] = set()
        self._errors: ClientErrors | None = None
        self.acknowledged = 0

    @cached_property
    def _producer(self) -> "Producer":
        from confluent_kafka import Producer

        from include.kafka.connection import ClientErrors, client_config, producer_config

        config = client_config(self._conn_id)
        self._errors = ClientErrors(self._conn_id, config)
        return Producer(producer_config(config))

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> None:
        """Hand one message to the client. Raises KafkaException when it can never be sent, such as for its size."""
        arguments: dict[str, Any] = {"key": key, "value": value, "headers": headers or []}
        if partition is not None:
            arguments["partition"] = partition
        self._learn_leaders(topic)
        while True:
            try:
                self._producer.produce(topic, on_delivery=self._on_delivery, **arguments)
                self._producer.poll(0)
                return
            except BufferError:
                # The client's queue is full: wait for acknowledgements, then this message has room.
                self._producer.poll(0.5)

    def flush(self) -> None:
        """Wait for every acknowledgement (delivery.timeout.ms bounds it)."""
        if "_producer" in self.__dict__:
            self._producer.flush()
        if self._failures:
            failures, self._failures = self._failures, []
            refusal = f"; {self._errors.refusal}" if self._errors and self._errors.refusal else ""
            raise DeliveryFailed(f"{len(failures)} messages not acknowledged; the first: {failures[0]}{refusal}")

    def _learn_leaders(self, topic: str) -> None:
        """Before the first message to a topic, which would else wait half a second for the client's next tick.

        Only a hint: when the broker does not answer, delivery says so.
        """
        from confluent_kafka import KafkaException

        if topic not in self._known:
            self._known.add(topic)
            with suppress(KafkaException):
                self._producer.list_topics(topic, timeout=LEADERS_TIMEOUT_SECONDS)

    def _on_delivery(self, error: Any, record: Any) -> None:
        if error is not None:
            self._failures.append(f"topic {record.topic()}: {error}")
        else:
            self.acknowledged += 1

    def __enter__(self) -> "AcknowledgedProducer":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
