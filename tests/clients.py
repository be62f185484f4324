"""Kafka clients for tests, which start without a delay.

A new client would request a topic's leaders only at its next tick, up to a second later; these request them at once.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition


def producer_to(config: dict[str, Any], *topics: str) -> Producer:
    producer = Producer(config)
    for topic in topics:
        producer.list_topics(topic, timeout=10)
    return producer


def reader_at(config: dict[str, Any], *places: TopicPartition) -> Consumer:
    """A consumer that reads from these offsets; if requested, it reports the end of a partition at once, too."""
    reader = Consumer({"group.id": "independent", "enable.auto.commit": False, "fetch.wait.max.ms": 10, **config})
    for topic in {place.topic for place in places}:
        reader.list_topics(topic, timeout=10)
    reader.assign(list(places))
    return reader


class WithoutLeaders:
    """A client whose request for a topic's leaders goes to a broker that does not answer."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def list_topics(self, *_, **__) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)
