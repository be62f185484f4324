"""A producer that never takes silence for success."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from include.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from include.kafka.connection import ClientErrors

log = logging.getLogger(__name__)

LEADERS_TIMEOUT_SECONDS = 2.0

Headers = list[tuple[str, bytes | None]]


class Record(NamedTuple):
    """A record to send."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Refusal(NamedTuple):
    """Why a record was not acknowledged; `is_its_own`: the topic takes other records."""

    reason: str
    is_its_own: bool


# What the broker, or the client, says of one record and not of its topic.
_OF_ONE_RECORD = {
    "MSG_SIZE_TOO_LARGE",
    "RECORD_LIST_TOO_LARGE",
    "INVALID_RECORD",
    "INVALID_MSG",
    "INVALID_TIMESTAMP",
    "_INVALID_ARG",
}


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

    def try_sending(self, topic: str, records: Sequence[Record], *, seconds: float) -> list[Refusal | None]:
        """Send records of one topic and wait for the answers; raises nothing for records that are not acknowledged.

        Args:
            topic: The topic's name.
            records: What to send; the broker gets it in this order.
            seconds: After this time, what is not acknowledged is given up.

        Returns:
            None for each record that was acknowledged, else why it was not; a record given up may have arrived.
        """
        until = time.monotonic() + seconds
        if reason := self._why_not(topic):
            return [Refusal(reason, is_its_own=False)] * len(records)
        answers = self._send_and_wait(topic, records, until)
        if len(records) > 1:
            # The broker refuses a batch for one record in it, with the same error for all of them.
            for number, refusal in enumerate(answers):
                if refusal is not None and refusal.is_its_own and time.monotonic() < until:
                    (answers[number],) = self._send_and_wait(topic, [records[number]], until)
        return answers

    def _why_not(self, topic: str) -> str | None:
        """Why the topic takes no record, when the broker says so; else the client would ask for half a minute."""
        from confluent_kafka import KafkaException

        if topic in self._known:
            return None
        with suppress(KafkaException):
            error = self._producer.list_topics(topic, timeout=LEADERS_TIMEOUT_SECONDS).topics[topic].error
            if error is not None and not error.retriable():
                return f"topic {topic}: {error}"
            if error is not None and error.name() == "UNKNOWN_TOPIC_OR_PART":
                return f"topic {topic}: it does not exist"
            self._known.add(topic)
        return None

    def _send_and_wait(self, topic: str, records: Sequence[Record], until: float) -> list[Refusal | None]:
        from confluent_kafka import KafkaException

        unanswered = Refusal(f"topic {topic}: no acknowledgement in time", is_its_own=False)
        answers: list[Refusal | None] = [unanswered] * len(records)

        def note(number: int, error: Any, _: Any) -> None:
            answers[number] = None if error is None else self._refusal(topic, error)

        for number, record in enumerate(records):
            while time.monotonic() < until:
                try:
                    self._producer.produce(
                        topic,
                        key=record.key,
                        value=record.value,
                        headers=list(record.headers),
                        on_delivery=partial(note, number),
                    )
                except BufferError:
                    self._producer.poll(0.1)
                    continue
                except KafkaException as error:
                    answers[number] = self._refusal(topic, error.args[0])
                except (ValueError, TypeError) as error:
                    # A header's name that the client cannot encode.
                    answers[number] = Refusal(f"topic {topic}: {type(error).__name__}", is_its_own=True)
                self._producer.poll(0)
                break
        if self._producer.flush(max(0.1, until - time.monotonic())):
            # Else they would still be sent while the task ends, and hold it up.
            self._producer.purge()
            self._producer.flush(1)
        return answers

    def _refusal(self, topic: str, error: Any) -> Refusal:
        own = error.name() in _OF_ONE_RECORD
        refusal = f"; {self._errors.refusal}" if self._errors and self._errors.refusal else ""
        return Refusal(f"topic {topic}: {error}{refusal}", is_its_own=own)

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
