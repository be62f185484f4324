"""Read exactly the offsets of a range."""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import REQUEST_TIMEOUT_SECONDS, OffsetRange, learn_leaders

if TYPE_CHECKING:
    from confluent_kafka import Consumer

log = logging.getLogger(__name__)

# If nothing arrives for this long, reading fails and the task is retried.
SILENCE_SECONDS = 60.0
# After each range that could not be read, the reader waits half as long for the next ranges, but at least this long: a
# task with a hundred such ranges must reach the good ranges after them before its own time is over. A good range does
# not lengthen the wait again: if one of three brokers is unavailable, every third partition cannot be read.
LEAST_SILENCE_SECONDS = 2.0
POLL_SECONDS = 1.0
CONSUMER_SETTINGS = {
    # The client reports the end of a partition as an event.
    "enable.partition.eof": True,
    # All messages of a range exist already, so no fetch needs to wait. With the default, the fetch at the end of one
    # range waits for new messages and delays the next range by half a second.
    "fetch.wait.max.ms": 10,
    # Bounds memory: the broker counts compressed bytes, and the client decompresses a whole answer at once, so one byte
    # can become ten thousand. An answer holds at least one batch of any size, so the large batches of a busy producer
    # are read as fast as with a higher limit.
    "fetch.message.max.bytes": 8 * 1024,
    # Decompressed messages in the client's queue; above this limit the client sends no further fetch.
    "queued.max.messages.kbytes": 16 * 1024,
    # The client reads this many messages ahead. With the default of 100,000, each chunk of a long backlog would also
    # fetch many messages of the next chunks.
    "queued.min.messages": 2_000,
    # When so many messages are queued, the client waits this long before the next fetch. With the default of a second,
    # the queue may run empty during the wait, and reading pauses.
    "fetch.queue.backoff.ms": 10,
}
# Memory limit of a batch of messages; a single message may be larger.
MAX_BATCH_BYTES = 16 * 1024 * 1024


class ReadingStalled(Exception):
    """The broker returned no further message of a range before the range was read to its end."""


class RangeReader:
    """Reads ranges, one after the other, with one consumer.

    Args:
        consumer: A client with `CONSUMER_SETTINGS` (`GroupOffsets.consumer`).
        batch_size: The most messages per batch.

    Attributes:
        gone: The offsets [start, end) of the last range that are no longer in Kafka. They are logged and skipped.
    """

    def __init__(self, consumer: "Consumer", *, batch_size: int = 500) -> None:
        self._consumer = consumer
        self._batch_size = batch_size
        self._known_topics: set[str] = set()
        self._silence_seconds = SILENCE_SECONDS
        self.gone: list[tuple[int, int]] = []

    def read(self, wanted: OffsetRange) -> Iterator[list[Message]]:
        """Yield the messages of the range in offset order, in batches of at most `batch_size` messages and 16 MiB.

        Only committed transactions are read. Offsets have holes (transaction markers, compaction), and the last offset
        may be a hole. So reading ends when the consumer's position, which moves past holes, reaches the range's end.

        Args:
            wanted: The range to read.

        Yields:
            Batches of messages, none of them empty.

        Raises:
            ReadingStalled: Nothing arrived for SILENCE_SECONDS (less after other ranges that could not be read), or the
                log ends before the position.
            KafkaException: The broker refused, or the client had a fatal error.
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
                # A record or an event of the previous range: its end must not be mistaken for the end of this range.
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
                    if len(batch) == self._batch_size and position < wanted.end:
                        yield batch
                        batch, size, heard_at = [], 0, time.monotonic()
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                # The position at the last stable offset: offsets before it that were not returned hold no record.
                position = max(position, record.offset())  # type: ignore[union-attr]
            elif error is not None and error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                position = self._skip_gone_offsets(wanted, position)
                self._start_at(wanted, position)
            elif error is not None and error.fatal():
                raise KafkaException(error)
            if time.monotonic() - heard_at > self._silence_seconds:
                reason = f" ({error})" if error is not None else ""
                text = f"{wanted}: nothing after offset {position} for {self._silence_seconds:.0f} s{reason}"
                shorter = max(self._silence_seconds / 2, LEAST_SILENCE_SECONDS)
                self._silence_seconds = min(self._silence_seconds, shorter)
                raise ReadingStalled(text)
        # Unassigned before the last batch is handled: otherwise the client would continue to fetch later messages.
        self._consumer.unassign()
        if batch:
            yield batch

    @staticmethod
    def _is_of(record: Any, wanted: OffsetRange) -> bool:
        return (record.topic(), record.partition()) == (wanted.topic, wanted.partition)

    def _start_at(self, wanted: OffsetRange, offset: int) -> None:
        from confluent_kafka import TopicPartition

        if wanted.topic not in self._known_topics:
            learn_leaders(self._consumer, wanted.topic)
            self._known_topics.add(wanted.topic)
        self._consumer.assign([TopicPartition(wanted.topic, wanted.partition, offset)])

    def _skip_gone_offsets(self, wanted: OffsetRange, position: int) -> int:
        """Record offsets of the range that are no longer in Kafka; returns the next offset to read."""
        from confluent_kafka import TopicPartition

        partition = TopicPartition(wanted.topic, wanted.partition)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=REQUEST_TIMEOUT_SECONDS)
        if high < position:
            raise ReadingStalled(f"{wanted}: the log ends at offset {high}, before offset {position}")
        gone = min(low, wanted.end)
        if gone > position:
            self.gone.append((position, gone))
            # Only a warning: the messages may have been handled before; the caller checks the inbox.
            log.warning(
                "no longer in Kafka: topic=%s partition=%d offsets=[%d, %d)",
                wanted.topic,
                wanted.partition,
                position,
                gone,
            )
        return max(gone, position)
