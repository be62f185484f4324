"""The second lower limit: a plain consumer without Airflow, with the inbox, effect and outbox of `raise_alerts`.

It has as many processes in one consumer group as the local stack runs tasks at once. It lacks what Airflow provides:
retries, a record of every run, a UI, and workers on other machines.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from include.streams.kafka.consumers import Consumer
from include.water.consumers import RAISE_ALERTS
from include.water.topics import LEAKS_DETECTED
from stack.airflow import SETTINGS
from stack.stack import PROJECT

log = logging.getLogger(__name__)

# A topic of its own, so that no other lane reads its messages.
PLAIN_TOPIC = replace(LEAKS_DETECTED, name="bench.leaks")
PLAIN = Consumer(name="bench_plain", topics=(PLAIN_TOPIC,), effect=RAISE_ALERTS.effect)
PROCESSES = int(SETTINGS["CORE__PARALLELISM"])
BATCH = 500


def consume() -> None:
    """Handle messages until the process is ended; commit what is handled."""
    from confluent_kafka import Consumer as KafkaConsumer
    from confluent_kafka import KafkaException

    from include.streams.kafka.connection import client_config, consumer_config
    from include.streams.kafka.delivery import OwnDelivery
    from include.streams.kafka.handling import BatchProcessor
    from include.streams.kafka.messages import Message
    from include.streams.kafka.offsets import GroupOffsets
    from include.streams.kafka.producer import AcknowledgedProducer

    with GroupOffsets(PLAIN.group, PLAIN.conn_id) as group:
        topic_id = group.fetch_topic_ids([PLAIN_TOPIC.name])[PLAIN_TOPIC.name]
    config = {**consumer_config(client_config(PLAIN.conn_id), PLAIN.group), "auto.offset.reset": "earliest"}
    consumer = KafkaConsumer(config)
    consumer.subscribe([PLAIN_TOPIC.name])
    with AcknowledgedProducer(PLAIN.conn_id) as producer:
        processor = BatchProcessor(PLAIN, f"plain-{os.getpid()}", producer)
        delivery = OwnDelivery(producer)
        while True:
            # One message first: `consume` waits for its whole timeout unless it gets the requested number.
            first: Any = consumer.poll(1.0)
            if first is None:
                continue
            records = [first, *consumer.consume(BATCH - 1, 0)]
            for record in records:
                if record.error() is not None:
                    raise KafkaException(record.error())
            processor.handle([Message.of(record, topic_id) for record in records])
            delivery.deliver(processor.written)
            processor.written.clear()
            consumer.commit(asynchronous=False)


@contextlib.contextmanager
def processes(number: int = PROCESSES) -> Iterator[None]:
    """The consumer, running."""
    from benchmarks.bench_stack import FOLDER

    with (FOLDER / "plain.log").open("w") as output:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.water.plain"], cwd=PROJECT, stdout=output, stderr=output
            )
            for _ in range(number)
        ]
        try:
            # The time of its imports is not measured.
            time.sleep(5)
            yield
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(30)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    consume()
