"""Messages that break their contract, kept in `<topic>.dlq`.

A dead letter is the original record (key, value and headers untouched) with headers that say why and whence. It may
stand there twice after a crash; its coordinates tell.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from include.contracts.topics import DEAD_LETTER_SUFFIX
from include.kafka.messages import Message
from include.kafka.producer import AcknowledgedProducer, Headers

log = logging.getLogger(__name__)

PREFIX = "dlq."
# A text from a library can be long, and headers count against the topic's largest message.
MAX_DETAIL_CHARACTERS = 1_000


@dataclass(frozen=True)
class DeadLetter:
    """A message and why it cannot be handled: a `contracts.Reason` and a detail that names fields, not values.

    `landed_text`: retention had removed the record, so the value is the text that had landed, without key and headers.
    """

    message: Message
    reason: str
    detail: str
    landed_text: bool = False


def envelope(letter: DeadLetter, *, consumer: str, run_id: str) -> Headers:
    """The headers added to a dead letter, all text in UTF-8."""
    message = letter.message
    added = {
        "reason": letter.reason,
        "detail": letter.detail[:MAX_DETAIL_CHARACTERS],
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "timestamp": message.timestamp.isoformat() if message.timestamp else "",
        "consumer": consumer,
        "run_id": run_id,
        **({"landed_text": "true"} if letter.landed_text else {}),
    }
    return [(PREFIX + name, value.encode()) for name, value in added.items()]


def send(letters: Sequence[DeadLetter], *, consumer: str, run_id: str, producer: AcknowledgedProducer) -> None:
    """Produce the letters and return when all are acknowledged: only then may a task go on.

    Raises DeliveryFailed or KafkaException: the task must fail, because what is not kept would be lost.
    """
    for letter in letters:
        message = letter.message
        producer.send(
            message.topic + DEAD_LETTER_SUFFIX,
            key=message.key,
            value=message.value,
            headers=[*message.headers, *envelope(letter, consumer=consumer, run_id=run_id)],
        )
        log.warning(
            "dead letter: topic=%s partition=%d offset=%d reason=%s detail=%s",
            message.topic,
            message.partition,
            message.offset,
            letter.reason,
            letter.detail[:MAX_DETAIL_CHARACTERS],
        )
    producer.flush()
