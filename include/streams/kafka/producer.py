"""A producer that reports success only for acknowledged messages."""

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from include.streams.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from include.streams.kafka.connection import ClientErrors

log = logging.getLogger(__name__)

LEADERS_TIMEOUT_SECONDS = 2.0

Headers = list[tuple[str, bytes | None]]


# Errors of the broker or the client that concern one record and not its topic.
_OF_SIZE = {"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_MSG_SIZE"}
# If a batch has several invalid records, the client reports _INVALID_DIFFERENT_RECORD for its valid records. The last
# three are raised for a header name that the client cannot encode.
_OF_ONE_RECORD = {
    *_OF_SIZE, "INVALID_RECORD", "_INVALID_DIFFERENT_RECORD", "INVALID_MSG", "INVALID_TIMESTAMP", "_INVALID_ARG",
    "ValueError", "TypeError", "UnicodeEncodeError",
}  # fmt: skip

# Errors of a record for which the client has stopped waiting.
_NOT_ANSWERED = {"_MSG_TIMED_OUT", "_PURGE_QUEUE", "_PURGE_INFLIGHT"}


class OutgoingRecord(NamedTuple):
    """A record to send; if `partition` is None, the client chooses the partition by the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int | None = None


class Refusal(NamedTuple):
    """Why a record was not acknowledged.

    Attributes:
        code: The name of the error, such as "MSG_SIZE_TOO_LARGE"; the class name for a Python exception.
        text: The error text of the broker or the client, for people.
        partition: The record's partition; None when it is not known.
    """

    code: str
    text: str
    partition: int | None = None

    @property
    def is_size_error(self) -> bool:
        """Whether the record, or its batch, exceeds the size limit of the broker, the topic or the client."""
        return self.code in _OF_SIZE

    @property
    def is_unanswered(self) -> bool:
        """Whether the leader of the record's partition has not answered, which says nothing about other partitions."""
        return self.code in _NOT_ANSWERED and self.partition is not None and self.partition >= 0

    @property
    def is_record_error(self) -> bool:
        """Whether the refusal concerns this record only, and the topic accepts other records."""
        return self.code in _OF_ONE_RECORD


class DeliveryFailed(Exception):
    """A message was not acknowledged by all in-sync replicas; `refusals` gives the known reasons."""

    def __init__(self, text: str, refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(text)
        self.refusals = tuple(refusals)


def raise_on_delivery_failure(error: Any, record: Any) -> None:
    """Delivery callback for `ProduceToTopicOperator`; the stock callback only logs a failed delivery and succeeds.

    The client's poll or flush passes the exception on, so the operator's task fails and is retried.

    Args:
        error: The client's error; None when the record was acknowledged.
        record: The record.

    Raises:
        DeliveryFailed: The record was not acknowledged.
    """
    if error is not None:
        raise DeliveryFailed(f"topic {record.topic()}: {error}")


class AcknowledgedProducer:
    """An idempotent producer with acks=all; `flush` raises DeliveryFailed unless every message is acknowledged.

    As a context manager it flushes at the end of a block without an exception, so a task cannot succeed before its
    messages are safe. It connects at the first message, because most handling tasks send none.

    Args:
        conn_id: The Airflow connection of the broker.

    Attributes:
        conn_id: The Airflow connection of the broker.
        acknowledged: The number of records that were acknowledged.
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

        from include.streams.kafka.connection import ClientErrors, client_config, producer_config

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
        """Pass one message to the client, which sends it in the background; call `flush` to wait for acknowledgments.

        Args:
            topic: The topic's name.
            key: The record's key; None for none.
            value: The record's value; None for none.
            headers: Names and values in the record's order.
            partition: The partition; None to let the client choose by the key.

        Raises:
            KafkaException: The message can never be sent, for example because it is too large.
        """
        self._learn_leaders(topic)
        self._produce(OutgoingRecord(topic, key, value, headers or [], partition), self._on_delivery)

    def flush(self) -> None:
        """Wait until every message is acknowledged or has failed; delivery.timeout.ms bounds the wait.

        Raises:
            DeliveryFailed: At least one message was not acknowledged.
        """
        if "_producer" in self.__dict__:
            self._producer.flush()
        if self._failures:
            failures, self._failures = self._failures, []
            text = f"{len(failures)} messages not acknowledged; the first: {failures[0][0]}{self._refusal}"
            raise DeliveryFailed(text, [refusal for _, refusal in failures])

    def try_sending(
        self, records: Sequence[OutgoingRecord], *, seconds: float, quiet_seconds: float | None = None
    ) -> list[Refusal | None]:
        """Send records and wait for the broker's answers; raises nothing for records that are not acknowledged.

        No other message may be in flight in this producer: messages that are not acknowledged in time are purged. Such
        a message may nevertheless have reached the topic.

        Args:
            records: The records, sent in this order within a topic.
            seconds: How long to wait for all of them together.
            quiet_seconds: After a first acknowledgement, how long to wait without a further answer: the leaders of the
                other records are probably unavailable. The wait is longer if the first answer took long. None to wait
                for `seconds`.

        Returns:
            For each record, in the same order, None if it was acknowledged, else the reason why not.
        """
        return self._try_until(time.monotonic() + seconds, records, quiet_seconds)

    def _try_until(
        self, until: float, records: Sequence[OutgoingRecord], quiet_seconds: float | None
    ) -> list[Refusal | None]:
        answers = self._send_and_wait(records, until, quiet_seconds)
        if len(records) > 1:
            # The broker refuses a whole batch because of one record. So the records are sent again in halves, until
            # each bad record is alone. One request for each of 500 records would take too long with a slow broker:
            # there would be no time for the last records, and they would count as refused.
            refused = [number for number, refusal in enumerate(answers) if refusal and refusal.is_record_error]
            middle = (len(refused) + 1) // 2
            for half in (refused[:middle], refused[middle:]):
                if half and time.monotonic() < until:
                    again = self._try_until(until, [records[number] for number in half], quiet_seconds)
                    for number, refusal in zip(half, again, strict=True):
                        answers[number] = refusal
        return answers

    def _send_and_wait(
        self, records: Sequence[OutgoingRecord], until: float, quiet_seconds: float | None = None
    ) -> list[Refusal | None]:
        results: dict[int, Refusal | None] = {}
        for number, record in enumerate(records):
            if (refusal := self._topic_refusal(record.topic)) is not None:
                results[number] = refusal
                continue
            try:
                self._produce(record, partial(self._on_answer, results, number), until)
            except Exception as error:
                results[number] = _refusal_of(error)
        if self._wait(results, until, quiet_seconds):
            # Without the purge, the client would continue to send and delay the end of the task.
            self._producer.purge()
            self._producer.flush(1)
        timed_out = Refusal("_TIMED_OUT", f"no acknowledgement in time{self._refusal}")
        answers = [results.get(number, timed_out) for number in range(len(records))]
        if any(refusal and refusal.code == "_FATAL" for refusal in answers):
            # After a fatal error, this client sends nothing more. The next call creates a new client.
            self.__dict__.pop("_producer")
        return answers

    def _wait(self, results: dict[int, Refusal | None], until: float, quiet_seconds: float | None) -> int:
        """Wait for answers; returns how many messages have none."""
        if quiet_seconds is None:
            return self._producer.flush(max(0.1, until - time.monotonic()))
        started = time.monotonic()
        first_acknowledged, last_answer, answered, stop = None, started, len(results), until
        while unanswered := self._producer.flush(0.1):
            now = time.monotonic()
            if len(results) > answered:
                answered, last_answer = len(results), now
            if first_acknowledged is None and None in results.values():
                first_acknowledged = now
            if first_acknowledged is not None:
                stop = min(until, last_answer + max(quiet_seconds, 3 * (first_acknowledged - started)))
            if now >= stop:
                break
        return unanswered

    def has_other_leaders(self, topic: str, partitions: Collection[int | None]) -> bool:
        """Whether the cluster answers, and names a leader for any other partition of the topic.

        Args:
            topic: The topic's name.
            partitions: Partitions that do not answer.
        """
        from confluent_kafka import KafkaException

        try:
            metadata = self._producer.list_topics(topic, timeout=LEADERS_TIMEOUT_SECONDS).topics[topic]
        except KafkaException:
            return False
        others = (partition for number, partition in metadata.partitions.items() if number not in partitions)
        return any(partition.leader >= 0 for partition in others)

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
                # The client's queue is full: wait until acknowledgments make room for this message.
                if time.monotonic() >= until:
                    raise
                self._producer.poll(0.5)

    def _learn_leaders(self, topic: str) -> Any:
        """Request the topic's leaders before its first message; returns the topic's error in the answer, or None.

        Without this request, the message would wait half a second for the client's next tick. A failure of the request
        is ignored, because the delivery will report it.
        """
        from confluent_kafka import KafkaException

        if topic in self._known:
            return None
        self._known.add(topic)
        with suppress(KafkaException):
            return self._producer.list_topics(topic, timeout=LEADERS_TIMEOUT_SECONDS).topics[topic].error
        return None

    def _topic_refusal(self, topic: str) -> Refusal | None:
        """Why a topic is missing or forbidden; None if it is not. A record sent to such a topic waits half a minute."""
        error = self._learn_leaders(topic)
        if error is None or error.name() == "LEADER_NOT_AVAILABLE":
            return None
        # The next record requests the leaders again.
        self._known.discard(topic)
        return Refusal(error.name(), error.str())

    def _on_answer(self, results: dict[int, Refusal | None], number: int, error: Any, record: Any) -> None:
        results[number] = None if error is None else Refusal(error.name(), error.str(), record.partition())
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


def record_refusal(error: Exception) -> Refusal | None:
    """Why one record was refused, if `send` or `flush` raised this error only because of the record itself.

    Args:
        error: The error for a record that was sent alone.

    Returns:
        The refusal; None if the error may have another cause. An error of `send` counts only if it is about the size:
        other errors of `send` may come from the connection's settings.
    """
    if isinstance(error, DeliveryFailed):
        is_record_error = all(refusal.is_record_error for refusal in error.refusals)
        return error.refusals[0] if error.refusals and is_record_error else None
    refusal = _refusal_of(error)
    return refusal if refusal.is_size_error else None


def _refusal_of(error: Exception) -> Refusal:
    from confluent_kafka import KafkaException

    if isinstance(error, KafkaException):
        return Refusal(error.args[0].name(), error.args[0].str())
    return Refusal(type(error).__name__, str(error))
