"""Sample messages, from which `make topic` learns what a topic holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from include.streams.kafka.sending import Value, values_in
from scaffold.errors import Refused

# How many messages of a topic are read, and how long that may take.
MAX_READ = 300
READ_SECONDS = 20.0
# The most messages of a file that are read.
MAX_SAMPLES = 500
# The most messages, and bytes, that are kept in the repository.
MAX_KEPT = 30
MAX_KEPT_BYTES = 1_000_000
FORMAT = 'a line for each message, such as {"headers": {"X-Event": "push"}, "value": {...}}'
# Formats that are not supported.
OTHER_SCHEMAS = {".avsc": "Avro", ".proto": "Protobuf"}


@dataclass(frozen=True)
class Sample:
    """One message whose value is a JSON object.

    Attributes:
        text: The value, as it is in the message.
        document: The value, parsed.
        headers: The headers that are text; the last one of a name.
        key: The key, if it is text.
    """

    text: str
    document: dict[str, Any]
    headers: dict[str, str]
    key: str | None

    @property
    def line(self) -> str:
        """The message as a line of a sample file."""
        head: dict[str, Any] = {} if self.key is None else {"key": self.key}
        start = json.dumps({**head, "headers": self.headers}, ensure_ascii=False)
        # A line break in JSON is space, as a text has none.
        value = self.text.strip().replace("\r", " ").replace("\n", " ")
        return f'{start[:-1]}, "value": {value}}}'


def from_file(path: Path) -> tuple[list[Sample], int]:
    """Read a sample file, in the format that `make send` takes.

    Args:
        path: The file.

    Returns:
        The messages whose value is a JSON object, the first 500, and how many others there are.

    Raises:
        Refused: The file cannot be read, or no message's value is a JSON object.
    """
    try:
        values = values_in(path.read_bytes())
    except OSError as error:
        raise Refused(f"FROM={path}: {error.strerror}; give a file with {FORMAT}") from None
    found = list(_samples(values))
    if not found:
        raise Refused(f"FROM={path}: no document of it is a JSON object; write {FORMAT}")
    return found[:MAX_SAMPLES], len(values) - len(found)


def from_topic(name: str, conn_id: str | None = None) -> tuple[list[Sample], int, int]:
    """Read the newest messages of a topic; nothing is committed.

    Args:
        name: The topic's name.
        conn_id: The Airflow connection of the broker; None for the default.

    Returns:
        The messages whose value is a JSON object, how many others were read, and the number of partitions.

    Raises:
        Refused: The broker cannot be reached, the topic does not exist, or holds no such message.
    """
    from confluent_kafka import Consumer, KafkaException

    from include.streams.kafka.connection import CONN_ID, client_config, consumer_config

    config = {**consumer_config(client_config(conn_id or CONN_ID), "make-topic"), "enable.partition.eof": True}
    consumer = Consumer(config)
    try:
        records, partitions = _newest(consumer, name)
    except KafkaException as error:
        raise Refused(
            f"TOPIC={name}: the broker does not answer ({error.args[0].str()}); `make up` starts the local one, and "
            "`make status` shows its state"
        ) from None
    finally:
        consumer.close()
    values = [Value(r.value(), 0, r.key(), tuple(r.headers() or ())) for r in records]
    found = list(_samples(values))
    if not found:
        raise Refused(
            f"TOPIC={name}: none of its newest {len(values)} messages is a JSON object; give a file with FROM="
        )
    return found, len(values) - len(found), partitions


def _newest(consumer: Any, name: str) -> tuple[list[Any], int]:
    import time

    from confluent_kafka import KafkaError, TopicPartition

    # All topics: a question about one would create it on a broker that creates topics by itself.
    topic = consumer.list_topics(timeout=10).topics.get(name)
    if topic is None or not topic.partitions:
        raise Refused(f"TOPIC={name}: the broker has no such topic; `make look` lists those of the project")
    share = max(1, MAX_READ // len(topic.partitions))
    places = []
    for number in topic.partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(name, number), timeout=10)
        if high > low:
            places.append(TopicPartition(name, number, max(low, high - share)))
    consumer.assign(places)
    records: list[Any] = []
    ended: set[int] = set()
    until = time.monotonic() + READ_SECONDS
    while len(ended) < len(places) and time.monotonic() < until:
        record = consumer.poll(0.5)
        if record is None:
            continue
        if record.error() is None:
            records.append(record)
        elif record.error().code() == KafkaError._PARTITION_EOF:
            ended.add(record.partition())
    return records[:MAX_READ], len(topic.partitions)


def _samples(values: Iterable[Value]) -> Iterator[Sample]:
    for value in values:
        try:
            text = (value.data or b"").decode()
            document = json.loads(text, parse_constant=_refuse)
            key = value.key.decode() if value.key is not None else None
            headers = {name: held.decode() for name, held in value.headers if held is not None}
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            yield Sample(text, document, headers, key)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON: every message with it is a dead letter")


def kept(samples: Sequence[Sample], kind_of: Any) -> list[Sample]:
    """The samples that are kept in the repository: some of each type, at most 30 and 1 MB.

    Args:
        samples: All samples.
        kind_of: The function that gives a sample's type.
    """
    by_kind: dict[Any, list[Sample]] = {}
    for sample in samples:
        by_kind.setdefault(kind_of(sample), []).append(sample)
    found: list[Sample] = []
    size = 0
    for turn in range(max(map(len, by_kind.values()))):
        for some in by_kind.values():
            if turn < len(some) and len(found) < MAX_KEPT and (not turn or size < MAX_KEPT_BYTES):
                found.append(some[turn])
                size += len(some[turn].text)
    return found
