"""Send the messages of a file to a topic, for tests by hand.

Every value is checked against the topic's contract before the first message is sent. So nothing is sent of a file that
contains an invalid message. The bytes of each value are sent as they are in the file. If the topic's schemas are in a
registry, the file holds JSON texts, and each value is encoded in the topic's format.

A document of the file is the value of a message, or a whole message: an object with the members "headers" and "value",
and "key" if the message has a key. A value that is a text is sent without quotes, so that a message can hold anything.

    {"key": "ada/site", "headers": {"X-Hub-Event": "push"}, "value": {"ref": "refs/heads/main"}}
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from include.streams.contracts import ContractViolation, NotWanted, Registry, Topic
from include.streams.formats import RegistryUnavailable, SchemaRefused
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.producer import Headers

if TYPE_CHECKING:
    from confluent_kafka import Producer

# The most invalid messages that an error names; the others are counted.
MAX_NAMED = 10
# If more messages were sent, there is one line for each partition.
MAX_LINES = 20
METADATA_SECONDS = 10.0
_HEADER_NAME = r"[^\s:,][^:,]*:"


class CannotSend(Exception):
    """No message was sent, or not all of them; the text says why and what to do."""


@dataclass(frozen=True)
class Value:
    """The value of a message, and what else the file says of the message.

    Attributes:
        data: The bytes as they are in the file; None for a tombstone.
        line: The line of the file on which the document begins, from 1.
        key: The key, if the file has it.
        headers: The headers, if the file has them.
    """

    data: bytes | None
    line: int
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Outgoing(NamedTuple):
    """A message to send: its value, its key and its headers."""

    value: Value
    key: bytes | None
    headers: Headers


class Sent(NamedTuple):
    """The partition and the offset of a message that was sent."""

    partition: int
    offset: int


def values_in(content: bytes) -> list[Value]:
    """Split a file into the values of messages.

    Args:
        content: JSON documents (one per line, or each over several lines), one array of documents, or one document.
            Text that is not JSON is split into lines, so that an invalid message can be sent on purpose. Each document
            is a value, or a whole message (see the module).

    Returns:
        The values in the file's order, without the spaces between them.
    """
    try:
        text = content.decode("utf-8-sig")
        return _json_values(text)
    except (ValueError, RecursionError):
        lines = content.splitlines()
        return [_value_of_line(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]


def _value_of_line(line: bytes, number: int) -> Value:
    try:
        (value,) = _json_values(line.decode())
        return replace(value, line=number)
    except (ValueError, RecursionError):
        return Value(line, number)


def _json_values(text: str) -> list[Value]:
    """The documents of a JSON text. Raises ValueError or RecursionError if the text is anything else."""
    documents = _documents(text, 0, len(text))
    if len(documents) == 1 and text[documents[0][0]] == "[":
        start, end = documents[0]
        documents = _documents(text, start + 1, end - 1, separator=",")
    values: list[Value] = []
    line, counted = 1, 0
    for start, end in documents:
        line, counted = line + text.count("\n", counted, start), start
        values.append(_whole_message(text, start, line) or Value(text[start:end].encode(), line))
    return values


def _whole_message(text: str, start: int, line: int) -> Value | None:
    """The message in a document with "headers" and "value"; None if the document is a value."""
    if text[start] != "{":
        return None
    members = {name: (found, text[begin:end]) for name, found, begin, end in _members(text, start)}
    headers, (found, value) = members.get("headers", (None, ""))[0], members.get("value", (None, ""))
    if not {"headers", "value"} <= members.keys() <= {"key", "headers", "value"} or not isinstance(headers, dict):
        return None
    data = None if found is None else found.encode("utf-8", "surrogatepass") if value[0] == '"' else value.encode()
    return Value(data, line, _as_bytes(members.get("key", (None, ""))[0]), _as_headers(headers))


def _as_headers(headers: dict[str, Any]) -> tuple[tuple[str, bytes | None], ...]:
    return tuple((name, _as_bytes(value)) for name, value in headers.items())


def _as_bytes(value: Any) -> bytes | None:
    return None if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _members(text: str, start: int) -> Iterator[tuple[str, Any, int, int]]:
    """(name, value, start, end) of each member of the JSON object at a position; numbers stay text."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    position = start + 1
    while text[position := _after_spaces(text, position)] != "}":
        name, position = decoder.raw_decode(text, position)
        begin = _after_spaces(text, _after_spaces(text, position) + 1)
        value, position = decoder.raw_decode(text, begin)
        yield name, value, begin, position
        position = _after_spaces(text, position)
        position += text[position] == ","


def _after_spaces(text: str, position: int) -> int:
    while text[position].isspace():
        position += 1
    return position


def _documents(text: str, position: int, end: int, separator: str = "") -> list[tuple[int, int]]:
    """(start, end) of each JSON value between two positions."""
    # Numbers are not converted: Python cannot convert a number with thousands of digits, and only positions are needed.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    documents: list[tuple[int, int]] = []
    while True:
        while position < end and (text[position].isspace() or text[position] == separator):
            position += 1
        if position >= end:
            return documents
        _, after = decoder.raw_decode(text, position)
        documents.append((position, after))
        position = after


def headers_in(texts: Iterable[str]) -> Headers:
    """Read headers from texts "name: value"; one text may hold several headers, separated by commas.

    A comma separates only if a name and a colon follow, so a value may contain commas.

    Args:
        texts: The texts.

    Returns:
        Names and values in the given order.

    Raises:
        CannotSend: A text has no colon.
    """
    headers: Headers = []
    for text in texts:
        for part in re.split(rf",\s*(?={_HEADER_NAME})", text.strip()):
            name, colon, value = part.partition(":")
            if not colon or not name.strip():
                raise CannotSend(f'the header {part!r} has no name and no colon: write "name: value"')
            headers.append((name.strip(), value.strip().encode()))
    return headers


def messages_of(
    topics: Registry,
    name: str,
    values: Sequence[Value],
    *,
    headers: Headers | None = None,
    key_field: str | None = None,
    is_checked: bool = True,
) -> list[Outgoing]:
    """Make messages of values: check each value against the topic's contract, and find its key.

    Args:
        topics: The topics of the project.
        name: The name of the topic to which the messages will be sent.
        values: The values.
        headers: The headers that every message will have, after those that the file gives it.
        key_field: The field that is the key; "a.b" for the field b of the object a. None for the topic's own key.
        is_checked: Whether a value that breaks the contract is an error. If not, the topic need not be declared.

    Returns:
        The messages, in the order of the values.

    Raises:
        CannotSend: No package declares the topic, a value breaks the contract, or a value lacks the field `key_field`.
            The text names the first invalid messages. Or a value cannot be encoded, because the schema registry is
            unavailable or has no schema.
    """
    topic = next((topic for topic in topics if topic.name == name), None)
    if topic is None and is_checked:
        known = ", ".join(sorted(topic.name for topic in topics)) or "none"
        raise CannotSend(f"no package of include/project.py declares the topic {name!r}; it has: {known}")
    messages: list[Outgoing] = []
    problems: list[str] = []
    for number, value in enumerate(values, start=1):
        event = None
        own_headers = [*value.headers, *(headers or ())]
        try:
            event = topic.parse_text(value.data, own_headers) if topic is not None else None
        except ContractViolation as violation:
            if is_checked:
                problems.append(f"message {number} (line {value.line}): {violation}")
                continue
        except NotWanted:
            if is_checked:
                problems.append(f"message {number} (line {value.line}): the topic has no contract for its type")
                continue
        own_key = topic.key if topic else None
        path = key_field or own_key
        key = _field(value.data or b"", path) if path else None
        if key_field is None and value.key is not None:
            key = value.key
        elif key_field is None and own_key is not None and event is not None:
            key = str(getattr(event, own_key)).encode()
        if key_field is not None and key is None:
            problems.append(f"message {number} (line {value.line}): its key {key_field} has no text and no number")
        try:
            messages.append(encoded(topic, Outgoing(value, key, own_headers), is_checked=is_checked))
        except ContractViolation as violation:
            problems.append(f"message {number} (line {value.line}): {violation}")
    if problems:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        unless = ", or send it without the check by CHECK=0 (--no-check)" if is_checked else ""
        raise CannotSend(
            f"nothing was sent to {name}, {len(problems)} of {len(values)} messages are invalid: "
            f"{'; '.join(problems[:MAX_NAMED])}{more}. Repair the file{unless}"
        )
    return messages


def encoded(topic: Topic | None, message: Outgoing, *, is_checked: bool = True) -> Outgoing:
    """The message with its value in the topic's format.

    Args:
        topic: The topic; None if it is not declared.
        message: A message whose value is a JSON text.
        is_checked: Whether a text that does not fit the schema is an error. If not, it is sent as it is.

    Raises:
        ContractViolation: The text does not fit the schema.
        CannotSend: The schema registry is unavailable, or has no schema.
    """
    value, headers = message.value, message.headers
    if topic is None or value.data is None or topic.codec is None:
        return message
    try:
        data, added = topic.encode(value.data)
    except ContractViolation:
        if is_checked:
            raise
        return message
    except (RegistryUnavailable, SchemaRefused) as error:
        raise CannotSend(f"nothing was sent to {topic.name}: {error}") from error
    return Outgoing(replace(value, data=data), message.key, [*headers, *added])


def _field(value: bytes, path: str) -> bytes | None:
    """The text or number in a field of a JSON document, as the document writes it; None if there is none."""
    try:
        node: Any = json.loads(value, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node.encode("utf-8", "surrogatepass") if isinstance(node, str) else None


def send(
    topic: str,
    messages: Sequence[Outgoing],
    *,
    partition: int | None = None,
    conn_id: str = CONN_ID,
) -> list[Sent]:
    """Send messages and wait until each is acknowledged.

    Args:
        topic: The topic's name; it must exist.
        messages: The messages, in this order.
        partition: The partition; None to let the client choose by the key.
        conn_id: The Airflow connection of the broker.

    Returns:
        The partition and offset of each message, in the same order.

    Raises:
        CannotSend: The topic or the partition does not exist, or the broker refused a message. The text says how many
            messages the broker accepted.
        KafkaException: The broker cannot be reached.
    """
    from confluent_kafka import KafkaException, Producer

    from include.streams.kafka.connection import ClientErrors, client_config, producer_config

    config = client_config(conn_id)
    errors = ClientErrors(conn_id, config)
    producer = Producer(producer_config(config))
    with errors.explaining(producer):
        _require(producer, topic, partition, conn_id)
    sent: dict[int, Sent] = {}
    refused: dict[int, str] = {}

    def on_delivery(number: int, error: Any, record: Any) -> None:
        if error is None:
            sent[number] = Sent(record.partition(), record.offset())
        else:
            refused[number] = error.str()

    fixed_partition = {} if partition is None else {"partition": partition}
    for number, message in enumerate(messages):
        record = {"value": message.value.data, "key": message.key, "headers": message.headers, **fixed_partition}
        while True:
            try:
                producer.produce(topic, on_delivery=partial(on_delivery, number), **record)
                break
            except BufferError:
                # The client's queue is full: wait until acknowledgments make room.
                producer.poll(0.5)
            except KafkaException as error:
                refused[number] = error.args[0].str()
                break
        producer.poll(0)
    producer.flush()
    if refused:
        first = min(refused)
        reason = f"; {errors.refusal}" if errors.refusal else ""
        raise CannotSend(
            f"the broker accepted {len(sent)} of {len(messages)} messages for {topic}; message {first + 1} "
            f"(line {messages[first].value.line}): {refused[first]}{reason}"
        )
    return [sent[number] for number in range(len(messages))]


def _require(producer: "Producer", topic: str, partition: int | None, conn_id: str) -> None:
    """Raise CannotSend unless the topic and the partition exist."""
    # All topics are requested: a request for one topic would create it on a broker that creates topics automatically.
    metadata = producer.list_topics(timeout=METADATA_SECONDS).topics.get(topic)
    if metadata is None or not metadata.partitions:
        raise CannotSend(
            f"topic {topic} does not exist on the broker of connection {conn_id}: `make up` creates the topics of the "
            "project on the local stack, the Dag prepare_services in a deployment"
        )
    if partition is not None and partition not in metadata.partitions:
        raise CannotSend(f"topic {topic} has no partition {partition}; it has 0 to {max(metadata.partitions)}")


def lines_of(topic: str, sent: Sequence[Sent]) -> list[str]:
    """Format what was sent, for people: a line for each message, or for each partition if there are many messages.

    Args:
        topic: The topic's name.
        sent: The return value of `send`.
    """
    if len(sent) <= MAX_LINES:
        return [f"{topic}  partition {partition}  offset {offset}" for partition, offset in sent]
    offsets: dict[int, list[int]] = {}
    for partition, offset in sent:
        offsets.setdefault(partition, []).append(offset)
    return [
        f"{topic}  partition {partition}  offsets {min(numbers)} to {max(numbers)}: {len(numbers)} messages"
        for partition, numbers in sorted(offsets.items())
    ]
