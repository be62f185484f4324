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


# What the broker, or the client, says of one record and not of its topic.
_OF_SIZE = {"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_MSG_SIZE"}
# The last three: a header's name that the client cannot encode.
_OF_ONE_RECORD = {
    *_OF_SIZE, "INVALID_RECORD", "INVALID_MSG", "INVALID_TIMESTAMP", "_INVALID_ARG",
    "ValueError", "TypeError", "UnicodeEncodeError",
}  # fmt: skip


class OutgoingRecord(NamedTuple):
    """A record to be sent; `partition` None: the client chooses it by the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int | None = None


class Refusal(NamedTuple):
    """Why a record was not acknowledged.

    code: the name of the error, such as "MSG_SIZE_TOO_LARGE"; of an error in Python, its class.
    text: what broker or client said, for people.
    """

    code: str
    text: str

    @property
    def is_size(self) -> bool:
        """Whether the record, or the batch that it went in, is larger than broker, topic or client take."""
        return self.code in _OF_SIZE

    @property
    def is_its_own(self) -> bool:
        """Whether the topic takes other records."""
        return self.code in _OF_ONE_RECORD


class DeliveryFailed(Exception):
    """A message was not acknowledged by all in-sync replicas; `refusals` says why, where it is known."""

    def __init__(self, text: str, refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(text)
        self.refusals = tuple(refusals)


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
        self.conn_id = conn_id
        self._failures: list[tuple[str, Refusal]] = []
        self._known: set[str] = set()
        self._errors: ClientErrors | None = None
        self.acknowledged = 0

    @cached_property
    def _producer(self) -> "Producer":
        from confluent_kafka import Producer

        from include.kafka.connection import ClientErrors, client_config, producer_config

        config = client_config(self.conn_id)
        self._errors = ClientErrors(self.conn_id, config)
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
        self._learn_leaders(topic)
        self._produce(OutgoingRecord(topic, key, value, headers or [], partition), self._on_delivery)

    def flush(self) -> None:
        """Wait for every acknowledgement (delivery.timeout.ms bounds it)."""
        if "_producer" in self.__dict__:
            self._producer.flush()
        if self._failures:
            failures, self._failures = self._failures, []
            text = f"{len(failures)} messages not acknowledged; the first: {failures[0][0]}{self._refusal}"
            raise DeliveryFailed(text, [refusal for _, refusal in failures])

    def try_sending(self, records: Sequence[OutgoingRecord], *, seconds: float) -> list[Refusal | None]:
        """Send records and wait for the broker's answers; raises nothing for records that are not acknowledged.

        Nothing else may be under way in this producer: what is not acknowledged in time is withdrawn. It may have
        reached the topic all the same.

        Args:
            records: what to send; the broker gets those of a topic in this order.
            seconds: how long to wait for all of them.

        Returns:
            For each record None, or why it was not acknowledged.
        """
        until = time.monotonic() + seconds
        answers = self._send_and_wait(records, until)
        if len(records) > 1:
            # The broker refuses a batch for one record in it, with the same error for all of them.
            for number, refusal in enumerate(answers):
                if refusal is not None and refusal.is_its_own and time.monotonic() < until:
                    (answers[number],) = self._send_and_wait([records[number]], until)
        return answers

    def _send_and_wait(self, records: Sequence[OutgoingRecord], until: float) -> list[Refusal | None]:
        results: dict[int, Refusal | None] = {}
        for number, record in enumerate(records):
            if (refusal := self._topic_refusal(record.topic)) is not None:
                results[number] = refusal
                continue
            try:
                self._produce(record, partial(self._note, results, number), until)
            except Exception as error:
                results[number] = _refusal_of(error)
        if self._producer.flush(max(0.1, until - time.monotonic())):
            # Else they would still be sent while the task ends, and hold it up.
            self._producer.purge()
            self._producer.flush(1)
        timed_out = Refusal("_TIMED_OUT", f"no acknowledgement in time{self._refusal}")
        answers = [results.get(number, timed_out) for number in range(len(records))]
        if any(refusal and refusal.code == "_FATAL" for refusal in answers):
            # This client sends nothing any more.
            self.__dict__.pop("_producer")
        return answers

    @property
    def _refusal(self) -> str:
        return f"; {self._errors.refusal}" if self._errors and self._errors.refusal else ""

    def _produce(self, record: OutgoingRecord, on_delivery: Any, until: float = float("inf")) -> None:
        arguments: dict[str, Any] = {"key": record.key, "value": record.value, "headers": record.headers}
        if record.partition is not None:
            arguments["partition"] = record.partition
        while True:
            try:
                self._producer.produce(record.topic, on_delivery=on_delivery, **arguments)
                self._producer.poll(0)
                return
            except BufferError:
                # The client's queue is full: wait for acknowledgements, then this message has room.
                if time.monotonic() >= until:
                    raise
                self._producer.poll(0.5)

    def _learn_leaders(self, topic: str) -> Any:
        """Before the first message to a topic, which would else wait half a second for the client's next tick.

        Only a hint: when the broker does not answer, delivery says so. Returns the topic's error, if it says one.
        """
        from confluent_kafka import KafkaException

        if topic in self._known:
            return None
        self._known.add(topic)
        with suppress(KafkaException):
            return self._producer.list_topics(topic, timeout=LEADERS_TIMEOUT_SECONDS).topics[topic].error
        return None

    def _topic_refusal(self, topic: str) -> Refusal | None:
        """A topic that is missing or forbidden: a record that is sent to it would wait half a minute for it."""
        error = self._learn_leaders(topic)
        if error is None or error.name() == "LEADER_NOT_AVAILABLE":
            return None
        # Asked again with the next record.
        self._known.discard(topic)
        return Refusal(error.name(), error.str())

    def _note(self, results: dict[int, Refusal | None], number: int, error: Any, record: Any) -> None:
        results[number] = None if error is None else Refusal(error.name(), error.str())
        self.acknowledged += error is None

    def _on_delivery(self, error: Any, record: Any) -> None:
        if error is not None:
            self._failures.append((f"topic {record.topic()}: {error}", Refusal(error.name(), error.str())))
        else:
            self.acknowledged += 1

    def __enter__(self) -> "AcknowledgedProducer":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()


def is_too_large(error: Exception) -> bool:
    """Whether `send` or `flush` raised this for the size of a message, which no retry changes."""
    refusals = error.refusals if isinstance(error, DeliveryFailed) else [_refusal_of(error)]
    return bool(refusals) and all(refusal.is_size for refusal in refusals)


def _refusal_of(error: Exception) -> Refusal:
    from confluent_kafka import KafkaException

    if isinstance(error, KafkaException):
        return Refusal(error.args[0].name(), error.args[0].str())
    return Refusal(type(error).__name__, str(error))
