"""Read exactly the offsets of a range."""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from include.kafka.messages import Message
from include.kafka.offsets import REQUEST_TIMEOUT_SECONDS, OffsetRange

if TYPE_CHECKING:
    from confluent_kafka import Consumer

log = logging.getLogger(__name__)

# How long nothing at all may arrive before reading is given up and the task retried.
SILENCE_SECONDS = 60.0
POLL_SECONDS = 1.0
CONSUMER_SETTINGS = {
    # The end of a partition is reported as an event.
    "enable.partition.eof": True,
    # A range is there to be read, nothing is waited for: with the default, the fetch that waits for more at the end of
    # one range holds up the next by half a second.
    "fetch.wait.max.ms": 10,
    # The broker counts compressed bytes, and the client unpacks a whole answer at once: one byte can be ten thousand.
    # An answer holds one batch at least, however large, so a busy producer's batches come as fast.
    "fetch.message.max.bytes": 8 * 1024,
    # Unpacked messages that wait in the client: it asks for no more while there are more than these.
    "queued.max.messages.kbytes": 16 * 1024,
}
# What a batch of messages may take in memory; one message alone may be larger.
MAX_BATCH_BYTES = 16 * 1024 * 1024


class ReadingStalled(Exception):
    """The broker gave nothing more of a range that is not read to its end."""


class RangeReader:
    """Reads ranges, one after the other, with one consumer.

    The consumer is one with `CONSUMER_SETTINGS` (`GroupOffsets.consumer`). `gone` holds the offsets [start, end) of the
    range last read that are not in Kafka any more: they are logged and skipped.
    """

    def __init__(self, consumer: "Consumer", *, batch_size: int = 500) -> None:
        self._consumer = consumer
        self._batch_size = batch_size
        self._known: set[str] = set()
        self.gone: list[tuple[int, int]] = []

    def read(self, wanted: OffsetRange) -> Iterator[list[Message]]:
        """The messages of the range in offset order, `batch_size` and 16 MB at most at a time.

        Offsets have holes (transaction markers, compaction), so the end is known by the consumer's position, which
        moves past holes, and never by waiting for the last offset. Only committed transactions are read.

        Raises ReadingStalled, or KafkaException for what the broker refuses.
        """
        from confluent_kafka import KafkaError, KafkaException

        self.gone = []
        position = wanted.start
        batch: list[Message] = []
        size = 0
        self._start_at(wanted, position)
        heard_at = time.monotonic()
        while position < wanted.end:
            record: Any = self._consumer.poll(POLL_SECONDS)
            error: Any = record.error() if record is not None else None
            if record is not None and record.topic() is not None and not self._is_of(record, wanted):
                # A leftover of the range before: its end must not be taken for this one's.
                continue
            if record is not None and error is None:
                heard_at = time.monotonic()
                position = record.offset() + 1
                if position <= wanted.end:
                    message = Message.of(record, wanted.topic_id)
                    if batch and size + message.size_bytes > MAX_BATCH_BYTES:
                        yield batch
                        batch, size, heard_at = [], 0, time.monotonic()
                    batch.append(message)
                    size += message.size_bytes
                    if len(batch) == self._batch_size:
                        yield batch
                        batch, size, heard_at = [], 0, time.monotonic()
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                # The position at the last stable offset: what lies before it and was not given holds no record.
                position = max(position, record.offset())  # type: ignore[union-attr]
            elif error is not None and error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                position = self._skip_what_is_gone(wanted, position)
                self._start_at(wanted, position)
            elif error is not None and error.fatal():
                raise KafkaException(error)
            if time.monotonic() - heard_at > SILENCE_SECONDS:
                said = f" ({error})" if error is not None else ""
                raise ReadingStalled(f"{wanted}: nothing after offset {position} for {SILENCE_SECONDS:.0f} s{said}")
        if batch:
            yield batch

    @staticmethod
    def _is_of(record: Any, wanted: OffsetRange) -> bool:
        return (record.topic(), record.partition()) == (wanted.topic, wanted.partition)

    def _start_at(self, wanted: OffsetRange, offset: int) -> None:
        from confluent_kafka import TopicPartition

        if wanted.topic not in self._known:
            # Else the client would notice at its next one-second tick that it does not know the topic's leaders.
            self._consumer.list_topics(wanted.topic, timeout=REQUEST_TIMEOUT_SECONDS)
            self._known.add(wanted.topic)
        self._consumer.assign([TopicPartition(wanted.topic, wanted.partition, offset)])

    def _skip_what_is_gone(self, wanted: OffsetRange, position: int) -> int:
        from confluent_kafka import TopicPartition

        partition = TopicPartition(wanted.topic, wanted.partition)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=REQUEST_TIMEOUT_SECONDS)
        if high < position:
            raise ReadingStalled(f"{wanted}: the partition ends at offset {high}, before it was read")
        gone = min(low, wanted.end)
        if gone > position:
            self.gone.append((position, gone))
            # Whether they were handled before, the inbox knows.
            log.warning(
                "not in Kafka any more: topic=%s partition=%d offsets=[%d, %d)",
                wanted.topic,
                wanted.partition,
                position,
                gone,
            )
        return max(gone, position)
