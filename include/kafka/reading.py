"""Read exactly the offsets of a range."""

import logging
import time
from collections.abc import Iterator
from typing import Any

from include.kafka.messages import Message
from include.kafka.offsets import OffsetRange

log = logging.getLogger(__name__)

# How long nothing at all may arrive before reading is given up and the task retried.
SILENCE_SECONDS = 60.0
POLL_SECONDS = 1.0


class ReadingStalled(Exception):
    """The broker gave nothing more of a range that is not read to its end."""


class RangeReader:
    """Iterate over the messages of one range, in offset order, `batch_size` at most at a time.

    Offsets have holes (transaction markers, compaction), so the end is known by the consumer's position, which moves
    past holes, and never by waiting for the last offset. Only committed transactions are read. `lost` counts offsets
    that retention removed meanwhile: they are logged and skipped.

    Raises ReadingStalled, or KafkaException for what the broker refuses.
    """

    def __init__(self, config: dict[str, Any], wanted: OffsetRange, *, batch_size: int = 500) -> None:
        # `config` is `connection.consumer_config`; the end of the partition is reported as an event.
        self.config = {**config, "enable.partition.eof": True}
        self.wanted = wanted
        self.batch_size = batch_size
        self.lost = 0

    def __iter__(self) -> Iterator[list[Message]]:
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

        wanted = self.wanted
        position = wanted.start
        consumer = Consumer(self.config)
        batch: list[Message] = []
        try:
            consumer.assign([TopicPartition(wanted.topic, wanted.partition, position)])
            heard_at = time.monotonic()
            while position < wanted.end:
                record: Any = consumer.poll(POLL_SECONDS)
                error: Any = record.error() if record is not None else None
                if record is not None and error is None:
                    heard_at = time.monotonic()
                    position = record.offset() + 1
                    if position <= wanted.end:
                        batch.append(Message.of(record, wanted.topic_id))
                        if len(batch) == self.batch_size:
                            yield batch
                            batch, heard_at = [], time.monotonic()
                elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                    # The position at the last stable offset: what lies before it and was not given holds no record.
                    position = max(position, record.offset())  # type: ignore[union-attr]
                elif error is not None and error.code() in (
                    KafkaError._AUTO_OFFSET_RESET,
                    KafkaError.OFFSET_OUT_OF_RANGE,
                ):
                    position = self._skip_what_is_gone(consumer, position)
                    consumer.assign([TopicPartition(wanted.topic, wanted.partition, position)])
                elif error is not None and error.fatal():
                    raise KafkaException(error)
                if time.monotonic() - heard_at > SILENCE_SECONDS:
                    raise ReadingStalled(
                        f"{wanted}: nothing after offset {position} for {SILENCE_SECONDS:.0f} s"
                        + (f" ({error})" if error is not None else "")
                    )
            if batch:
                yield batch
        finally:
            consumer.close()

    def _skip_what_is_gone(self, consumer: Any, position: int) -> int:
        from confluent_kafka import TopicPartition

        partition = TopicPartition(self.wanted.topic, self.wanted.partition)
        low, high = consumer.get_watermark_offsets(partition, timeout=10.0)
        if high < position:
            raise ReadingStalled(f"{self.wanted}: the partition ends at offset {high}, before it was read")
        gone = min(low, self.wanted.end)
        if gone > position:
            self.lost += gone - position
            log.error(
                "lost to retention before they were handled: topic=%s partition=%d offsets=[%d, %d)",
                self.wanted.topic,
                self.wanted.partition,
                position,
                gone,
            )
        return max(gone, position)
